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

from tocsin_collector.batch import InputItem
from tocsin_collector.core.engine import Engine
from tocsin_collector.core.intake import Admission
from tocsin_collector.core.model import Command, Config, Effect, Entry, FrameIn, IncidentState, Tick
from tocsin_collector.faults import Faults
from tocsin_collector.pipeline import InputRefusedError, Pipeline, PipelineStoppedError
from tocsin_collector.pipeline_status import Limits
from tocsin_collector.store.base import Answer, CorruptDatabaseError, Statements, Transaction
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
            assert p.pipeline.adopt(HOST, SPOOL, 500)  # and must declare its layouts again
            assert p.pipeline.admit(HOST, SPOOL, 499, 498) is Admission.DUPLICATE
            await p.send(frame(500))
            await p.until(lambda: p.acked == [500])
            p.pipeline.declaring(HOST, SPOOL)
            assert not p.pipeline.adopt(HOST, SPOOL, 900)  # known by now: nothing changes
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


class Plain(Exception):
    """Raised by nobody but these tests."""


async def refuse(p: Plant, kind: str, body: bytes | None = None) -> None:
    """From now on the database refuses journal entries of this kind, or those with this body."""
    what = f"NEW.kind = '{kind}'" if body is None else f"NEW.body = x'{body.hex()}'"

    async def operation(connection: Statements) -> None:
        await connection.execute(
            f"CREATE TRIGGER no_{kind} BEFORE INSERT ON journal WHEN {what} BEGIN SELECT RAISE(ABORT, 'no {kind}'); END"
        )

    await p.pipeline.administer(operation)


def test_of_a_transaction_that_the_database_refuses_only_the_input_at_fault_is_put_aside(tmp_path: Path) -> None:
    async def main() -> None:
        async with plant(tmp_path) as p:
            await p.pipeline.configure(CONFIG)
            third = frame(3, 0.95, 0.5)
            await refuse(p, "frame", message(third))
            p.store.gate.clear()
            p.store.waiting.clear()
            await p.send(frame(1))
            await p.store.waiting.wait()
            # One transaction is on its way; these come into the next, and the command into it or the one behind.
            for seq in range(2, 8):
                await p.send(third if seq == 3 else frame(seq, 0.5, 0.95 if seq == 6 else 0.5))
            answers = [asyncio.create_task(p.pipeline.command(Command("comment", "zm", "I-0"))) for _ in range(3)]
            looked = asyncio.create_task(p.query("SELECT count(*) FROM sqlite_schema"))
            p.store.gate.set()
            await p.until(lambda: len(p.acked) == 7)
            assert p.acked == [1, 2, 3, 4, 5, 6, 7]
            assert [answer.error != "" for answer in await asyncio.gather(*answers)] == [True] * 3
            assert await looked
            (letter,) = await p.query("SELECT seq, code, detail, body FROM dead_letter")
            assert letter == (3, "store fault", "IntegrityError: no frame", message(third))
            assert await p.query("SELECT count(*) FROM journal WHERE kind = 'frame'") == [(6,)]
            assert await p.query("SELECT state FROM incident WHERE body LIKE '%/var%'") == [("resolved",)]
            assert await p.query("SELECT count(*) FROM incident") == [(1,)]
            assert p.pipeline.status().engine_faults == 1
            offsets = [offset for (offset,) in await p.query('SELECT "offset" FROM journal ORDER BY "offset"')]
            assert offsets == list(range(offsets[0], offsets[0] + len(offsets)))
        async with plant(tmp_path) as p:
            assert (p.pipeline.high_water(HOST, SPOOL), p.pipeline.replay_differences) == (7, 0)

    asyncio.run(main())


def test_who_waits_for_what_the_database_refuses_hears_of_it_and_the_rest_goes_on(tmp_path: Path) -> None:
    async def main() -> None:
        async with plant(tmp_path) as p:
            await p.pipeline.configure(CONFIG)
            await refuse(p, "command")
            answer = await p.pipeline.command(Command("comment", "zm", "I-0"))
            assert answer.error == "the collector failed on this (store fault): IntegrityError: no command"
            await refuse(p, "config")
            with pytest.raises(InputRefusedError, match="no config"):
                await p.pipeline.configure(CONFIG)
            await refuse(p, "tick")
            p.clock.now_ms += 1000
            await p.send(frame(1))
            await p.until(lambda: p.acked == [1])
            assert p.pipeline.status().engine_faults == 3
            assert await p.query("SELECT count(*) FROM journal WHERE kind = 'command'") == [(0,)]

    asyncio.run(main())


def test_a_fault_that_meets_every_input_ends_the_pipeline_loudly(tmp_path: Path) -> None:
    async def main() -> None:
        store = await SqliteStore.open(tmp_path / "tocsin.db")
        pipeline = await Pipeline.start(store, None, Clock())
        task = asyncio.create_task(pipeline.run())

        async def operation(connection: Statements) -> None:
            await connection.execute("DROP TABLE dead_letter")
            await connection.execute("DROP TABLE spool")

        await pipeline.administer(operation)
        assert pipeline.admit(HOST, SPOOL, 1, 0) is Admission.ACCEPT
        await pipeline.offer_frame(HOST, SPOOL, message(frame(1)), frame(1), lambda seq: None)
        with pytest.raises(sqlite3.OperationalError, match="no such table"):
            await task
        with pytest.raises(PipelineStoppedError):
            await pipeline.offer_pulse(HOST, records.Pulse(records.Clock(1, 1, 1)))
        await store.close()

    asyncio.run(main())


def test_a_database_that_is_found_damaged_ends_the_pipeline_and_puts_nothing_aside(tmp_path: Path) -> None:
    class Damaged(SqliteStore):
        """Its next commit meets pages of nonsense, as SQLite says it."""

        async def _write(self, connection: Any, transaction: Transaction) -> tuple[Answer, ...]:
            error = sqlite3.DatabaseError("database disk image is malformed")
            error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
            raise error

    async def main() -> None:
        store = await Damaged.open(tmp_path / "tocsin.db")
        pipeline = await Pipeline.start(store, None, Clock())
        task = asyncio.create_task(pipeline.run())
        with pytest.raises(CorruptDatabaseError, match="found damaged while in use"):
            await task
        assert pipeline.status().engine_faults == 0
        await store.close()

    asyncio.run(main())


def test_faults_end_the_process_only_when_a_hundred_come_within_an_hour() -> None:
    def one(faults: Faults, now_ms: int) -> None:
        assert faults.put_aside(InputItem(Tick()), Plain("x"), "engine fault", now_ms) is None

    rare = Faults()
    for n in range(500):
        one(rare, n * 40_000)
    assert rare.count == 500
    dense = Faults()
    for n in range(100):
        one(dense, n * 1000)
    with pytest.raises(Plain):
        one(dense, 100_000)


def test_an_agent_whose_declaration_was_put_aside_is_to_come_again_and_declare(tmp_path: Path) -> None:
    async def main() -> None:
        async with plant(tmp_path) as p:
            bereaved: list[str] = []
            p.pipeline.on_lost_layouts(bereaved.append)
            await p.pipeline.configure(CONFIG)
            await refuse(p, "frame", message(frame(1)))
            await p.send(frame(1))  # declares; the next ones do not
            await p.send(frame(2))
            await p.until(lambda: p.acked == [1, 2])
            assert bereaved == [HOST]
            assert p.pipeline.adopt(HOST, SPOOL, 3)
            p.pipeline.declaring(HOST, SPOOL)
            assert not p.pipeline.adopt(HOST, SPOOL, 3)

    asyncio.run(main())


class Moody(Engine):
    """Breaks, in the middle of its work, at whatever it was told."""

    def __init__(self, kind: type) -> None:
        super().__init__()
        self.kind = kind

    def step(self, entry: Entry) -> list[Effect]:
        effects = super().step(entry)
        if isinstance(entry.input, self.kind):
            raise ZeroDivisionError("rate over no time")
        return effects

    def snapshot(self) -> bytes:
        if self.kind is bytes:
            raise ZeroDivisionError("no snapshot")
        return super().snapshot()


def test_a_tick_that_breaks_the_engine_is_counted_and_ends_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        async with plant(tmp_path, engine=Moody(Tick)) as p:
            await p.pipeline.configure(CONFIG)
            p.clock.now_ms += 1000
            await p.send(frame(1))
            await p.until(lambda: p.acked == [1])
            assert p.pipeline.status().engine_faults == 1
            p.clock.now_ms += 1000
            assert (await p.query("SELECT count(*) FROM journal WHERE kind = 'tick'"))[0][0] >= 1

    asyncio.run(main())


def test_a_configuration_that_breaks_the_engine_is_refused_and_the_old_one_stays(tmp_path: Path) -> None:
    async def main() -> None:
        async with plant(tmp_path) as p:
            await p.pipeline.configure(CONFIG)
            p.pipeline.batcher.replace(broken(p), p.pipeline.batcher.offset)
            with pytest.raises(InputRefusedError, match=r"engine fault\): ZeroDivisionError: rate over no time"):
                await p.pipeline.configure(Config(CONFIG.registry, ()))
            await p.send(frame(1, 0.95, 0.5))
            await p.until(lambda: p.acked == [1])
            assert await p.query("SELECT count(*) FROM incident") == [(1,)]

    def broken(p: Plant) -> Engine:
        engine = Moody(Config)
        engine.offset = p.pipeline.batcher.offset
        return engine

    asyncio.run(main())


def test_an_engine_that_cannot_give_a_snapshot_is_tried_again_later_and_holds_nothing_up(tmp_path: Path) -> None:
    async def main() -> None:
        async with plant(tmp_path, engine=Moody(bytes)) as p:
            await p.pipeline.configure(CONFIG)
            for seq in range(1, 5):
                p.clock.now_ms += 1000
                await p.send(frame(seq))
                await p.until(lambda: len(p.acked) == seq)  # noqa: B023 - awaited within the round
            assert p.pipeline.status().engine_faults == 1

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
            assert "input put aside, the engine is rebuilt without it" in [log["event"] for log in logs]
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
