"""What the agent costs the host it watches: the real agent with its default probes, enrolled, streaming to a real collector.

Measured over whole probe intervals after the start has settled: resident memory, processor time with all children, series.
"""

import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.machine import cpu_s, rss_mib, talk, tree
from bench.plant import BIN, Collector, environ, lay, until
from bench.plant import run as command
from tocsin_agent import status

INTERVAL_S = 10  # of the default host probes
SETTLED_FRAMES = 2  # the first round, and one with rates


def run(*, quick: bool) -> dict[str, Any]:
    rounds = 4 if quick else 30
    with tempfile.TemporaryDirectory(prefix="tocsin-bench-") as folder:
        collector = Collector(lay(Path(folder) / "c"))
        try:
            return _watch(collector, Path(folder) / "a", rounds)
        finally:
            collector.stop()


def _watch(collector: Collector, folder: Path, rounds: int) -> dict[str, Any]:
    settings = folder / "agent.toml"
    where = ("--state", folder, "--config", settings)
    folder.mkdir()
    token = folder / "token"
    token.write_text(collector.call("token.create", actor="admin", device="edge-1")["token"])
    command("tocsin-agent", "enrol", *where, "--token-file", token)
    with (folder / "log").open("ab") as log:
        agent = subprocess.Popen(
            [str(BIN / "tocsin-agent"), "run", *map(str, where)], stdout=log, stderr=log, env=environ()
        )
    try:
        until(
            lambda: collector.figures()["tocsin_frames_total"] >= 1 or agent.poll() is not None, "a frame", step_s=0.1
        )
        if agent.poll() is not None:
            raise RuntimeError(f"the agent did not stay: {(folder / 'log').read_text()}")
        time.sleep(3)  # the start settles
        frames, began, before = collector.figures()["tocsin_frames_total"], time.monotonic(), _cpu_s(agent.pid)
        time.sleep(rounds * INTERVAL_S)
        seconds, after = time.monotonic() - began, _cpu_s(agent.pid)
        pids = tree(agent.pid)
        frames = collector.figures()["tocsin_frames_total"] - frames
        figures = {
            "rss_mib": round(sum(map(rss_mib, pids)), 1),
            "cpu_pct": round(100 * (after - before) / seconds, 3),
            "series": _series(folder),
            "processes": len(pids),
            "frames": round(frames),
            "seconds": round(seconds),
        }
    finally:
        agent.terminate()
        agent.wait(10)
    talk(f"agent: {figures}")
    return figures


def _cpu_s(pid: int) -> float:
    return sum(map(cpu_s, tree(pid)))


def _series(folder: Path) -> int:
    """As the agent itself counts them."""
    found = status.ask(folder)
    if found is None:
        raise RuntimeError("the agent does not answer")
    return found.series
