"""The one path: inputs in order -> engine -> ONE transaction -> acks. The event-loop shell around `batch.py`.

Not a place for decisions: the engine has them, the store has durability. The invariant (law 1): `done` and every answer
leave only after the commit that holds them.

While one transaction is on its way to the disk the next is stepped; never more than one of each. When the store refuses one,
the engine goes back to what is committed, and what both held is taken again, each input in a transaction of its own.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, cast

import structlog

from tocsin_collector.batch import (
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
from tocsin_collector.faults import ENGINE_FAULT, STORE_FAULT, Faults
from tocsin_collector.inbox import Inbox
from tocsin_collector.pipeline_status import Limits, Status
from tocsin_collector.recovery import Recovered, recover
from tocsin_collector.store.base import Answer, Mark, Statements, Store, StoreError
from tocsin_collector.store.snapshots import Snapshots
from tocsin_proto import records

log = structlog.get_logger(__name__)
T = TypeVar("T")

STEP_S_MAX = 0.020  # of stepping, before a batch is closed although more is queued
SLICE_ITEMS = 64  # stepped before the loop may do something else: some milliseconds; fewer cost more turns of the loop
USED_BYTES_EVERY = 256  # commits between two looks at the size of the journal


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
        self._inbox = Inbox(self._limits.queue_items_max, self._limits.queue_bytes_max)
        self._wake = asyncio.Event()  # something came, or a commit has ended
        self._is_stopping = False
        self._listeners: list[Callable[[], None]] = []
        self._bereaved: list[Callable[[str], object]] = []
        self._snapshot_task: asyncio.Task[None] | None = None
        self._snapshot_floor = snapshots.floor() if snapshots else 0
        self._is_over_bytes = False
        self._commits = 0
        self._commit_s_last = self._commit_s_max = 0.0
        self._faults = Faults()
        self._fault: tuple[Item, Exception] | None = None  # the engine failed on this
        self._refused: tuple[Batch, Exception] | None = None  # the store failed on this
        self._alone = 0  # so many items are still to be taken each in a transaction of its own

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
        """Judge a frame. After ACCEPT it has to be queued before anything is waited for: what is admitted and never queued
        would be taken for a repeat when it comes again."""
        return self.batcher.admit(agent, spool_id, seq, follows)

    def adopt(self, agent: str, spool_id: bytes, first_unacked: int) -> bool:
        """Call on Hello: a spool this store has never heard of goes on where it is, even when it starts in the middle.

        True: the agent must declare its layouts again, until `declaring` says that it has been told.
        """
        return self.batcher.adopt(agent, spool_id, first_unacked)

    def declaring(self, agent: str, spool_id: bytes) -> None:
        """The agent knows that it has to declare its layouts again."""
        self.batcher.declaring(agent, spool_id)

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
        self.take_frame(agent, spool_id, message, frame, done)
        await self.room()

    def take_frame(
        self, agent: str, spool_id: bytes, message: bytes, frame: records.Frame, done: Callable[[int], None]
    ) -> None:
        """Queue an admitted frame at once; the caller waits for `room` after all that it has admitted."""
        self._take_in(FrameItem(agent, spool_id, frame, message, done))

    def take_letter(
        self, agent: str, spool_id: bytes, seq: int, code: str, detail: str, raw: bytes, done: Callable[[int], None]
    ) -> None:
        """The same for a frame that cannot be read."""
        self._take_in(LetterItem(agent, spool_id, seq, code, detail, raw, done))

    async def room(self) -> None:
        """Return when there is room for another input."""
        await self._inbox.room()

    async def offer_pulse(self, agent: str, pulse: records.Pulse) -> None:
        await self._offer(InputItem(PulseIn(agent, pulse)))

    async def dead_letter(
        self, agent: str, spool_id: bytes, seq: int, code: str, detail: str, raw: bytes, done: Callable[[int], None]
    ) -> None:
        self.take_letter(agent, spool_id, seq, code, detail, raw, done)
        await self.room()

    async def command(self, command: Command) -> CommandAnswer:
        """Returns when the command and what came of it are durable."""
        future: asyncio.Future[CommandAnswer] = asyncio.get_running_loop().create_future()
        await self._offer(InputItem(command, _setter(future)))
        return await future

    async def configure(self, config: Config) -> None:
        """Returns when the configuration is in force and durable. InputRefusedError: it is not, and the old one is."""
        future: asyncio.Future[CommandAnswer] = asyncio.get_running_loop().create_future()
        await self._offer(InputItem(config, _setter(future)))
        answer = await future
        if answer.error:
            raise InputRefusedError(answer.error)

    async def administer(self, operation: Callable[[Statements], Awaitable[T]]) -> T:
        """Run `operation` inside the next transaction; returns its result when that is durable, or raises what it raised.

        It may run more than once (a full disk), so it must not do anything but its statements.
        """
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        await self._offer(OperationItem(operation, _setter(future)))
        answer = await future
        if answer.error is not None:
            raise answer.error
        return cast(T, answer.value)

    def on_lost_layouts(self, callback: Callable[[str], object]) -> None:
        """`callback` is called with an agent whose declarations were put aside: it must come again to hear of it."""
        self._bereaved.append(callback)

    def on_notice(self, callback: Callable[[], None]) -> None:
        """`callback` is called after each commit that holds a notice."""
        self._listeners.append(callback)

    async def _offer(self, item: Item) -> None:
        self._take_in(item)
        await self._inbox.room()

    def _take_in(self, item: Item) -> None:
        if self._is_stopping:
            raise PipelineStoppedError("the collector is stopping")
        self._inbox.add(item)
        self._wake.set()

    # ---------------------------------------------------------------------------------------------------------- task

    async def run(self) -> None:
        """Until `stop`, or until too much fails: then the process must end, and start again from what is committed."""
        flight: asyncio.Task[None] | None = None
        try:
            while True:
                await self._due(flight)
                if self._is_stopping and not self._inbox:
                    if flight is not None:
                        await flight
                        flight = None
                    if self._refused is None:
                        return
                batch = self._begin()
                await self._fill(batch, flight)
                self._seal(batch)
                if flight is not None:
                    await flight
                    flight = None
                if self._refused is None:
                    flight = asyncio.create_task(self._land(batch), name="commit")
                    flight.add_done_callback(lambda _: self._wake.set())
                    if self._fault is not None or self._alone:
                        await flight
                        flight = None
                if self._refused is not None:
                    await self._retreat(batch)
                elif self._fault is not None:
                    await self._heal()
        finally:
            self._is_stopping = True
            self._inbox.close()
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
        """Return when something is queued or to be taken again, a tick is due, or it is time to stop.

        Raises what the commit before raised.
        """
        while not (self._inbox or self._is_stopping):
            if flight is not None and flight.done():
                flight.result()
            if self._refused is not None:
                return
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
                if not self._inbox or batch.is_full or self._fault is not None:
                    break
                self._take(batch, self._next())
            is_free = flight is None or flight.done()
            if is_free and (not self._inbox or loop.time() >= end):
                return
            if self._inbox:
                await asyncio.sleep(0)
            else:
                self._wake.clear()
                await self._wake.wait()

    def _begin(self) -> Batch:
        now_ms = self._clock()
        batch = self.batcher.open(now_ms, 1) if self._alone else self.batcher.open(now_ms)
        if self.batcher.is_tick_due(now_ms):
            self._take(batch, self.batcher.tick())
        return batch

    def _next(self) -> Item:
        self._alone = max(0, self._alone - 1)
        return self._inbox.next()

    def _take(self, batch: Batch, item: Item) -> None:
        try:
            self.batcher.take(batch, item)
        except Exception as exc:
            self._fault = (item, exc)

    def _seal(self, batch: Batch) -> None:
        if self._fault is not None:
            return  # an engine in the middle of something has neither values nor a snapshot to give
        try:
            self.batcher.seal(batch)
        except Exception as exc:
            self._faults.count += 1
            log.error("newest values or snapshot not taken", exc_info=exc)

    # ------------------------------------------------------------------------------------------------ what goes wrong

    async def _heal(self) -> None:
        """The engine failed on one input: rebuild it from what is committed, without it. Nothing is on its way."""
        assert self._fault is not None
        item, exc = self._fault
        self._fault = None
        self._inbox.put_back(self._put_aside(item, exc, ENGINE_FAULT))
        await self._rebuild(self.batcher.offset)

    async def _retreat(self, newest: Batch) -> None:
        """The store refused a transaction: take what it held again, one by one, and what `newest` was stepped upon it.

        One that held a single input has found the one at fault.
        """
        assert self._refused is not None
        failed, exc = self._refused
        self._refused = None
        if not failed.items:
            raise exc
        items = list(failed.items)
        if len(items) == 1:
            items = self._put_aside(items[0], exc, STORE_FAULT)
        else:
            log.error("store refused a transaction, its inputs are taken one by one", inputs=len(items), exc_info=exc)
        if newest is not failed:
            items += newest.items
        if self._fault is not None:
            items.append(self._fault[0])
            self._fault = None
        self._inbox.put_back(items)
        self._alone += len(items)
        await self._rebuild(failed.base)

    def _put_aside(self, item: Item, exc: Exception, code: str) -> list[Item]:
        letter = self._faults.put_aside(item, exc, code, self._clock())
        if type(item) is FrameItem and item.frame.layouts:
            self.batcher.lose_layouts(item.agent, item.spool_id)
            for tell in self._bereaved:
                tell(item.agent)
        return [letter] if letter else []

    async def _rebuild(self, base: int) -> None:
        found = await recover(self._store, self._snapshots)
        self.batcher.replace(found.engine, base)

    async def _land(self, batch: Batch) -> None:
        transaction = batch.transaction(self._snapshot_floor, self._trim_before(batch.received_ms))
        if transaction.is_empty:
            return
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            answers = await self._store.commit(transaction)
        except StoreError:
            raise
        except Exception as exc:
            self._refused = (batch, exc)
            return
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
            queue_items=len(self._inbox),
            queue_bytes=self._inbox.bytes,
            offset=self.batcher.offset,
            entries=self.batcher.entries,
            commits=self._commits,
            commit_ms_last=self._commit_s_last * 1000,
            commit_ms_max=self._commit_s_max * 1000,
            trouble=self._store.trouble,
            replayed=self.replayed,
            replay_differences=self.replay_differences,
            engine_faults=self._faults.count,
            snapshot_offset=self.batcher.snapshot_offset,
        )


class InputRefusedError(Exception):
    """The engine or the store failed on an input, which was put aside: nothing has changed."""


class PipelineStoppedError(Exception):
    """Nothing more is taken: the collector is stopping, or its store has failed."""


def _setter(future: asyncio.Future[Any]) -> Callable[[Any], None]:
    def answer(value: Any) -> None:
        if not future.done():  # whoever asked may have gone
            future.set_result(value)

    return answer
