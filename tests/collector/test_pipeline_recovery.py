"""Restart: replay is exact and emits nothing, differences are reported, nothing acknowledged is lost."""

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from tests.support.plant import CONFIG, HOST, SPOOL, START_MS, frame, message

from tocsin_collector import batch as batches
from tocsin_collector.batch import Batcher, FrameItem, InputItem, Item
from tocsin_collector.recovery import Recovered, recover
from tocsin_collector.store import inline
from tocsin_collector.store.inline import run_inline
from tocsin_collector.store.snapshots import Snapshots
from tocsin_collector.store.sqlite import SqliteStore


class Collector:
    """A collector without an event loop: everything happens where it is called."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "tocsin.db"
        self.snapshots = Snapshots(folder / "snapshots")
        self.now_ms = START_MS
        self.acked: list[int] = []
        self.start()

    def start(self) -> Recovered:
        self.store = run_inline(SqliteStore.open(self.path, connect=inline.connect, channels=("desk",)))
        found = run_inline(recover(self.store, self.snapshots))
        self.batcher = Batcher(found.engine, found.marks, offset=found.offset, received_ms=found.received_ms)
        return found

    def crash(self) -> None:
        run_inline(self.store.abandon())

    def feed(self, *items: Item) -> None:
        self.now_ms += 1000
        batch = self.batcher.prepare(items, self.now_ms)
        answers = run_inline(self.store.commit(batch.transaction(self.snapshots.floor(), self.now_ms)))
        self.batcher.finish(batch, answers)
        if batch.snapshot is not None:
            self.snapshots.write(*batch.snapshot)

    def frames(self, first: int, last: int) -> None:
        for seq in range(first, last + 1):
            made = frame(seq, 0.95 if seq % 7 < 3 else 0.5, 0.5)
            self.batcher.admit(HOST, SPOOL, seq, seq - 1)
            self.feed(FrameItem(HOST, SPOOL, made, message(made), self.acked.append))


@pytest.fixture
def collector(tmp_path: Path) -> Collector:
    made = Collector(tmp_path)
    made.feed(InputItem(CONFIG))
    return made


def outbox(path: Path) -> list[tuple[str]]:
    connection = sqlite3.connect(path)
    rows = connection.execute("SELECT idempotency_key FROM outbox ORDER BY id").fetchall()
    connection.close()
    return rows


def test_snapshot_and_journal_give_the_engine_as_it_was_and_emit_nothing(collector: Collector) -> None:
    collector.frames(1, 30)
    before, told = collector.batcher.engine.snapshot(), outbox(collector.path)
    assert len(told) >= 4
    collector.crash()
    found = collector.start()
    assert found.replayed > 20
    assert found.differences == 0
    assert found.engine.snapshot() == before
    assert outbox(collector.path) == told
    collector.frames(31, 40)
    assert collector.acked == list(range(1, 41))
    collector.crash()


def test_without_a_snapshot_the_engine_starts_from_what_is_committed(collector: Collector) -> None:
    collector.frames(1, 9)
    truth = run_inline(collector.store.truth())
    collector.crash()
    for file in collector.snapshots.folder.iterdir():
        file.unlink()
    found = collector.start()
    assert (found.replayed, found.engine.offset, found.offset) == (0, truth.offset, truth.offset)
    collector.frames(10, 20)
    assert len({key for (key,) in outbox(collector.path)}) == len(outbox(collector.path))
    collector.crash()


def test_a_replay_with_other_effects_is_reported_and_committed_truth_wins(collector: Collector) -> None:
    collector.frames(1, 20)
    collector.crash()
    connection = sqlite3.connect(collector.path)
    changed = connection.execute(
        'UPDATE effect_digest SET digest = zeroblob(8) WHERE "offset" = (SELECT max("offset") FROM effect_digest)'
    )
    assert changed.rowcount == 1
    connection.commit()
    connection.close()
    with capture_logs() as logs:
        found = collector.start()
    assert found.differences == 1
    events = [log["event"] for log in logs]
    assert "replay differs" in events
    assert "replay differs from what is committed: starting from committed truth" in events
    assert found.engine.offset == found.offset
    collector.frames(21, 25)
    collector.crash()


def test_a_journal_with_a_hole_or_a_damaged_entry_is_reported_and_not_replayed_beyond(collector: Collector) -> None:
    collector.frames(1, 20)
    collector.crash()
    connection = sqlite3.connect(collector.path)
    connection.execute('DELETE FROM journal WHERE "offset" = 12')
    connection.commit()
    with capture_logs() as logs:
        found = collector.start()
    assert [log["problem"] for log in logs if log["event"] == "replay differs"] == ["entries 12 to 12 are missing"]
    assert found.engine.offset == found.offset
    collector.crash()
    connection.execute("UPDATE journal SET body = x'FF' WHERE \"offset\" = 8")
    connection.commit()
    connection.close()
    with capture_logs() as logs:
        found = collector.start()
    assert [log["problem"] for log in logs if log["event"] == "replay differs"] == ["WireError in replay"]
    assert found.engine.offset == found.offset
    collector.crash()


def test_a_database_older_than_its_snapshots_never_gives_an_offset_twice(collector: Collector, tmp_path: Path) -> None:
    collector.frames(1, 3)
    run_inline(collector.store.close())
    older = collector.path.read_bytes()
    collector.start()
    collector.frames(4, 20)
    last = collector.batcher.offset
    collector.snapshots.write(last, collector.batcher.engine.snapshot())
    run_inline(collector.store.close())
    collector.path.write_bytes(older)
    with capture_logs() as logs:
        found = collector.start()
    assert "the database is older than a snapshot: entries are lost" in [log["event"] for log in logs]
    assert found.offset == last
    collector.frames(4, 6)
    assert run_inline(collector.store.read_journal(last, 1 << 20))[0].offset == last + 1
    collector.crash()


def test_the_journal_is_trimmed_behind_the_older_snapshot_and_a_restart_still_works(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "SNAPSHOT_ENTRIES", 20)
    collector.frames(1, 100)
    bounds = run_inline(collector.store.bounds())
    assert bounds.first > 50
    assert bounds.first <= collector.snapshots.floor() + 1
    before = collector.batcher.engine.snapshot()
    collector.crash()
    found = collector.start()
    assert found.engine.snapshot() == before
    newest = max(collector.snapshots.folder.glob("*.snap"))
    newest.write_bytes(b"")
    collector.crash()
    assert collector.start().engine.snapshot() == before
    collector.crash()


CHILD = """
import asyncio, sys
from pathlib import Path
from tests.support.plant import CONFIG, HOST, SPOOL, frame, message
from tocsin_collector.core.intake import Admission
from tocsin_collector.pipeline import Pipeline
from tocsin_collector.store.snapshots import Snapshots
from tocsin_collector.store.sqlite import SqliteStore
import time

async def main(folder):
    store = await SqliteStore.open(folder / "tocsin.db", channels=("desk",))
    pipeline = await Pipeline.start(store, Snapshots(folder / "snapshots"), lambda: int(time.time() * 1000))
    run = asyncio.create_task(pipeline.run())
    await pipeline.configure(CONFIG)
    seq = pipeline.high_water(HOST, SPOOL)
    print("from", seq, flush=True)
    while True:
        seq += 1
        made = frame(seq, 0.95 if seq % 40 < 20 else 0.5, 0.5)
        assert pipeline.admit(HOST, SPOOL, seq, seq - 1) is Admission.ACCEPT
        await pipeline.offer_frame(HOST, SPOOL, message(made), made, lambda seq: print(seq, flush=True))
        await asyncio.sleep(0)

asyncio.run(main(Path(sys.argv[1])))
"""


def test_nothing_acknowledged_is_lost_when_the_collector_is_killed(tmp_path: Path) -> None:
    acked = 0
    for acks in (40, 300, 7):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=Path(__file__).parents[2],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
        assert child.stdout is not None
        lines = iter(child.stdout.readline, b"")
        for line in lines:
            if line.startswith(b"from "):
                assert int(line.split()[1]) >= acked
                break
        seen = [int(next(lines)) for _ in range(acks)]
        child.send_signal(signal.SIGKILL)
        seen += [int(line) for line in child.stdout if line.endswith(b"\n") and line.strip().isdigit()]
        child.wait()
        child.stdout.close()
        acked = max(acked, *seen)
        store = run_inline(SqliteStore.open(tmp_path / "tocsin.db", connect=inline.connect))
        found = run_inline(recover(store, Snapshots(tmp_path / "snapshots")))
        run_inline(store.abandon())
        assert found.differences == 0
        assert found.marks[0].seq >= acked
    connection = sqlite3.connect(tmp_path / "tocsin.db")
    bodies = [body for (body,) in connection.execute("SELECT body FROM journal WHERE kind = 'frame'")]
    assert len(bodies) == len(set(bodies)) == found.marks[0].seq
    (doubled,) = connection.execute(
        "SELECT count(*) - count(DISTINCT \"key\") FROM incident WHERE state IN ('open', 'acknowledged')"
    ).fetchone()
    assert doubled == 0
    connection.close()
