"""One RPC of one agent: the shell around `Session` that reads, offers and writes.

Two tasks: the RPC's own writes and ends it, its reader reads and offers. Not the judge of who the agent is (`door`) nor
of what it sends (`session`).

Invariant: between the admission of a frame and its place in the pipeline's queue nothing is awaited, so that no stream
can end in between (a frame that moved the mark and was then lost would be acknowledged by the next one).
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

import grpc
import structlog
from grpc import aio

from tocsin_collector.ingest.roster import Peer
from tocsin_collector.ingest.session import (
    Action,
    Close,
    DeadLetter,
    Gate,
    Greeted,
    OfferFrame,
    OfferPulse,
    Report,
    Send,
    Session,
)
from tocsin_collector.store.base import Statements
from tocsin_proto import records
from tocsin_proto.codec import encode_collector

log = structlog.get_logger()
T = TypeVar("T")

Context = aio.ServicerContext[bytes, bytes]
Done = Callable[[int], None]

_OUTBOX_MAX = 64  # messages that the agent has not read; beyond it the agent is not read either
_ABORT_AFTER_S = 1.0  # an RPC that cannot be ended in order (its peer reads nothing) is cut off


class Pipeline(Gate, Protocol):
    """What ingest needs of the one path. `take_*` queue at once; `room` is waited for after all of a message is queued."""

    def take_frame(self, agent: str, spool_id: bytes, message: bytes, frame: records.Frame, done: Done) -> None: ...
    def take_letter(
        self, agent: str, spool_id: bytes, seq: int, code: str, detail: str, raw: bytes, done: Done
    ) -> None: ...
    async def room(self) -> None: ...
    async def offer_pulse(self, agent: str, pulse: records.Pulse) -> None: ...
    def on_lost_layouts(self, callback: Callable[[str], object]) -> None: ...
    async def administer(self, operation: Callable[[Statements], Awaitable[T]]) -> T: ...


class Seat(Protocol):
    """The agent's one place at the collector; streams come and go."""

    def take(self, stream: "Stream", hello: records.Hello) -> Close | None: ...
    def leave(self, stream: "Stream") -> None: ...
    def committed(self, spool_id: bytes, seq: int) -> None: ...


class Stream:
    def __init__(self, peer: Peer, address: str, session: Session, seat: Seat, pipeline: Pipeline, now_ms: int) -> None:
        self.peer = peer
        self.address = address
        self.session = session
        self.connected_ms = now_ms
        self.report: records.AssignmentReport | None = None
        self._seat = seat
        self._pipeline = pipeline
        self._outbox: deque[records.CollectorMessage] = deque()
        self._wake = asyncio.Event()
        self._room = asyncio.Event()  # something was committed, or written
        self._end: Close | None = None
        self._is_draining = False
        self._rpc: asyncio.Task[Any] | None = None
        self._done: tuple[bytes, Done] = (b"", partial(seat.committed, b""))

    async def serve(self, context: Context, clock: Callable[[], int]) -> None:
        """The life of the RPC."""
        self._rpc = asyncio.current_task()
        reader = asyncio.create_task(self._read(context, clock), name=f"reader {self.session.agent}")
        try:
            await self._write(context)
        finally:
            self.session.is_over = True
            self._seat.leave(self)
            reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reader

    # ------------------------------------------------------------------------------------- what others ask of it

    def end(self, code: str, reason: str) -> None:
        """Admit nothing more; say what is still to be said; close. A later call changes nothing."""
        self.session.is_over = True
        if self._end is not None:
            return
        self._end = Close(code, reason)
        self._wake.set()
        if self._rpc is not None:
            # A peer that reads nothing cannot be told: it is cut off.
            asyncio.get_running_loop().call_later(_ABORT_AFTER_S, self._rpc.cancel)

    def drain(self, reconnect_after_ms: int) -> None:
        """Admit nothing more, but go on acknowledging until `end`."""
        self.session.is_over = self._is_draining = True
        self.send(records.Drain(reconnect_after_ms))

    async def settled(self) -> None:
        """Return when nothing that was admitted is still on its way to the disk."""
        while self.session.in_flight_bytes and self._end is None:
            self._room.clear()
            await self._room.wait()

    def wake(self) -> None:
        """Something is due: Acks, or room to read on."""
        self._wake.set()
        self._room.set()

    def send(self, message: records.CollectorMessage) -> None:
        self._outbox.append(message)
        self._wake.set()

    def carry_out(self, actions: Sequence[Action]) -> None:
        """Actions that need no pipeline."""
        for action in actions:
            if isinstance(action, Send):
                self.send(action.message)
            elif isinstance(action, Close):
                self.end(action.code, action.reason)
            elif isinstance(action, Report):
                self.report = action.report

    # ----------------------------------------------------------------------------------------------------- reading

    async def _read(self, context: Context, clock: Callable[[], int]) -> None:
        session, room = self.session, self._pipeline.room
        try:
            while not session.is_over:
                raw = await context.read()
                if raw is aio.EOF:  # type: ignore[attr-defined]
                    self.end("OK", "")
                    break
                actions = session.received(raw, clock())
                # All that was admitted is queued before anything is waited for, whatever ends this task in between.
                for action in self._queued(actions):
                    if not await self._offer(action):
                        break
                await room()
                if not actions and session.is_due:
                    self._wake.set()  # repeats are acknowledged at once: their commit has been
                while not session.is_over and (not session.has_credit or len(self._outbox) > _OUTBOX_MAX):
                    self._room.clear()
                    await self._room.wait()
        except (asyncio.CancelledError, aio.AbortError, aio.UsageError):
            # In one of these ways a read says that the RPC is finished, or this task that it is not wanted any more.
            pass
        except Exception:
            log.exception("stream broke", agent=session.agent)
            self.end("UNAVAILABLE", "the collector failed; it is in its log")
        finally:
            if not self._is_draining:
                self.end("CANCELLED", "the stream has ended")

    def _queued(self, actions: Sequence[Action]) -> Sequence[Action]:
        """Queue what was admitted, frames and dead letters, in order; returns the actions that are left."""
        agent, take_frame = self.session.agent, self._pipeline.take_frame
        left: list[Action] = []
        for action in actions:
            if type(action) is OfferFrame:  # nearly always: by the shortest way
                spool_id, frame, raw = action
                take_frame(agent, spool_id, raw, frame, self._when_done(spool_id))
            elif isinstance(action, DeadLetter):
                log.warning(
                    "message kept as a dead letter", agent=agent, seq=action.seq, code=action.code, why=action.detail
                )
                done = self._when_done(action.spool_id)
                self._pipeline.take_letter(
                    agent, action.spool_id, action.seq, action.code, action.detail, action.raw, done
                )
            else:
                left.append(action)
        return left

    async def _offer(self, action: Action) -> bool:
        """False: the stream was turned away, the rest is not to be done."""
        agent = self.session.agent
        if isinstance(action, OfferPulse):
            await self._pipeline.offer_pulse(agent, action.pulse)
        elif isinstance(action, Greeted):
            refusal = self._seat.take(self, action.hello)
            if refusal is not None:
                self.end(refusal.code, refusal.reason)
                return False
        else:
            self.carry_out((action,))
        return True

    def _when_done(self, spool_id: bytes) -> Done:
        if self._done[0] != spool_id:
            self._done = (spool_id, partial(self._seat.committed, spool_id))
        return self._done[1]

    # ----------------------------------------------------------------------------------------------------- writing

    async def _write(self, context: Context) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._outbox or self.session.is_due:
                # What is queued first: an Ack of the new spool must not overtake the Welcome that names it.
                for message in (self._outbox.popleft(),) if self._outbox else self.session.flush():
                    await context.write(encode_collector(message))
            if len(self._outbox) <= _OUTBOX_MAX:
                self._room.set()
            if self._end is not None:
                break
        if self._end.code != "OK":
            await context.abort(grpc.StatusCode[self._end.code], self._end.reason)
