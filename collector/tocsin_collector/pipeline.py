"""The one path: inputs in order -> engine -> ONE transaction -> acks. The event-loop shell around `batch.py`.

Not a place for decisions: the engine has them, the store has durability. The invariant (law 1): `done` and every answer
leave only after the commit that holds them.

While one transaction is on its way to the disk the next is stepped; never more than one of each.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, cast

import msgspec
import structlog

from tocsin_collector.batch import (
    ITEM_BYTES,
    TICK_MS,
    Batch,
    Batcher,
    Core,
    FrameItem,
    InputItem,
    Item,
    LetterItem,
    OperationItem,
)
from tocsin_collector.core.intake import Admission
from tocsin_collector.core.model import Command, CommandAnswer, Config, PulseIn
from tocsin_collector.recovery import Recovered, recover
from tocsin_collector.store.base import Answer, Mark, Statements, Store
from tocsin_collector.store.snapshots import Snapshots
from tocsin_proto import records

log = structlog.get_logger(__name__)
T = TypeVar("T")

STEP_S_MAX = 0.020  # of stepping, before a batch is closed although more is queued
SLICE_ITEMS = 16  # stepped before the loop may do something else
ENGINE_FAULT = "engine fault"  # code of the dead letter
ENGINE_FAULTS_MAX = 100  # then the process ends: something is wrong with more than one input
USED_BYTES_EVERY = 256  # commits between two looks at the size of the journal


class Limits(msgspec.Struct, frozen=True):
    """queue_*: callers wait beyond these. journal_*: entries older, or beyond so many bytes, are trimmed."""

    queue_items_max: int = 8_192
    queue_bytes_max: int = 32 * 1024 * 1024
    journal_keep_ms: int = 48 * 3_600_000
    journal_bytes_max: int = 8 * 1024**3


class Status(msgspec.Struct, frozen=True):
    """Figures of the pipeline for status and metrics; counts since the start."""

    queue_items: int
    queue_bytes: int
    offset: int
    entries: int
    commits: int
    commit_ms_last: float
    commit_ms_max: float
    trouble: str
    replayed: int
    replay_differences: int
    engine_faults: int
    snapshot_offset: int


class Pipeline:
    """One per collector. `run()` is its task; everything else may be called from the same event loop at any time."""

    def __init__(
        self,
        store: Store,
        engine: Core,
        clock: Callable[[], int],
        *,
        snapshots: Snapshots | None = None,
        marks: list[Mark] | None = None,
        offset: int = 0,
        received_ms: int = 0,
        limits: Limits | None = None,
    ) -> None:
        """`start` fills these in from the store. clock: Unix milliseconds."""
        self.batcher = Batcher(engine, marks or (), offset=offset, received_ms=received_ms)
        self.replayed = 0
        self.replay_differences = 0
        self._store = store
        self._clock = clock
        self._snapshots = snapshots
        self._limits = limits or Limits()
        self._queue: deque[Item] = deque()
        self._queue_bytes = 0
        self._wake = asyncio.Event()  # something came, or a commit has ended
        self._room = asyncio.Event()
        self._room.set()
        self._is_stopping = False
        self._listeners: list[Callable[[], None]] = []
        self._snapshot_task: asyncio.Task[None] | None = None
        self._snapshot_floor = snapshots.floor() if snapshots else 0
        self._is_over_bytes = False
        self._commits = 0
        self._commit_s_last = self._commit_s_max = 0.0
        self._engine_faults = 0
        self._fault: tuple[Item, Exception] | None = None

    @classmethod
    async def recover(cls, store: Store, snapshots: Snapshots | None) -> Recovered:
        return await recover(store, snapshots)

    @classmethod
    async def start(
        cls, store: Store, snapshots: Snapshots | None, clock: Callable[[], int], limits: Limits | None = None
    ) -> "Pipeline":
        """A pipeline that goes on where the store ends. `run()` is still to be started."""
        found = await recover(store, snapshots)
        self = cls(
            store,
            found.engine,
            clock,
            snapshots=snapshots,
            marks=found.marks,
            offset=found.offset,
            received_ms=found.received_ms,
            limits=limits,
        )
        self.replayed, self.replay_differences = found.replayed, found.differences
        return self

    # -------------------------------------------------------------------------------------------------------- inputs

    @property
    def engine(self) -> Core:
        return self.batcher.engine

    def admit(self, agent: str, spool_id: bytes, seq: int, follows: int) -> Admission:
        """Judge a frame. After ACCEPT call `offer_frame` or `dead_letter` at once: both queue it before they wait."""
        return self.batcher.admit(agent, spool_id, seq, follows)

    def adopt(self, agent: str, spool_id: bytes, first_unacked: int) -> None:
        """Call on Hello: a spool this store has never heard of goes on where it is, even when it starts in the middle."""
        self.batcher.adopt(agent, spool_id, first_unacked)

    def high_water(self, agent: str, spool_id: bytes) -> int:
        """Highest admitted sequence number."""
        return self.batcher.high_water(agent, spool_id)

    def committed(self, agent: str, spool_id: bytes) -> int:
        """Highest durable sequence number."""
        return self.batcher.committed(agent, spool_id)

    async def offer_frame(
        self, agent: str, spool_id: bytes, message: bytes, frame: records.Frame, done: Callable[[int], None]
    ) -> None:
        """Queue an admitted frame; returns when there is room for the next. done(seq): it is durable."""
        await self._offer(FrameItem(agent, spool_id, frame, message, done), len(message))

    async def offer_pulse(self, agent: str, pulse: records.Pulse) -> None:
        await self._offer(InputItem(PulseIn(agent, pulse)), 0)

    async def dead_letter(
        self, agent: str, spool_id: bytes, seq: int, code: str, detail: str, raw: bytes, done: Callable[[int], None]
    ) -> None:
        await self._offer(LetterItem(agent, spool_id, seq, code, detail, raw, done), len(raw))

    async def command(self, command: Command) -> CommandAnswer:
        """Returns when the command and what came of it are durable."""
        future: asyncio.Future[CommandAnswer] = asyncio.get_running_loop().create_future()
        await self._offer(InputItem(command, _setter(future)), 0)
        return await future

    async def configure(self, config: Config) -> None:
        """Returns when the configuration is in force and durable."""
        future: asyncio.Future[CommandAnswer] = asyncio.get_running_loop().create_future()
        await self._offer(InputItem(config, _setter(future)), 0)
        await future

    async def administer(self, operation: Callable[[Statements], Awaitable[T]]) -> T:
        """Run `operation` inside the next transaction; returns its result when that is durable, or raises what it raised.

        It may run more than once (a full disk), so it must not do anything but its statements.
        """
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        await self._offer(OperationItem(operation, _setter(future)), 0)
        answer = await future
        if answer.error is not None:
            raise answer.error
        return cast(T, answer.value)

    def on_notice(self, callback: Callable[[], None]) -> None:
        """`callback` is called after each commit that holds a notice."""
        self._listeners.append(callback)

    async def _offer(self, item: Item, size: int) -> None:
        # Queued first, then waited: a caller that is cancelled here leaves nothing admitted behind that is not queued.
        if self._is_stopping:
            raise PipelineStoppedError("the collector is stopping")
        self._queue.append(item)
        self._queue_bytes += size + ITEM_BYTES
        self._wake.set()
        while self._is_crowded:
            self._room.clear()
            await self._room.wait()

    @property
    def _is_crowded(self) -> bool:
        return len(self._queue) > self._limits.queue_items_max or self._queue_bytes > self._limits.queue_bytes_max

    # ---------------------------------------------------------------------------------------------------------- task

    async def run(self) -> None:
        """Until `stop`, or until the store raises: then the process must end, and start again from what is committed."""
        flight: asyncio.Task[None] | None = None
        try:
            while not (self._is_stopping and not self._queue):
                await self._due(flight)
                batch = self.batcher.begin(self._clock())
                await self._fill(batch, flight)
                if self._fault is None:
                    self.batcher.seal(batch)
                if flight is not None:
                    await flight
                flight = asyncio.create_task(self._land(batch), name="commit")
                flight.add_done_callback(lambda _: self._wake.set())
                if self._fault is not None:
                    await flight
                    await self._heal(*self._fault)
                    self._fault = None
            if flight is not None:
                await flight
        finally:
            self._is_stopping = True
            self._room.set()
            if flight is not None and not flight.done():
                # Cancelled, or broken: a commit that a full disk holds back must not hold us too. It is not acknowledged.
                flight.cancel()
                await asyncio.gather(flight, return_exceptions=True)
            if self._snapshot_task is not None:
                await self._snapshot_task

    def stop(self) -> None:
        """Take nothing more; `run` returns when all that is queued is durable."""
        self._is_stopping = True
        self._wake.set()

    async def _due(self, flight: asyncio.Task[None] | None) -> None:
        """Return when something is queued, a tick is due, or it is time to stop. Raises what the commit before raised."""
        while not (self._queue or self._is_stopping):
            if flight is not None and flight.done():
                flight.result()
            now_ms = self._clock()
            if self.batcher.is_tick_due(now_ms):
                return
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout((TICK_MS - now_ms % TICK_MS) / 1000):
                    await self._wake.wait()

    async def _fill(self, batch: Batch, flight: asyncio.Task[None] | None) -> None:
        """Step what is queued, and what comes while the commit before it is on its way."""
        loop = asyncio.get_running_loop()
        end = loop.time() + STEP_S_MAX
        while not batch.is_full and self._fault is None:
            self.batcher.restamp(batch, self._clock())
            for _ in range(SLICE_ITEMS):
                if not self._queue or batch.is_full or self._fault is not None:
                    break
                self._take(batch)
            is_free = flight is None or flight.done()
            if is_free and (not self._queue or loop.time() >= end):
                return
            if self._queue:
                await asyncio.sleep(0)
            else:
                self._wake.clear()
                await self._wake.wait()

    def _take(self, batch: Batch) -> None:
        item = self._queue.popleft()
        self._queue_bytes -= _size(item)
        if not self._is_crowded:
            self._room.set()
        try:
            self.batcher.take(batch, item)
        except Exception as exc:
            self._fault = (item, exc)

    async def _heal(self, item: Item, exc: Exception) -> None:
        """One input has broken the engine: put it aside, and rebuild the engine from what is committed without it.

        Ending the process instead would meet the same frame again after each restart, for ever.
        """
        self._engine_faults += 1
        detail = f"{type(exc).__name__}: {exc}"
        log.error("input broke the engine, put aside; rebuilding", fault=detail, exc_info=exc)
        if self._engine_faults > ENGINE_FAULTS_MAX or isinstance(item, OperationItem | LetterItem):
            raise exc
        if isinstance(item, FrameItem):
            letter = LetterItem(
                item.agent, item.spool_id, item.frame.seq, ENGINE_FAULT, detail, item.message, item.done
            )
            self._requeue(letter)
        elif item.answer is not None and isinstance(item.input, Command):
            item.answer(CommandAnswer(item.input.incident, f"the engine failed on this: {detail}"))
        elif not isinstance(item.input, PulseIn):
            raise exc
        self.batcher.replace((await recover(self._store, self._snapshots)).engine)

    def _requeue(self, item: Item) -> None:
        self._queue.appendleft(item)
        self._queue_bytes += _size(item)

    async def _land(self, batch: Batch) -> None:
        transaction = batch.transaction(self._snapshot_floor, self._trim_before(batch.received_ms))
        if transaction.is_empty:
            return
        loop = asyncio.get_running_loop()
        began = loop.time()
        answers = await self._store.commit(transaction)
        self._commit_s_last = loop.time() - began
        self._commit_s_max = max(self._commit_s_max, self._commit_s_last)
        self._commits += 1
        self.batcher.finish(batch, answers)
        if batch.notices:
            for listener in self._listeners:
                listener()
        if batch.snapshot is not None:
            self._keep(*batch.snapshot)
        await self._store.upkeep()
        if self._commits % USED_BYTES_EVERY == 1:
            self._is_over_bytes = await self._store.used_bytes() > self._limits.journal_bytes_max

    def _trim_before(self, now_ms: int) -> int:
        return now_ms if self._is_over_bytes else now_ms - self._limits.journal_keep_ms

    def _keep(self, offset: int, data: bytes) -> None:
        """Write a snapshot beside the commits. One at a time; one that comes too early is dropped, another follows."""
        if self._snapshots is None or (self._snapshot_task is not None and not self._snapshot_task.done()):
            return
        self._snapshot_task = asyncio.create_task(self._write_snapshot(self._snapshots, offset, data), name="snapshot")

    async def _write_snapshot(self, snapshots: Snapshots, offset: int, data: bytes) -> None:
        try:
            await asyncio.to_thread(snapshots.write, offset, data)
            self._snapshot_floor = snapshots.floor()
        except OSError as exc:
            log.error("snapshot not written, the journal is kept longer", problem=str(exc))

    # -------------------------------------------------------------------------------------------------------- figures

    def status(self) -> Status:
        return Status(
            queue_items=len(self._queue),
            queue_bytes=self._queue_bytes,
            offset=self.batcher.offset,
            entries=self.batcher.entries,
            commits=self._commits,
            commit_ms_last=self._commit_s_last * 1000,
            commit_ms_max=self._commit_s_max * 1000,
            trouble=self._store.trouble,
            replayed=self.replayed,
            replay_differences=self.replay_differences,
            engine_faults=self._engine_faults,
            snapshot_offset=self.batcher.snapshot_offset,
        )


class PipelineStoppedError(Exception):
    """Nothing more is taken: the collector is stopping, or its store has failed."""


def _setter(future: asyncio.Future[Any]) -> Callable[[Any], None]:
    def answer(value: Any) -> None:
        if not future.done():  # whoever asked may have gone
            future.set_result(value)

    return answer


def _size(item: Item) -> int:
    if type(item) is FrameItem:
        return len(item.message) + ITEM_BYTES
    return (len(item.body) if type(item) is LetterItem else 0) + ITEM_BYTES
