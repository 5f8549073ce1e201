"""The one path on the event loop: acks after commits, answers, ticks, faults."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs
from tests.support.plant import CONFIG, HOST, SPOOL, START_MS, frame, message

from tocsin_collector.core.engine import Engine
from tocsin_collector.core.intake import Admission
from tocsin_collector.core.model import Command, Effect, Entry, FrameIn, IncidentState
from tocsin_collector.pipeline import Limits, Pipeline, PipelineStoppedError
from tocsin_collector.store.base import Answer, Statements, Transaction
from tocsin_collector.store.read import Reader
from tocsin_collector.store.snapshots import Snapshots
from tocsin_collector.store.sqlite import SqliteStore
from tocsin_proto import records


class Clock:
    def __init__(self) -> None:
        self.now_ms = START_MS

    def __call__(self) -> int:
        return self.now_ms


class Gated(SqliteStore):
    """A real store whose commits wait for permission."""

    gate: asyncio.Event
    waiting: asyncio.Event

    async def commit(self, transaction: Transaction) -> tuple[Answer, ...]:
        self.waiting.set()
        await self.gate.wait()
        return await super().commit(transaction)


class Plant:
    """A running pipeline on a real store."""

    def __init__(self, store: Gated, pipeline: Pipeline, clock: Clock) -> None:
        self.store, self.pipeline, self.clock = store, pipeline, clock
        self.acked: list[int] = []
        self._acked = asyncio.Event()

    def done(self, seq: int) -> None:
        self.acked.append(seq)
        self._acked.set()

    async def send(self, frame: records.Frame, spool_id: bytes = SPOOL) -> None:
        assert self.pipeline.admit(HOST, spool_id, frame.seq, frame.follows) is Admission.ACCEPT
        await self.pipeline.offer_frame(HOST, spool_id, message(frame), frame, self.done)

    async def until(self, is_so: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not is_so():
                self._acked.clear()
                await self._acked.wait()

    async def query(self, sql: str) -> list[Any]:
        async def operation(connection: Statements) -> list[Any]:
            return list(await connection.execute_fetchall(sql))

        return await self.pipeline.administer(operation)


@asynccontextmanager
async def plant(folder: Path, limits: Limits | None = None, *, engine: Engine | None = None) -> AsyncIterator[Plant]:
    store = await Gated.open(folder / "tocsin.db", channels=("desk",))
    assert isinstance(store, Gated)
    store.gate, store.waiting = asyncio.Event(), asyncio.Event()
    store.gate.set()
    clock = Clock()
    pipeline = await Pipeline.start(store, Snapshots(folder / "snapshots"), clock, limits)
    if engine is not None:
        pipeline.batcher.engine = engine
    task = asyncio.create_task(pipeline.run())
    try:
        yield Plant(store, pipeline, clock)
        pipeline.stop()
        store.gate.set()
        await task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await store.close()


def test_an_ack_leaves_only_after_the_commit_that_holds_the_frame(tmp_path: Path) -> None:
    async def main() -> None:
        async with plant(tmp_path) as p:
            await p.pipeline.configure(CONFIG)
            p.store.gate.clear()
            p.store.waiting.clear()
            for seq in (1, 2, 3):
                await p.send(frame(seq))
            await p.store.waiting.wait()
            for _ in range(50):
                await asyncio.sleep(0)
            assert p.acked == []
            assert (p.pipeline.high_water(HOST, SPOOL), p.pipeline.committed(HOST, SPOOL)) == (3, 0)
            p.store.gate.set()
            await p.until(lambda: p.acked == [1, 2, 3])
            assert p.pipeline.committed(HOST, SPOOL) == 3

    asyncio.run(main())


def test_frames_become_an_incident_a_ledger_and_a_notice_in_one_path(tmp_path: Path) -> None:
    async def main() -> None:
        async with plant(tmp_path) as p:
            rung: list[int] = []
            p.pipeline.on_notice(lambda: rung.append(len(p.acked)))
            await p.pipeline.configure(CONFIG)
            await p.send(frame(1, 0.5, 0.5))
            await p.send(frame(2, 0.95, 0.5))
            await p.until(lambda: p.acked == [1, 2])
            assert rung == [2]
            reader = await Reader.open(tmp_path / "tocsin.db")
            (incident,) = (await reader.incidents()).items
            assert (incident.state, incident.rule, incident.facts["mount"]) == (IncidentState.OPEN, "disk-full", "/")
            assert [d.kind for d in await reader.deliveries(incident.id)] == ["opened"]
            assert [(c.component, c.state) for c in await reader.components()] == [(HOST, "degraded")]
            assert [step.kind for step in await reader.timeline(incident.id)] != []
            answer = await p.pipeline.command(Command("acknowledge", "zm", incident.id))
            assert answer.error == ""
            (incident,) = (await reader.incidents()).items
            assert (incident.state, incident.acknowledged_by) == (IncidentState.ACKNOWLEDGED, "zm")
            assert (await p.pipeline.command(Command("acknowledge", "zm", "I-999"))).error != ""
            p.clock.now_ms += 3000
            await p.send(frame(3))
            await p.until(lambda: 3 in p.acked)
            values = {one.value for one in await reader.latest(HOST)}
            assert values == {0.5}
            await reader.close()

    asyncio.run(main())


def test_what_was_sent_again_is_known_after_a_restart(tmp_path: Path) -> None:
    async def main() -> None:
        async with plant(tmp_path) as p:
            await p.pipeline.configure(CONFIG)
            for seq in (1, 2, 3):
                await p.send(frame(seq))
            await p.until(lambda: len(p.acked) == 3)
        async with plant(tmp_path) as p:
            assert p.pipeline.high_water(HOST, SPOOL) == 3
            assert p.pipeline.admit(HOST, SPOOL, 3, 2) is Admission.DUPLICATE
            assert p.pipeline.admit(HOST, SPOOL, 5, 4) is Admission.GAP
            await p.send(frame(4))
            await p.until(lambda: p.acked == [4])
            assert await p.query("SELECT count(*) FROM journal WHERE kind = 'frame'") == [(4,)]

    asyncio.run(main())


def test_a_caller_that_is_cancelled_while_it_waits_leaves_its_frame_in_the_queue(tmp_path: Path) -> None:
    async def main() -> None:
        async with plant(tmp_path, Limits(queue_items_max=1)) as p:
            await p.pipeline.configure(CONFIG)
            p.store.gate.clear()
            senders = [asyncio.create_task(p.send(frame(seq))) for seq in range(1, 1200)]
            await asyncio.wait(senders, timeout=0.05)
            waiting = [task for task in senders if not task.done()]
            assert waiting  # the queue is over its bound, and holds its callers
            for task in senders:
                task.cancel()
            await asyncio.gather(*senders, return_exceptions=True)
            p.store.gate.set()
            await p.until(lambda: len(p.acked) == 1199)
            assert p.acked == list(range(1, 1200))

    asyncio.run(main())


def test_a_dead_letter_is_kept_and_uses_up_its_number(tmp_path: Path) -> None:
    async def main() -> None:
        async with plant(tmp_path) as p:
            assert p.pipeline.admit(HOST, SPOOL, 1, 0) is Admission.ACCEPT
            await p.pipeline.dead_letter(HOST, SPOOL, 1, "malformed", "frame.clock: missing", b"\xff\x00", p.done)
            await p.until(lambda: p.acked == [1])
            assert await p.query("SELECT agent, seq, code, body FROM dead_letter") == [
                (HOST, 1, "malformed", b"\xff\x00")
            ]
        async with plant(tmp_path) as p:
            assert p.pipeline.high_water(HOST, SPOOL) == 1

    asyncio.run(main())


def test_a_spool_that_a_lost_database_had_acknowledged_goes_on_where_it_is(tmp_path: Path) -> None:
    async def main() -> None:
        async with plant(tmp_path) as p:
            await p.pipeline.configure(CONFIG)
            assert p.pipeline.admit(HOST, SPOOL, 500, 499) is Admission.GAP
            p.pipeline.adopt(HOST, SPOOL, 500)
            assert p.pipeline.admit(HOST, SPOOL, 499, 498) is Admission.DUPLICATE
            await p.send(frame(500))
            await p.until(lambda: p.acked == [500])
            p.pipeline.adopt(HOST, SPOOL, 900)  # known by now: nothing changes
            assert p.pipeline.high_water(HOST, SPOOL) == 500

    asyncio.run(main())


def test_administration_is_answered_when_durable_and_raises_what_was_refused(tmp_path: Path) -> None:
    async def add(connection: Statements) -> str:
        await connection.execute("INSERT INTO account VALUES ('zm', 'hash', 'admin', 1)")
        return "made"

    async def main() -> None:
        async with plant(tmp_path) as p:
            assert await p.pipeline.administer(add) == "made"
            with pytest.raises(sqlite3.IntegrityError):
                await p.pipeline.administer(add)
            p.store.gate.clear()
            slow = asyncio.create_task(p.query("SELECT count(*) FROM account"))
            await asyncio.wait([slow], timeout=0.02)
            assert not slow.done()
            p.store.gate.set()
            assert await slow == [(1,)]

    asyncio.run(main())


def test_ticks_follow_the_clock_and_missed_ones_are_not_made_up_for(tmp_path: Path) -> None:
    ticks = f"SELECT received_ms - {START_MS} FROM journal WHERE kind = 'tick' ORDER BY \"offset\""

    async def main() -> None:
        async with plant(tmp_path) as p:
            assert await p.query(ticks) == [(0,)]
            p.clock.now_ms += 999
            assert await p.query(ticks) == [(0,)]
            p.clock.now_ms += 1
            assert await p.query(ticks) == [(0,), (1000,)]
            p.clock.now_ms += 60_500
            assert await p.query(ticks) == [(0,), (1000,), (61_500,)]
            p.clock.now_ms += 500
            assert await p.query(ticks) == [(0,), (1000,), (61_500,), (62_000,)]
            p.clock.now_ms -= 30_000  # a step back: journal time stands still
            assert await p.query("SELECT 1") == [(1,)]
            assert (await p.query(ticks))[-1] == (62_000,)
            p.clock.now_ms -= 3_600_000  # a clock that was wrong: journal time follows
            assert (await p.query(ticks))[-1] == (62_000 - 3_630_000,)

    asyncio.run(main())


def test_a_mistake_that_the_database_refuses_ends_the_pipeline_loudly(tmp_path: Path) -> None:
    async def main() -> None:
        store = await SqliteStore.open(tmp_path / "tocsin.db")
        pipeline = await Pipeline.start(store, None, Clock())
        pipeline.batcher.offset = 0
        task = asyncio.create_task(pipeline.run())
        await pipeline.configure(CONFIG)
        pipeline.batcher.offset = 0  # the next entry takes an offset that is taken
        pulse = records.Pulse(records.Clock(1, 1, 1))
        await pipeline.offer_pulse(HOST, pulse)
        with pytest.raises(sqlite3.IntegrityError):
            await task
        with pytest.raises(PipelineStoppedError):
            await pipeline.offer_pulse(HOST, pulse)
        await store.close()

    asyncio.run(main())


class Brittle(Engine):
    """Breaks, in the middle of its work, at frame 3."""

    def step(self, entry: Entry) -> list[Effect]:
        effects = super().step(entry)
        if isinstance(entry.input, FrameIn) and entry.input.frame.seq == 3:
            raise ZeroDivisionError("rate over no time")
        return effects


def test_a_frame_that_breaks_the_engine_is_put_aside_and_the_rest_goes_on(tmp_path: Path) -> None:
    async def main() -> None:
        async with plant(tmp_path, engine=Brittle()) as p:
            await p.pipeline.configure(CONFIG)
            with capture_logs() as logs:
                for seq in range(1, 7):
                    await p.send(frame(seq, 0.95 if seq == 3 else 0.5, 0.5))
                await p.until(lambda: len(p.acked) == 6)
            assert p.acked == [1, 2, 3, 4, 5, 6]
            assert "input broke the engine, put aside; rebuilding" in [log["event"] for log in logs]
            (letter,) = await p.query("SELECT seq, code, detail FROM dead_letter")
            assert letter == (3, "engine fault", "ZeroDivisionError: rate over no time")
            assert await p.query("SELECT count(*) FROM incident") == [(0,)]
            assert await p.query("SELECT count(*) FROM journal WHERE kind = 'frame'") == [(5,)]
            assert p.pipeline.status().engine_faults == 1
        async with plant(tmp_path) as p:
            assert p.pipeline.high_water(HOST, SPOOL) == 6
            assert p.pipeline.replay_differences == 0

    asyncio.run(main())


def test_a_pipeline_that_a_full_disk_holds_can_still_be_ended_and_acknowledges_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        async with plant(tmp_path) as p:
            await p.pipeline.configure(CONFIG)
        store = await Gated.open(tmp_path / "tocsin.db")
        assert isinstance(store, Gated)
        store.gate, store.waiting = asyncio.Event(), asyncio.Event()
        pipeline = await Pipeline.start(store, None, Clock())
        run = asyncio.create_task(pipeline.run())
        held = Plant(store, pipeline, Clock())
        await held.send(frame(1))
        await store.waiting.wait()
        await held.send(frame(2))
        await asyncio.wait([run], timeout=0.02)
        run.cancel()
        async with asyncio.timeout(5):
            with pytest.raises(asyncio.CancelledError):
                await run
        assert held.acked == []
        await store.close()

    asyncio.run(main())


def test_the_journal_is_kept_from_the_older_snapshot_on_even_when_it_is_over_its_bound(tmp_path: Path) -> None:
    async def main() -> None:
        async with plant(tmp_path, Limits(journal_bytes_max=0)) as p:
            await p.pipeline.configure(CONFIG)
            snapshots = Snapshots(tmp_path / "snapshots")
            for seq in range(1, 31):
                p.clock.now_ms += 30_000
                await p.send(frame(seq))
                await p.until(partial(p.acked.__contains__, seq))
                if p.pipeline._snapshot_task is not None:
                    await p.pipeline._snapshot_task
            ((first,),) = await p.query('SELECT min("offset") FROM journal')
            assert 1 < first <= snapshots.floor() + 1
            assert snapshots.floor() < p.pipeline.status().snapshot_offset

    asyncio.run(main())
