"""One channel's deliveries: reads what is due, sends it in parallel lanes, records what came of it.

Not the order (`lanes.py`), not the policy (`schedule.py`), not the wire (a connector). The invariant: the next notice of a
lane is sent only after the outcome of the one before it is durable; outcomes are made durable together, never one by one.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, TypeVar

import msgspec
import structlog

from tocsin_collector.core.model import Notice
from tocsin_collector.desk import due, schedule
from tocsin_collector.desk.base import Connector, Delivery, Outcome, Verdict
from tocsin_collector.desk.due import DueRow
from tocsin_collector.desk.lanes import Lanes
from tocsin_collector.desk.schedule import Breaker, Pace, Result
from tocsin_collector.store.base import Statements

log = structlog.get_logger(__name__)
T = TypeVar("T")

REST_S_MAX = 5.0  # then the clock is looked at again: it may have been set
LAST_RECORD_S_MAX = 0.5

_NOTICE = msgspec.json.Decoder(Notice)


class Pipeline(Protocol):
    """What deliveries need of the pipeline."""

    async def administer(self, operation: Callable[[Statements], Awaitable[T]]) -> T: ...
    def on_notice(self, callback: Callable[[], None]) -> None: ...


class Reads(Protocol):
    """A connection for reading; its own thread's, or inline."""

    async def whole(self, work: Callable[[Any], Awaitable[T]]) -> T: ...
    async def close(self) -> None: ...


class ChannelStatus(msgspec.Struct, frozen=True):
    """Figures of one channel; counts since the start. waiting: lanes with something to tell, of those in memory."""

    channel: str
    waiting: int
    in_flight: int
    sent: int
    retried: int
    dead: int
    failures_in_row: int
    paused_until_ms: int
    last_error: str


class Worker:
    """`run` is its task; `wake` and `rescan` may be called in the same loop at any time."""

    def __init__(
        self,
        channel: str,
        connector: Connector,
        pipeline: Pipeline,
        *,
        clock: Callable[[], int],
        luck: Callable[[], float],
        pace: Pace,
    ) -> None:
        self.channel = channel
        self.connector = connector
        self._pipeline = pipeline
        self._clock = clock
        self._luck = luck
        self._pace = pace
        self._breaker = Breaker()
        self._lanes = Lanes(pace.lanes_max)
        self._results: list[tuple[DueRow, Result]] = []  # not durable yet; at most one per lane
        self._in_flight = 0
        self._may_start = False
        self._counts = {"sent": 0, "due": 0, "dead": 0}
        self._last_error = ""
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """There may be new rows."""
        self._lanes.has_more = True
        self._wake.set()

    def rescan(self, id: int) -> None:
        """This row has become due again."""
        self._lanes.rescan(id)
        self._wake.set()

    def status(self) -> ChannelStatus:
        return ChannelStatus(
            channel=self.channel,
            waiting=len(self._lanes),
            in_flight=self._in_flight,
            sent=self._counts["sent"],
            retried=self._counts["due"],
            dead=self._counts["dead"],
            failures_in_row=self._breaker.failures,
            paused_until_ms=self._breaker.until_ms if self._breaker.is_open else 0,
            last_error=self._last_error,
        )

    async def run(self, reads: Reads) -> None:
        """Until cancelled. What is not durable then is sent again after the next start, with the same key."""
        self._lanes = Lanes(self._pace.lanes_max)
        self._results = []
        try:
            async with asyncio.TaskGroup() as deliveries:
                self._may_start = True
                try:
                    await self._work(reads, deliveries)
                finally:
                    self._may_start = False
        finally:
            if self._results:
                # Worth a moment: each outcome that is kept saves the receiver a repetition.
                with contextlib.suppress(Exception):
                    async with asyncio.timeout(LAST_RECORD_S_MAX):
                        await self._record()

    async def _work(self, reads: Reads, deliveries: asyncio.TaskGroup) -> None:
        while True:
            await self._record()
            if self._lanes.wants_rows:
                await self._read(reads)
            self._start(deliveries)
            await self._rest()

    async def _record(self) -> None:
        if not self._results:
            return
        results, now_ms = list(self._results), self._clock()
        await self._pipeline.administer(lambda connection: due.record(connection, self.channel, results, now_ms))
        del self._results[: len(results)]
        for row, result in results:
            self._lanes.settle(row, result)

    async def _read(self, reads: Reads) -> None:
        start, limit = self._lanes.begin(), self._pace.page_rows
        rows = await reads.whole(lambda connection: due.read_due(connection, self.channel, start, limit))
        revived = self._lanes.take(rows, is_full=len(rows) == limit)
        if revived:
            await self._revive(revived)

    async def _revive(self, ids: Sequence[int]) -> None:
        await self._pipeline.administer(lambda connection: due.revive(connection, ids))
        log.info("what was given up is tried once more, something new waits behind it", channel=self.channel, ids=ids)
        self._lanes.rescan(min(ids))

    def _start(self, deliveries: asyncio.TaskGroup) -> None:
        if not self._may_start:
            return
        now_ms = self._clock()
        count = schedule.places(self._breaker, self._in_flight, now_ms, self._pace)
        for row in self._lanes.ready(now_ms, count, is_probe=self._breaker.is_open):
            self._in_flight += 1
            deliveries.create_task(self._deliver(row, deliveries), name=f"deliver {row.idempotency_key}")

    async def _deliver(self, row: DueRow, deliveries: asyncio.TaskGroup) -> None:
        try:
            outcome = await self._attempt(row)
        finally:
            self._in_flight -= 1
        now_ms, was_open = self._clock(), self._breaker.is_open
        self._breaker = schedule.observe(self._breaker, outcome, now_ms, self._pace)
        result = schedule.judge(row.attempts, outcome, now_ms, self._luck(), self._pace)
        self._results.append((row, result))
        self._tell(row, outcome, result, now_ms, was_open)
        if was_open and not self._breaker.is_open:
            self._lanes.hurry(now_ms)
        self._wake.set()
        self._start(deliveries)  # a place is free, and need not stay so until the commit

    async def _attempt(self, row: DueRow) -> Outcome:
        try:
            notice = _NOTICE.decode(row.body)
        except msgspec.MsgspecError as error:
            return Outcome(Verdict.PERMANENT, f"the stored notice cannot be read: {error}")
        try:
            return await self.connector.deliver(Delivery(row.idempotency_key, row.attempts + 1, notice))
        except Exception as error:
            log.error("connector failed", channel=self.channel, notice=row.idempotency_key, exc_info=error)
            return Outcome(Verdict.UNCERTAIN, f"the connector failed: {type(error).__name__}")

    async def _rest(self) -> None:
        """Until something is to be done: an outcome or new rows, or a moment that was waited for."""
        self._wake.clear()
        if self._results or self._lanes.wants_rows:
            return
        now_ms = self._clock()
        moment_ms = self._next_ms()
        rest_s = None if moment_ms is None else min(REST_S_MAX, max(0.0, (moment_ms - now_ms) / 1000))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(rest_s):
                await self._wake.wait()

    def _next_ms(self) -> int | None:
        """When the next delivery could start of itself; None: not before one that is on its way has ended."""
        next_due_ms = self._lanes.next_due_ms()
        places = 1 if self._breaker.is_open else self._pace.parallel_max
        if next_due_ms is None or self._in_flight >= places:
            return None
        return self._breaker.until_ms if self._breaker.is_open else max(next_due_ms, self._breaker.until_ms)

    def _tell(self, row: DueRow, outcome: Outcome, result: Result, now_ms: int, was_open: bool) -> None:
        self._counts[result.state] += 1
        if result.state == "sent":
            if was_open:
                log.info("channel takes notices again", channel=self.channel)
            return
        self._last_error = result.error
        if result.state == "dead":
            log.error(
                "notice given up", channel=self.channel, notice=row.idempotency_key, attempts=result.attempts,
                problem=result.error,
            )  # fmt: skip
            return
        log.warning(
            "delivery deferred", channel=self.channel, notice=row.idempotency_key, attempt=result.attempts,
            retry_s=round((result.at_ms - now_ms) / 1000, 1), outcome=outcome.verdict.value, problem=result.error,
        )  # fmt: skip
        if self._breaker.is_open and not was_open:
            log.error("channel fails, paused and tried with one notice at a time", channel=self.channel)
