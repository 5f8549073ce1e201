"""An outbox on a real pipeline and a real database, and a channel that does as it is told.

Inline connections and virtual time: minutes of retries take no time, and a seed reproduces. `crash` leaves the file as a
killed process would; `open` goes on from it.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from tocsin_collector.core.model import Incident, IncidentState, Notice, Severity
from tocsin_collector.desk.base import Delivery, Outcome, Verdict
from tocsin_collector.desk.outbox import Outbox
from tocsin_collector.desk.schedule import Pace
from tocsin_collector.pipeline import Pipeline
from tocsin_collector.store import effects, inline
from tocsin_collector.store.inline import InlineConnection, open_raw
from tocsin_collector.store.read import open_readonly
from tocsin_collector.store.sqlite import Connector, SqliteStore

T = TypeVar("T")

START_MS = 1_800_000_000_000
OK = Outcome(Verdict.OK)
RETRY = Outcome(Verdict.RETRY, "busy")
UNCERTAIN = Outcome(Verdict.UNCERTAIN, "no answer")
PERMANENT = Outcome(Verdict.PERMANENT, "HTTP 422")


def clock() -> int:
    return START_MS + round(asyncio.get_running_loop().time() * 1000)


def notice(ident: str, ordinal: int, kind: str, key: str = "", at_ms: int = START_MS) -> Notice:
    state = IncidentState.RESOLVED if kind == "resolved" else IncidentState.OPEN
    incident = Incident(
        ident, key or f"disk-full/{ident}", "disk-full", "edge-1", Severity.MAJOR, state, at_ms, at_ms, at_ms,
        says="{mount} on {device} is {value} full", facts={"mount": "/", "value": 0.932}, metric="disk.used_ratio",
        notices=ordinal + 1,
    )  # fmt: skip
    return Notice(ident, ordinal, kind, at_ms, incident)


class Channel:
    """A connector that asks `answer` what becomes of each attempt. took: what it took, in order, repeated or not."""

    def __init__(self, answer: Callable[[Delivery], Outcome] = lambda delivery: OK, takes_s: float = 0.01) -> None:
        self.answer = answer
        self.takes_s = takes_s
        self.attempts: list[Delivery] = []
        self.took: list[Notice] = []
        self.at_once = self.at_once_max = 0
        self.has_taken = asyncio.Event()

    async def deliver(self, delivery: Delivery) -> Outcome:
        self.attempts.append(delivery)
        self.at_once += 1
        self.at_once_max = max(self.at_once, self.at_once_max)
        try:
            outcome = self.answer(delivery)
            # Of what was not refused the receiver may have all: it takes the uncertain ones, the worst case.
            if outcome.verdict in (Verdict.OK, Verdict.UNCERTAIN):
                self.took.append(delivery.notice)
                self.has_taken.set()
            await asyncio.sleep(self.takes_s)
            return outcome
        finally:
            self.at_once -= 1

    async def close(self) -> None:
        pass

    def keys(self) -> list[str]:
        return [delivery.idempotency_key for delivery in self.attempts]


class SlowConnection(InlineConnection):
    """A disk that takes its time: a crash in the middle of a commit finds nothing of it done."""

    commit_s = 0.02

    async def whole(self, work: Callable[[InlineConnection], Awaitable[T]]) -> T:
        await asyncio.sleep(self.commit_s)
        return await work(self)


class Rig:
    """async with Rig(path, desk=Channel()) as rig: await rig.write(notice(...)); await rig.settle()"""

    def __init__(
        self,
        path: Path,
        *,
        pace: Pace | None = None,
        luck: Callable[[], float] = lambda: 0.5,
        connect: Connector = inline.connect,
        **channels: Channel,
    ):
        self.path = path
        self.channels = channels
        self._pace = pace
        self._luck = luck
        self._connect = connect
        self._offset = 1 << 40  # beyond whatever the journal reaches

    async def __aenter__(self) -> "Rig":
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def open(self) -> None:
        self.store = await SqliteStore.open(self.path, connect=self._connect, channels=tuple(self.channels))
        self.pipeline = await Pipeline.start(self.store, None, clock)
        self.outbox = Outbox(
            self.pipeline, self.path, self.channels, clock=clock, luck=self._luck, pace=self._pace, connect=_reads
        )
        self._running = asyncio.create_task(self.pipeline.run())
        self._delivering = asyncio.create_task(self.outbox.run())

    async def close(self) -> None:
        await _cancel(self._delivering)
        self.pipeline.stop()
        await self._running
        await self.store.close()

    async def crash(self) -> None:
        """The process is gone: nothing that was not committed stays, and nothing is said any more."""
        await self.store.abandon()
        await _cancel(self._delivering)
        await _cancel(self._running)

    async def write(self, *notices: Notice) -> None:
        """As the store writes them with their incidents."""
        await self.pipeline.administer(lambda connection: self._insert(connection, notices))
        self.outbox.wake()

    async def _insert(self, connection: Any, notices: tuple[Notice, ...]) -> None:
        self._offset += 1
        outcome = effects.Outcome(self._offset, clock(), notices, b"")
        await effects.write_outcomes(connection, [outcome], tuple(self.channels))

    async def settle(self, seconds: float = 3600.0) -> None:
        """Until nothing is due any more; AssertionError when that takes longer (virtual time)."""
        async with asyncio.timeout(seconds):
            while await self.count("state = 'due'"):  # noqa: ASYNC110 - only the database knows
                await asyncio.sleep(0.05)

    async def count(self, where: str) -> int:
        ((count,),) = await self.rows(f"SELECT count(*) FROM outbox WHERE {where}")
        return int(count)

    async def rows(self, sql: str) -> list[Any]:
        connection = open_readonly(self.path)
        try:
            found: list[Any] = connection.execute(sql).fetchall()
            return found
        finally:
            connection.close()


async def slow(path: Path) -> SlowConnection:
    return SlowConnection(open_raw(path))


async def _reads(path: Path) -> InlineConnection:
    return InlineConnection(open_readonly(path))


async def _cancel(task: "asyncio.Task[None]") -> None:
    task.cancel()
    with suppress(asyncio.CancelledError, Exception):
        await task
