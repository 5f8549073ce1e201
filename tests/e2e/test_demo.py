"""`tocsin demo` as a script runs it: its JSON, its exit code, and that nothing of it is left."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tocsin_proto import exits

pytestmark = pytest.mark.check

TOCSIN = Path(sys.executable).parent / "tocsin"
STATES = {"up", "degraded", "down", "unknown", "maintenance", "outside"}
DEVICES = {"this-host", "sw-hall-3", "mes-db", "plc-press-7"}
DEADLINE_S = 30.0


@pytest.fixture
def environ() -> Iterator[dict[str, str]]:
    """A folder for the demo's own folders, short enough for its sockets; nothing may be left in it."""
    with tempfile.TemporaryDirectory(prefix="td") as folder:
        yield {"PATH": os.environ["PATH"], "HOME": folder, "TMPDIR": folder, "LANG": "C.UTF-8"}
        assert list(Path(folder).iterdir()) == []
        assert processes(folder) == []


def processes(folder: str) -> list[str]:
    """Command lines and environments that name the folder: the demo's processes, wherever they were moved to."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            told = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
        except OSError:
            continue
        if folder.encode() in told:
            found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found


def until(look: Callable[[], Any], what: str) -> Any:
    end_s = time.monotonic() + DEADLINE_S
    while time.monotonic() < end_s:
        if found := look():
            return found
        time.sleep(0.05)
    raise AssertionError(f"not within {DEADLINE_S:g} s: {what}")


def test_the_headless_story_comes_out_right_and_says_so_in_one_json_object(environ: dict[str, str]) -> None:
    began_s = time.monotonic()
    done = subprocess.run(
        [TOCSIN, "demo", "--headless", "--seconds", "90", "--json"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=environ,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == exits.OK, done.stderr
    assert time.monotonic() - began_s <= 90
    (line,) = done.stdout.splitlines()
    found = json.loads(line)
    assert set(found) == {
        "hosts", "series", "samples_stored", "incidents_opened", "incidents_resolved", "duplicates_folded", "suppressed",
        "notices_opened", "notices_resolved", "ledger_gap_ms", "availability", "story",
    }  # fmt: skip
    assert found["hosts"] == 4
    assert found["series"] > 100
    assert found["samples_stored"] > 10 * found["series"]
    assert (found["incidents_opened"], found["incidents_resolved"], found["suppressed"]) == (3, 3, 2)
    assert (found["notices_opened"], found["notices_resolved"]) == (3, 3)
    assert found["duplicates_folded"] == 3
    assert found["ledger_gap_ms"] == 0
    assert set(found["availability"]) == DEVICES
    assert all(set(six) == STATES for six in found["availability"].values())
    assert len({sum(six.values()) for six in found["availability"].values()}) == 1
    assert found["availability"]["sw-hall-3"]["down"] > 0
    assert found["availability"]["mes-db"]["degraded"] > 0
    assert found["availability"]["this-host"]["down"] == 0
    assert [one["fault"] for one in found["story"]] == ["port down", "disk full", "switch unreachable"]
    assert all(0 <= one["detected_after_s"] < 15 for one in found["story"])
    assert "Held back: sw-hall-3 is unreachable and explains it" in done.stderr


def test_a_story_without_the_time_for_it_says_what_was_not_seen_and_fails(environ: dict[str, str]) -> None:
    done = subprocess.run(
        [TOCSIN, "demo", "--headless", "--seconds", "15", "--json", "--lang", "zh_CN"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environ,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == exits.PROBLEM
    assert "tocsin demo: 未在规定时间内出现" in done.stderr
    assert "tocsin demo: device-unreachable/sw-hall-3：有 0 个事件" in done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["hosts"] == 4
    assert found["ledger_gap_ms"] == 0


class Interactive:
    """The demo as somebody at a terminal starts it, until it waits for the first device."""

    def __init__(self, environ: dict[str, str]) -> None:
        self.folder = environ["TMPDIR"]
        self.said = Path(self.folder) / "said"
        with self.said.open("wb") as out:
            self.process = subprocess.Popen(
                [TOCSIN, "demo"], stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environ
            )
        until(lambda: "sw-hall-3" in self.said.read_text() or self.process.poll() is not None, "the first scene")
        assert self.process.poll() is None, self.said.read_text()
        assert re.search(r"Page +http://127\.0\.0\.1:\d+\n", self.said.read_text())
        assert re.search(r"Log in +admin, password \S{12} ", self.said.read_text())
        assert len(processes(self.folder)) >= 5, "itself, devices, collector, pages, agent"

    def gone(self) -> None:
        until(lambda: not processes(self.folder), "the end of everything it started")
        self.said.unlink()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_demo_that_is_stopped_takes_everything_with_it(environ: dict[str, str], number: int) -> None:
    running = Interactive(environ)
    running.process.send_signal(number)
    assert running.process.wait(15) == exits.OK
    assert running.said.read_text().splitlines()[-1] == "Stopped; nothing is left running."
    running.gone()


def test_a_demo_that_is_killed_leaves_no_process(environ: dict[str, str]) -> None:
    running = Interactive(environ)
    running.process.kill()
    running.process.wait(5)
    running.gone()
    for left in Path(environ["TMPDIR"]).iterdir():  # nobody was left to remove its folder
        assert left.name.startswith("tocsin-demo-")
        subprocess.run(["rm", "-r", str(left)], check=True)
