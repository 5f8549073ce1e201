"""End to end: simulated agents stream real frames over mutual TLS into the real collector process, detection on.

Acked means durable (one transaction with `synchronous=FULL` for each group), so samples_per_s is what reached the disk. After
each stretch the collector's own record is held against what the loader was told: lost and duplicates are counted, not assumed.
"""

import os
import sqlite3
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from bench.frames import FIRST_SEQ
from bench.load import Order, Outcome
from bench.machine import talk
from bench.plant import Collector, Credentials, enrol, lay
from tocsin_proto.codec import decode_agent
from tocsin_proto.records import Frame

AGENTS = 20
# Frames that an agent keeps in flight: what five and twelve thousand a second need while Acks come every 10 ms, and not
# the whole credit, which would only be a longer queue.
WINDOW, SMALL_WINDOW = 24, 60
ACTIVE = 0.01


def run(*, quick: bool) -> dict[str, Any]:
    measure_s = 10.0 if quick else 30.0
    with tempfile.TemporaryDirectory(prefix="tocsin-bench-") as folder:
        state = lay(Path(folder) / "c")
        agents = enrol(state, [f"host-{n}" for n in range(AGENTS)])
        large = stretch(state, agents, samples=200, measure_s=measure_s)
        # Other hosts: the same ones would send a part of series they already have, scattered over the columns.
        others = enrol(state, [f"small-{n}" for n in range(AGENTS)])
        small = stretch(state, others, samples=20, measure_s=measure_s, window=SMALL_WINDOW)
    return {
        "samples_per_s": round(large["frames_per_s"] * 200),
        "frames_per_s": round(large["frames_per_s"]),
        "ack_p50_ms": large["ack_p50_ms"],
        "ack_p99_ms": large["ack_p99_ms"],
        "server_cpu_us_per_frame": large["server_cpu_us_per_frame"],
        "rss_mib": large["rss_mib"],
        "mtls": True,
        "lost": large["lost"] + small["lost"],
        "duplicates": large["duplicates"] + small["duplicates"],
        "small_frames_per_s": round(small["frames_per_s"]),
        "small_ack_p99_ms": small["ack_p99_ms"],
        "small_server_cpu_us_per_frame": small["server_cpu_us_per_frame"],
        "loader_cpu_us_per_frame": large["loader_cpu_us_per_frame"],
        "incidents": large["incidents"] + small["incidents"],
        "agents": len(agents),
        "active": ACTIVE,
        "frames_per_commit": large["frames_per_commit"],
        "load_average": round(os.getloadavg()[0], 1),
    }


def stretch(
    state: Path,
    agents: list[Credentials],
    *,
    samples: int,
    measure_s: float,
    window: int = WINDOW,
    active: float = ACTIVE,
    warm_s: float = 2.0,
) -> dict[str, Any]:
    """Start the collector, load it, stop it, and hold its record against the loader's."""
    collector = Collector(state)
    try:
        before = collector.figures()
        order = Order(
            collector.ports["ingest"], collector.pid, tuple(agents), samples, active, window, warm_s, measure_s
        )
        outcome = load(order)
        after = collector.figures()
    finally:
        collector.stop()
    problems = _compare(
        state, outcome, taken=after["tocsin_samples_total"] - before["tocsin_samples_total"], of=samples
    )
    latencies = sorted(outcome.latencies_ms)
    figures = {
        "frames_per_s": outcome.frames / outcome.seconds,
        "ack_p50_ms": round(latencies[len(latencies) // 2], 1),
        "ack_p99_ms": round(latencies[len(latencies) * 99 // 100], 1),
        "server_cpu_us_per_frame": round(outcome.collector_cpu_s * 1e6 / outcome.frames, 1),
        "loader_cpu_us_per_frame": round(outcome.loader_cpu_s * 1e6 / outcome.frames, 1),
        "rss_mib": round(outcome.collector_rss_mib, 1),
        "incidents": _incidents(state),
        "frames_per_commit": round(
            problems["journaled"] / (after["tocsin_commits_total"] - before["tocsin_commits_total"]), 1
        ),
        **problems,
    }
    talk(f"{samples} samples a frame: " + ", ".join(f"{name} {value}" for name, value in figures.items()))
    return figures


def load(order: Order) -> Outcome:
    done = subprocess.run(
        [sys.executable, "-m", "bench.load"],
        input=msgspec.json.encode(order),
        stdout=subprocess.PIPE,
        check=True,
        timeout=order.warm_s + order.measure_s + 60,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    return msgspec.json.decode(done.stdout.splitlines()[-1], type=Outcome)


def _compare(state: Path, outcome: Outcome, *, taken: float, of: int) -> dict[str, int]:
    """lost: acknowledged and not in the journal, or behind the mark. duplicates: twice in the journal, or in the engine."""
    seen: Counter[tuple[str, int]] = Counter()
    database = sqlite3.connect(state / "tocsin.db")
    try:
        spools = {bytes.fromhex(spool) for spool in outcome.spools.values()}
        for agent, spool_id, body in database.execute("SELECT agent, spool_id, body FROM journal WHERE kind = 'frame'"):
            if spool_id in spools:
                frame = decode_agent(body)
                assert isinstance(frame, Frame)
                seen[agent, frame.seq] += 1
        marks = {
            (agent, spool_id): mark
            for agent, spool_id, mark in database.execute("SELECT agent, spool_id, high_water FROM spool")
        }
    finally:
        database.close()
    lost = duplicates = 0
    for agent, acked in outcome.marks.items():
        lost += sum((agent, seq) not in seen for seq in range(FIRST_SEQ, acked + 1))
        lost += marks[agent, bytes.fromhex(outcome.spools[agent])] < acked
    duplicates = sum(seen.values()) - len(seen)
    duplicates += max(0, round(taken / of) - len(seen))
    lost += max(0, len(seen) - round(taken / of))
    return {"lost": lost, "duplicates": duplicates, "journaled": len(seen)}


def _incidents(state: Path) -> int:
    database = sqlite3.connect(state / "tocsin.db")
    try:
        ((count,),) = database.execute("SELECT count(*) FROM incident")
    finally:
        database.close()
    return int(count)
