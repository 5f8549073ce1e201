"""Each agent's one place at the collector, whatever streams come and go.

Not a stream and not a table. Invariant: of an agent's streams at most one admits frames; a newer Hello fences the older,
from then on nothing of the older is admitted.
"""

import asyncio
from collections import deque
from collections.abc import Callable

import structlog

from tocsin_collector.ingest.session import Close
from tocsin_collector.ingest.stream import Stream
from tocsin_proto import records

log = structlog.get_logger()

FENCES_MAX = 10  # in a minute. More: two machines with one certificate throw each other out
_FENCES_WINDOW_MS = 60_000


class Pacer:
    """Wakes the streams that have something to acknowledge, together and at most every `interval_s`.

    An Ack costs as much as a frame. One per commit and stream is right for a quiet collector; under load commits come
    faster than an agent needs to know of them.
    """

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._due: set[Stream] = set()
        self._next_s = 0.0

    def due(self, stream: Stream) -> None:
        if not self._due:
            loop = asyncio.get_running_loop()
            loop.call_at(max(loop.time(), self._next_s), self._wake)
        self._due.add(stream)

    def _wake(self) -> None:
        self._next_s = asyncio.get_running_loop().time() + self._interval_s
        due, self._due = self._due, set()
        for stream in due:
            stream.wake()


class Seat:
    """greeted(stream, hello): told when a stream of the agent has taken the seat."""

    def __init__(
        self,
        agent: str,
        pacer: Pacer,
        clock: Callable[[], int],
        greeted: Callable[[Stream, records.Hello], None],
    ) -> None:
        self.agent = agent
        self.stream: Stream | None = None
        self.assignment: records.Assignment | None = None
        self._pacer = pacer
        self._clock = clock
        self._greeted = greeted
        self._fences: deque[int] = deque(maxlen=FENCES_MAX)

    def take(self, stream: Stream, hello: records.Hello) -> Close | None:
        """Make `stream` the agent's one. A Close when it may not be."""
        if self.stream is not stream:
            refusal = self._fence(stream)
            if refusal is not None:
                return refusal
            self.stream = stream
        self._greeted(stream, hello)
        return None

    def _fence(self, stream: Stream) -> Close | None:
        older = self.stream
        if older is None:
            return None
        now_ms = self._clock()
        if len(self._fences) == FENCES_MAX and now_ms - self._fences[0] < _FENCES_WINDOW_MS:
            log.warning("two machines with one certificate", agent=self.agent, old=older.address, new=stream.address)
            return Close(
                "ALREADY_EXISTS",
                f"{FENCES_MAX} streams of {self.agent} have replaced each other within a minute: is its certificate "
                "on two machines? Enrol the second one by itself",
            )
        self._fences.append(now_ms)
        log.info("older stream fenced", agent=self.agent, old=older.address, new=stream.address)
        older.end("ABORTED", "a newer stream of this agent took over")
        return None

    def leave(self, stream: Stream) -> None:
        if self.stream is stream:
            self.stream = None

    def assign(self, assignment: records.Assignment) -> None:
        self.assignment = assignment
        if self.stream is not None:
            self.stream.carry_out(self.stream.session.assign())

    def committed(self, spool_id: bytes, seq: int) -> None:
        """`seq` is durable. The hot path: once per frame."""
        stream = self.stream
        if stream is not None:
            stream.session.committed(spool_id, seq)
            self._pacer.due(stream)
