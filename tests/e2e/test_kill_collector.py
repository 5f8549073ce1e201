"""`kill -9` of a real collector at random moments under load: nothing acked is lost, nothing and no incident comes twice."""

import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

import msgspec
import pytest
from bench.frames import FIRST_SEQ
from bench.plant import Collector, enrol, environ, lay
from tests.e2e.loader import Order, Outcome

from tocsin_collector.batch import digest, entry_of
from tocsin_collector.core.engine import Engine
from tocsin_collector.core.model import LIVE_STATES, FrameIn
from tocsin_collector.store.base import Row

AGENTS = 8
WINDOW = 10
SAMPLES = 200
ACTIVE = 0.01
RESTART_S_MAX = 5.0
PATIENCE_S = 30.0
UNDER_LOAD_S = (0.2, 2.0)
ROOT = Path(__file__).parents[2]


class Loader:
    """The loading process."""

    def __init__(self, order: Order) -> None:
        self.first_acks = Path(order.first_acks)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.e2e.loader"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env={**environ(), "PYTHONPATH": str(ROOT)},
        )
        assert self.process.stdin is not None
        self.process.stdin.write(msgspec.json.encode(order) + b"\n")
        self.process.stdin.flush()

    def acked_since(self, since_s: float, agents: int) -> list[float]:
        """Seconds until so many agents had their first new ack after `since_s`."""
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            lines = self.first_acks.read_text().splitlines() if self.first_acks.exists() else []
            found: dict[str, float] = {}
            for at, name in (line.split() for line in lines):
                if float(at) > since_s:
                    found.setdefault(name, float(at) - since_s)
            if len(found) >= agents:
                return sorted(found.values())
            assert self.process.poll() is None, "the loader has ended"
            time.sleep(0.01)
        raise AssertionError(f"no acks within {PATIENCE_S} s")

    def finish(self) -> Outcome:
        out, _ = self.process.communicate(timeout=PATIENCE_S)
        return msgspec.json.decode(out, type=Outcome)


@pytest.mark.check
def test_a_collector_killed_5_times_loses_nothing_and_repeats_nothing(tmp_path: Path) -> None:
    kill(tmp_path, kills=5, seed=5)


@pytest.mark.soak
def test_a_collector_killed_20_times_loses_nothing_and_repeats_nothing(tmp_path: Path) -> None:
    kill(tmp_path, kills=20, seed=20)


def kill(folder: Path, *, kills: int, seed: int) -> None:
    rng = random.Random(seed)
    state = lay(folder / "c")
    agents = tuple(enrol(state, [f"host-{n}" for n in range(AGENTS)]))
    order = Order(str(state / "ports.json"), str(folder / "acks"), agents, SAMPLES, ACTIVE, WINDOW)
    recovered_s: list[float] = []
    collector = Collector(state)
    loader = Loader(order)
    try:
        loader.acked_since(0.0, AGENTS)
        for _ in range(kills):
            time.sleep(rng.uniform(*UNDER_LOAD_S))  # the moment is what is random here
            collector.process.send_signal(signal.SIGKILL)
            collector.process.wait(10)
            began_s = time.time()
            collector = Collector(state)
            recovered_s.append(loader.acked_since(began_s, AGENTS)[0])
            assert collector.call("status")["pipeline"]["replay_differences"] == 0
        outcome = loader.finish()
    finally:
        loader.process.kill()
        collector.stop()
    frames = judge(state, outcome)
    print(
        f"{kills} kills (seed {seed}): {frames} frames, {outcome.resent} sent again, "
        f"restart to first ack {max(recovered_s):.2f} s at most, {sum(recovered_s) / kills:.2f} s on average"
    )
    assert max(recovered_s) <= RESTART_S_MAX, recovered_s
    assert outcome.resent > 0, "no kill has met a frame in flight"


def judge(state: Path, outcome: Outcome) -> int:
    """The collector's own record against what the agents were told. Frames in the journal."""
    assert outcome.broken == []
    assert outcome.acked == outcome.sent
    database = sqlite3.connect(f"file:{state / 'tocsin.db'}?mode=ro", uri=True)
    try:
        seen = replayed(database)
        marks = {
            (agent, spool.hex()): mark
            for agent, spool, mark in database.execute("SELECT agent, spool_id, high_water FROM spool")
        }
        incidents_are_single(database)
    finally:
        database.close()
    for agent, acked in outcome.acked.items():
        numbers = seen[agent, outcome.spools[agent]]
        missing = [seq for seq in range(FIRST_SEQ, acked + 1) if not numbers[seq]]
        assert not missing, f"{agent}: acked and lost: {missing[:5]}"
        twice = [seq for seq, count in numbers.items() if count > 1]
        assert not twice, f"{agent}: taken twice: {twice[:5]}"
        assert marks[agent, outcome.spools[agent]] == acked
    return sum(sum(numbers.values()) for numbers in seen.values())


def replayed(database: sqlite3.Connection) -> dict[tuple[str, str], Counter[int]]:
    """How often each number is in the journal; and the whole journal, played again, leads to the effects that are stored."""
    stored = dict(database.execute('SELECT "offset", digest FROM effect_digest'))
    seen: dict[tuple[str, str], Counter[int]] = defaultdict(Counter)
    engine, newest = Engine(), 0
    for found in database.execute(
        'SELECT "offset", received_ms, kind, agent, spool_id, body FROM journal ORDER BY "offset"'
    ):
        row = Row(*found)
        assert row.offset == newest + 1, f"the journal jumps from {newest} to {row.offset}"
        newest = row.offset
        entry = entry_of(row)
        if isinstance(entry.input, FrameIn):
            seen[row.agent, row.spool_id.hex()][entry.input.frame.seq] += 1
        effects = engine.step(entry)
        assert (digest(effects) if effects else b"") == stored.pop(row.offset, b""), (
            f"entry {row.offset} has other effects"
        )
    assert not stored, "effects of entries that are not there"
    return seen


def incidents_are_single(database: sqlite3.Connection) -> None:
    rows = database.execute('SELECT "key", state, opened_ms, detected_ms FROM incident').fetchall()
    assert rows, "the load has raised nothing"
    live = Counter(key for key, state, _, _ in rows if state in LIVE_STATES)
    assert not [key for key, count in live.items() if count > 1]
    born = Counter((key, opened_ms, detected_ms) for key, _, opened_ms, detected_ms in rows)
    assert not [what for what, count in born.items() if count > 1], "an incident was opened twice"
