"""What the agent says next on its stream: the whole protocol of the agent's side, and nothing else.

Not the connection (`uplink`): no I/O but the spool's, no clock, no luck. Invariant: a frame leaves only with `follows`
at or below what the collector holds once all that was sent before has arrived, so that every hole is told by a gap.

The shell calls `connected`, then `received` for each message and `wake` after each of these, after each appended frame
and at the latest in `wake_in_ms`, until it returns nothing; and `disconnected` at the end of the stream.
"""

from collections import deque
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final, NamedTuple

import structlog
from msgspec.structs import replace

from tocsin_agent.generation import Generation
from tocsin_agent.redeclare import Redeclaration, declared_before, declared_in
from tocsin_agent.remains import entry_of, hole, joined
from tocsin_agent.segments import Entry
from tocsin_agent.spool import Spool
from tocsin_agent.wishes import Counters, Deliver, Facts, Reconnect, Send, Stop, Wish
from tocsin_proto.codec import BUNDLE_FRAMES_MAX, WireError, bundle, decode_frame, encode_agent, wrap_frame
from tocsin_proto.records import (
    CREDIT_BYTES,
    PROTOCOL_MAX,
    PROTOCOL_MIN,
    Ack,
    Assignment,
    AssignmentReport,
    Clock,
    CollectorMessage,
    Credit,
    Drain,
    Gap,
    Hello,
    Nack,
    ProbeAnswer,
    ProbeRequest,
    Pulse,
    Reject,
    Revoked,
    Welcome,
)

PULSE_EVERY_MS: Final = 10_000
WELCOME_WITHIN_MS: Final = 30_000
ANSWER_WITHIN_MS: Final = 120_000  # with frames in flight; keepalive has found a dead connection long before
CHUNK_BYTES: Final = 64 * 1024  # of frames in one wake, so that a pulse never waits behind more
NACK_EVERY_MS: Final = 1_000  # one gap, several frames in flight behind it: several nacks, one rewind
NACKS_MAX: Final = 8  # without an ack in between
SAYINGS_MAX: Final = 16
RECONNECT_MS_MAX: Final = 600_000

log = structlog.get_logger()


class _Flight(NamedTuple):
    seq: int
    bytes: int


class _State(Enum):
    CLOSED = auto()
    GREETING = auto()
    OPEN = auto()


@dataclass(slots=True)
class _Session:
    """One stream: nothing of it outlives a disconnect."""

    generation: Generation
    since_ms: int  # monotonic, like all times here
    state: _State = _State.GREETING
    credit_bytes: int = CREDIT_BYTES
    cursor: int = 1  # next number to send
    behind: int = 0  # what the collector holds once all that was sent has arrived
    behind_ms: int | None = None  # Unix time of that record
    flights: deque[_Flight] = field(default_factory=deque)
    flight_bytes: int = 0
    owed: list[Gap] = field(default_factory=list)
    heard_ms: int = 0
    pulsed_ms: int | None = None
    nacked_ms: int | None = None
    nacked_at: int = 0
    nacks: int = 0


class Link:
    def __init__(self, spool: Spool, facts: Facts) -> None:
        self.spool = spool
        self.facts = facts
        self.assignment_etag = ""
        self.counters = Counters()
        self.agent = ""  # who the collector takes us for
        self.collector_ahead_ms = 0  # the collector's clock minus ours, when it last welcomed us
        self._session: _Session | None = None
        self._sayings: deque[bytes] = deque(maxlen=SAYINGS_MAX)
        # Frames in flight when a stream died in a way that one of them may have caused go one at a time.
        self._suspect: tuple[bytes, int] = (b"", 0)
        self._redeclaration = Redeclaration()

    @property
    def is_open(self) -> bool:
        return self._session is not None and self._session.state is _State.OPEN

    @property
    def flight_bytes(self) -> int:
        return self._session.flight_bytes if self._session else 0

    def say(self, message: AssignmentReport | ProbeAnswer) -> None:
        """Out of sequence, on this stream or the next; beyond SAYINGS_MAX the oldest is forgotten."""
        try:
            self._sayings.append(encode_agent(message))
        except WireError as exc:
            log.error("message refused, it would break the wire's contract", problem=str(exc))

    def connected(self, now: Clock) -> list[Wish]:
        generation = self.spool.oldest
        self._session = _Session(generation, since_ms=now.mono_ms, heard_ms=now.mono_ms)
        hello = Hello(
            protocol_min=PROTOCOL_MIN,
            protocol_max=PROTOCOL_MAX,
            version=self.facts.version,
            spool_id=generation.spool_id,
            first_unacked=generation.first_unacked,
            last_seq=generation.last_seq,
            clock=now,
            capabilities=self.facts.capabilities,
            assignment_etag=self.assignment_etag,
            hostname=self.facts.hostname,
        )
        return [Send(encode_agent(hello))]

    def received(self, message: CollectorMessage, now: Clock) -> list[Wish]:
        """Call `wake` afterwards: what may be sent now is not in the answer."""
        session = self._session
        if session is None:
            return []
        session.heard_ms = now.mono_ms
        return self._ended(self._answered(session, message, now))

    def _answered(self, session: _Session, message: CollectorMessage, now: Clock) -> list[Wish]:
        match message:
            case Welcome():
                return self._welcome(session, message, now)
            case Ack(seq):
                return self._ack(session, seq, now)
            case Nack(expected):
                return self._nack(session, expected, now)
            case Reject():
                return self._reject(session, message, now)
            case Credit(credit):
                session.credit_bytes = credit
            case Drain(after_ms):
                return [Reconnect("drained", after_ms=min(after_ms, RECONNECT_MS_MAX))]
            case Revoked(reason):
                return [Stop(reason)]
            case Assignment() | ProbeRequest():
                return [Deliver(message)]
        return []

    def wake(self, now: Clock, bytes_max: int = CHUNK_BYTES) -> list[Wish]:
        """What may be sent now: pulses before frames, and at most `bytes_max` of these (but always one)."""
        session = self._session
        if session is None:
            return []
        if session.state is not _State.OPEN:
            late = now.mono_ms - session.since_ms >= WELCOME_WITHIN_MS
            return self._ended([Reconnect("no welcome", failed=True)] if late else [])
        if session.flights and now.mono_ms - session.heard_ms >= ANSWER_WITHIN_MS:
            return self._ended([Reconnect("no answer", failed=True)])
        out: list[Wish] = []
        while self._sayings:
            out.append(Send(self._sayings.popleft()))
        if session.pulsed_ms is None or now.mono_ms - session.pulsed_ms >= PULSE_EVERY_MS:
            out.append(self._pulse(session, now))
        out += _bundled(self._frames(session, bytes_max, now))
        return out or self._ended(self._finished(session))

    def wake_in_ms(self, now: Clock) -> int:
        session = self._session
        if session is None:
            return PULSE_EVERY_MS
        if session.state is not _State.OPEN:
            return max(0, session.since_ms + WELCOME_WITHIN_MS - now.mono_ms)
        return max(0, (session.pulsed_ms or now.mono_ms) + PULSE_EVERY_MS - now.mono_ms)

    def disconnected(self, *, suspicious: bool = False) -> None:
        """`suspicious`: the stream died in a way that a message of ours may have caused, not of the network."""
        session, self._session = self._session, None
        if session is None or not suspicious or not session.flights:
            return
        generation = session.generation
        first, last = session.flights[0].seq, session.flights[-1].seq
        if first == last and self._is_suspect(generation, first):
            self.spool.set_aside(generation, first)
            self.counters.poisoned += 1
            log.error("frame set aside, the stream died of it twice", seq=first)
        else:
            self._suspect = (generation.spool_id, last)

    # ----------------------------------------------------------------------------------------------------- receiving

    def _welcome(self, session: _Session, welcome: Welcome, now: Clock) -> list[Wish]:
        if session.state is _State.OPEN:
            return self._strange("second welcome", welcome.resume_from)
        if not PROTOCOL_MIN <= welcome.protocol <= PROTOCOL_MAX:
            self._strange("protocol unknown", welcome.protocol)
            return [Reconnect("protocol unknown", failed=True)]
        generation = session.generation
        if welcome.resume_from > self._given_out(generation) + 1 and generation is self.spool.active:
            log.error(
                "collector holds numbers that were never sent from here, the spool takes a new id",
                resume_from=welcome.resume_from,
                sent=generation.sent,
            )
            self.spool.renew()
            return [Reconnect("new spool id", failed=True)]
        if welcome.resume_from <= generation.acked:
            log.warning(
                "collector has lost what it had acknowledged", resume_from=welcome.resume_from, acked=generation.acked
            )
        held = min(welcome.resume_from - 1, generation.last_seq)
        generation.ack(held)
        self._redeclaration.acked(generation)
        session.state = _State.OPEN
        session.cursor, session.behind = held + 1, held
        if welcome.declare_again:
            log.warning("collector does not know our layouts, they are declared again", next=held + 1)
            known = self.spool.forget_declared() | declared_before(generation, held + 1)
            self._redeclaration.owe(generation, known)
        session.credit_bytes = welcome.credit_bytes
        self.agent = welcome.agent
        self.collector_ahead_ms = welcome.time_ms - now.wall_ms
        # Nothing waits: the first frame says the same as a pulse, and sooner.
        behind_hand = generation is not self.spool.active or generation.backlog_bytes > CHUNK_BYTES
        session.pulsed_ms = None if behind_hand else now.mono_ms
        return []

    def _ack(self, session: _Session, seq: int, now: Clock) -> list[Wish]:
        # Beyond this stream's frames it may go: an earlier stream's were still on their way to the disk.
        if session.state is not _State.OPEN or seq > self._given_out(session.generation):
            return self._strange("ack of what was not sent", seq)
        self.counters.acks += 1
        self.counters.last_ack_ms = now.wall_ms
        session.nacks = 0
        self._settle(session, seq)
        return []

    def _settle(self, session: _Session, seq: int) -> None:
        """All up to `seq` are the collector's now."""
        while session.flights and session.flights[0].seq <= seq:
            session.flight_bytes -= session.flights.popleft().bytes
        session.generation.ack(seq)
        self._redeclaration.acked(session.generation)
        if seq > session.behind:  # sent before a rewind or on an earlier stream, and arrived after all
            session.behind, session.behind_ms, session.cursor = seq, None, seq + 1

    def _nack(self, session: _Session, expected: int, now: Clock) -> list[Wish]:
        if session.state is not _State.OPEN or not 0 < expected <= self._given_out(session.generation) + 1:
            return self._strange("nack of what was not sent", expected)
        self.counters.nacks += 1
        recent = session.nacked_ms is not None and now.mono_ms - session.nacked_ms < NACK_EVERY_MS
        if recent and session.nacked_at == expected:
            return []
        session.nacked_ms, session.nacked_at = now.mono_ms, expected
        session.nacks += 1
        if session.nacks > NACKS_MAX:
            return [Reconnect("the collector keeps asking for the same", failed=True)]
        log.warning("collector asks again", expected=expected, next=session.cursor)
        session.cursor, session.behind, session.behind_ms = expected, expected - 1, None
        session.flights.clear()
        session.flight_bytes = 0
        return []

    def _reject(self, session: _Session, reject: Reject, now: Clock) -> list[Wish]:
        self.counters.rejected += 1
        self.counters.last_reject = f"{reject.code}: {reject.detail}" if reject.detail else reject.code
        log.warning("collector rejects a frame", seq=reject.seq, code=reject.code, detail=reject.detail)
        generation = session.generation
        if session.state is _State.OPEN and generation.acked < reject.seq <= self._given_out(generation):
            generation.set_aside(reject.seq, "rejected")
            for entry in generation.read(reject.seq, 1):
                if entry.seq == reject.seq and (lost := declared_in(entry.raw)):
                    self.spool.forget_declared()
                    self._redeclaration.owe(generation, {layout.id: layout for layout in lost})
        # A dead letter is kept by the collector: with nothing unacked before it, it counts as delivered.
        while session.flights and session.flights[0].seq in generation.aside:
            self.counters.last_ack_ms = now.wall_ms
            self._settle(session, session.flights[0].seq)
        return []

    def _ended(self, wishes: list[Wish]) -> list[Wish]:
        """Nothing more is said on a stream that is to end."""
        if any(isinstance(wish, Reconnect | Stop) for wish in wishes):
            self._session = None
        return wishes

    def _strange(self, what: str, number: int) -> list[Wish]:
        self.counters.protocol_errors += 1
        log.error("collector breaks the protocol", what=what, number=number)
        return []

    # ------------------------------------------------------------------------------------------------------- sending

    def _pulse(self, session: _Session, now: Clock) -> Send:
        session.pulsed_ms = now.mono_ms
        self.counters.pulses_sent += 1
        pulse = Pulse(now, backlog_bytes=self.spool.backlog_bytes, last_seq=session.generation.last_seq)
        return Send(encode_agent(pulse))

    def _frames(self, session: _Session, bytes_max: int, now: Clock) -> list[bytes]:
        out: list[bytes] = []
        chunk = bytes_max
        while session.credit_bytes and chunk > 0:
            alone = self._is_suspect(session.generation, session.cursor)
            if alone and session.flights:
                break
            room = session.credit_bytes - session.flight_bytes
            entries = session.generation.read(session.cursor, 1 if alone else max(1, min(room, chunk)))
            if not entries:
                break
            for entry in entries:
                if entry.seq in session.generation.aside:
                    session.cursor = entry.seq + 1
                    continue
                if len(entry.raw) > room and session.flights:
                    return out
                raw = self._bridged(session, entry)
                if raw is None:
                    continue
                if not session.flights:
                    session.heard_ms = max(session.heard_ms, now.mono_ms)  # silence counts from the first unanswered
                out.append(self._sent(session, entry, raw))
                room -= len(raw)
                chunk -= len(raw)
        return out

    def _sent(self, session: _Session, entry: Entry, raw: bytes) -> bytes:
        session.flights.append(_Flight(entry.seq, len(raw)))
        session.flight_bytes += len(raw)
        session.cursor, session.behind, session.behind_ms = entry.seq + 1, entry.seq, entry.time_ms
        session.generation.sent = max(session.generation.sent, entry.seq)
        self.counters.frames_sent += 1
        self.counters.bytes_sent += len(raw)
        return wrap_frame(raw)

    def _bridged(self, session: _Session, entry: Entry) -> bytes | None:
        """The frame; after a hole, rewritten to follow what the collector holds, with the gap that tells why."""
        owes_layouts = self._redeclaration.is_owed(session.generation)
        if entry.follows <= session.behind and not session.owed and not owes_layouts:
            return entry.raw
        generation = session.generation
        follows, is_hole = min(entry.follows, session.behind), entry.follows > session.behind
        if is_hole:
            from_ms = entry.time_ms if session.behind_ms is None else session.behind_ms
            reason = generation.explain(session.behind + 1, entry.seq - 1)
            session.owed.append(hole(session.behind, entry, from_ms, reason))
            self.counters.gaps_told += 1
        try:
            frame = replace(decode_frame(entry.raw), follows=follows)
        except WireError as exc:
            log.error("frame in the spool cannot be read, it is set aside", seq=entry.seq, problem=str(exc))
            self.spool.set_aside(generation, entry.seq)
            if is_hole:
                session.owed.pop()
            session.cursor = entry.seq + 1
            return None
        if owes_layouts:
            whole = replace(frame, layouts=(*frame.layouts, *self._redeclaration.due(frame)))
            if entry_of(whole, entry.kind) is not None:  # too full for them: they go with a later one
                frame = whole
            self._redeclaration.carry(frame)
        told = entry_of(replace(frame, gaps=(*joined(session.owed), *frame.gaps)), entry.kind)
        if told is not None:
            session.owed.clear()
            return told.raw
        # Too full for one more gap: it rides on the next frame.
        plain = entry_of(frame, entry.kind)
        return plain.raw if plain is not None else entry.raw

    def _finished(self, session: _Session) -> list[Wish]:
        """An old generation with nothing more to deliver gives way to the next."""
        generation = session.generation
        if generation is self.spool.active or session.flights or not session.credit_bytes:
            return []
        if generation.read(session.cursor, 1):
            return []
        frames = generation.last_kept - session.behind
        gaps = [replace(gap, first_seq=0, last_seq=0) for gap in session.owed]  # numbers of an id that ends here
        if frames > 0:
            from_ms, to_ms = generation.span_ms() or (generation.newest_ms, generation.newest_ms)
            reason = generation.explain(session.behind + 1, generation.last_kept)
            gaps.append(Gap(0, 0, session.behind_ms or from_ms, to_ms, reason, frames))
        self.spool.retire(generation, tuple(gaps))
        return [Reconnect("next generation of the spool")]

    def _given_out(self, generation: Generation) -> int:
        """The highest number that any collector can hold. Of an old generation that is all it has, and more."""
        if generation is self.spool.active:
            return max(generation.sent, generation.acked)
        return generation.last_seq

    def _is_suspect(self, generation: Generation, seq: int) -> bool:
        spool_id, last = self._suspect
        return spool_id == generation.spool_id and seq <= last


def _bundled(messages: list[bytes]) -> list[Wish]:
    """What waits together goes together: a stream costs per message. One frame alone goes as it is."""
    out: list[Wish] = []
    start = 0
    while start < len(messages):
        end, size = start, 0
        while end < len(messages) and end - start < BUNDLE_FRAMES_MAX and size + len(messages[end]) <= CHUNK_BYTES:
            size += len(messages[end]) + 4  # tag and length
            end += 1
        end = max(end, start + 1)
        out.append(Send(messages[start] if end == start + 1 else bundle(messages[start:end])))
        start = end
    return out
