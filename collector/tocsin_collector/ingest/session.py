"""The collector's side of one agent's stream, as a pure machine: bytes in, wishes out.

No I/O, no clock, no knowledge of gRPC: `stream` and the simulator drive it. It admits frames by sequence number and says
what to send; who the agent is was settled by its certificate before.

Invariant: an Ack never names a sequence number beyond what `committed` was told for that spool (law 1).
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import msgspec
import structlog

from tocsin_collector.core.intake import Admission
from tocsin_collector.ingest.poison import claim_of
from tocsin_proto import records
from tocsin_proto.codec import WireError, decode_agent, unbundle

log = structlog.get_logger()


class Gate(Protocol):
    """The pipeline's book of what was admitted of each spool, and what of it is durable."""

    def adopt(self, agent: str, spool_id: bytes, first_unacked: int) -> bool: ...
    def declaring(self, agent: str, spool_id: bytes) -> None: ...
    def admit(self, agent: str, spool_id: bytes, seq: int, follows: int) -> Admission: ...
    def high_water(self, agent: str, spool_id: bytes) -> int: ...
    def committed(self, agent: str, spool_id: bytes) -> int: ...


class Limits(msgspec.Struct, frozen=True):
    """Bounds of one stream, and of what an agent may keep the collector busy with."""

    protocol_min: int = records.PROTOCOL_MIN
    protocol_max: int = records.PROTOCOL_MAX
    credit_bytes: int = records.CREDIT_BYTES
    frame_bytes_max: int = records.FRAME_BYTES_MAX
    pulse_interval_ms_min: int = 1_000  # each pulse is a journal entry: those that come faster are dropped
    hellos_max: int = 16  # one per generation of the spool, and room
    nack_rounds_max: int = 8  # after so many the agent has not what is missing: it must say Hello again


class Send(NamedTuple):
    message: records.CollectorMessage


class OfferFrame(NamedTuple):
    """Admitted: must reach the pipeline, whatever becomes of the stream. `raw` is the AgentMessage as received."""

    spool_id: bytes
    frame: records.Frame
    raw: bytes


class OfferPulse(NamedTuple):
    pulse: records.Pulse


class DeadLetter(NamedTuple):
    """Admitted by its number, but not decodable: must be kept, and counts as committed when it is."""

    spool_id: bytes
    seq: int
    code: str
    detail: str
    raw: bytes


class Report(NamedTuple):
    report: records.AssignmentReport


class Greeted(NamedTuple):
    """The agent has said Hello (again). Comes before the Welcome."""

    hello: records.Hello


class Close(NamedTuple):
    """End the stream with this gRPC status, by name."""

    code: str
    reason: str


Action = Send | OfferFrame | OfferPulse | DeadLetter | Report | Greeted | Close


class Counts:
    """What one stream has seen, for status and metrics. Only ever rising."""

    __slots__ = (
        "duplicates",
        "foreign",
        "frame_bytes",
        "frames",
        "gaps",
        "pulses",
        "pulses_dropped",
        "rejects",
        "unasked",
    )

    def __init__(self) -> None:
        self.frames = self.frame_bytes = self.duplicates = self.gaps = self.rejects = 0
        self.pulses = self.pulses_dropped = self.foreign = self.unasked = 0

    def as_dict(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in self.__slots__}


class Session:
    """One stream of `agent`. Feed it `received` and `committed`; carry out the actions in order; send what `flush` gives.

    assigned(): what the agent is to watch, None while that is not known.
    """

    def __init__(
        self,
        agent: str,
        gate: Gate,
        assigned: Callable[[], records.Assignment | None] = lambda: None,
        limits: Limits | None = None,
        decode: Callable[[bytes], records.AgentMessage] = decode_agent,
    ) -> None:
        self.agent = agent
        self.counts = Counts()
        self.hello: records.Hello | None = None
        self.in_flight_bytes = 0  # offered and not yet committed
        self.is_over = False
        self._gate = gate
        self._assigned = assigned
        self._limits = limits or Limits()
        self._decode = decode
        self._etag = ""  # of the assignment the agent has, as far as we know
        self._spool = b""
        self._hellos = 0
        self._in_flight: deque[tuple[bytes, int, int]] = deque()  # (spool_id, seq, bytes)
        self._ack_due = False
        self._rejects: deque[records.Reject] = deque()  # of dead letters that are not committed yet, by seq
        self._gap_seq = 0  # highest seq seen behind the gap; 0: no gap
        self._nack_rounds = 0
        self._pulse_ms: int | None = None
        self._is_to_declare = False  # and has not said anything since

    # ------------------------------------------------------------------------------------------------------ input

    def received(self, raw: bytes, now_ms: int) -> Sequence[Action]:
        """One message of the agent. `now_ms`: the collector's clock."""
        if self.is_over:
            return ()
        try:
            frames = unbundle(raw)
        except WireError as exc:
            self.counts.foreign += 1
            return self.close("INVALID_ARGUMENT", str(exc))
        if frames is None:
            return self._received(raw, now_ms)
        actions: list[Action] = []
        for frame in frames:
            actions.extend(self._received(frame, now_ms))
        return actions

    def _received(self, raw: bytes, now_ms: int) -> Sequence[Action]:
        if self.is_over:
            return ()
        try:
            message = self._decode(raw)
        except WireError as exc:
            return self._undecodable(raw, "malformed", str(exc))
        except Exception as exc:
            # A fault of our decoder must not become the agent's endless loop: what it choked on is put aside.
            log.exception("message broke the decoder", agent=self.agent, bytes=len(raw))
            return self._undecodable(raw, "undecodable", f"{type(exc).__name__} in the collector's decoder")
        if type(message) is records.Frame:
            return self._frame(message, raw)
        if isinstance(message, records.Hello):
            return self._greet(message, now_ms)
        if self.hello is None:
            return self.close("FAILED_PRECONDITION", f"{type(message).__name__} before Hello; Hello comes first")
        if isinstance(message, records.Pulse):
            return self._pulse(message, now_ms)
        if isinstance(message, records.AssignmentReport):
            return (Report(message),)
        # Nothing asks for probes yet, so that an answer is nobody's.
        self.counts.unasked += 1
        return ()

    def committed(self, spool_id: bytes, seq: int) -> None:
        """All of this spool up to `seq` is durable. Cheap: called for every frame, answered by one Ack in `flush`."""
        in_flight = self._in_flight
        while in_flight and in_flight[0][0] == spool_id and in_flight[0][1] <= seq:
            self.in_flight_bytes -= in_flight.popleft()[2]
        if spool_id == self._spool:
            self._ack_due = True

    def assign(self) -> Sequence[Action]:
        """What is assigned has changed: sent if the agent has something else. Before its Hello that is not known."""
        assignment = self._assigned()
        if assignment is None or self.hello is None or self.is_over or assignment.etag == self._etag:
            return ()
        self._etag = assignment.etag
        return (Send(assignment),)

    def close(self, code: str, reason: str) -> Sequence[Action]:
        """Nothing more is admitted from here on; what is durable may still be acknowledged."""
        if self.is_over:
            return ()
        self.is_over = True
        return (Close(code, reason),)

    # ----------------------------------------------------------------------------------------------------- output

    @property
    def is_due(self) -> bool:
        """True when `flush` has something to say."""
        return self._ack_due

    @property
    def has_credit(self) -> bool:
        """False: the agent has sent more than it may without an Ack. It is not read until some is committed."""
        return self.in_flight_bytes < self._limits.credit_bytes

    def flush(self) -> list[records.CollectorMessage]:
        """The Rejects that are durable, and one cumulative Ack."""
        if not self._ack_due:
            return []
        self._ack_due = False
        durable = self._gate.committed(self.agent, self._spool)
        due: list[records.CollectorMessage] = []
        # Only now: an agent that is told "do not send again" must find the dead letter kept, also after a crash.
        while self._rejects and self._rejects[0].seq <= durable:
            due.append(self._rejects.popleft())
        due.append(records.Ack(durable))
        return due

    # ---------------------------------------------------------------------------------------------------- messages

    def _greet(self, hello: records.Hello, now_ms: int) -> Sequence[Action]:
        oldest, newest = self._limits.protocol_min, self._limits.protocol_max
        protocol = min(hello.protocol_max, newest)
        if protocol < max(hello.protocol_min, oldest):
            behind = "agent" if hello.protocol_max < oldest else "collector"
            return self.close(
                "FAILED_PRECONDITION",
                f"the agent speaks protocol {hello.protocol_min} to {hello.protocol_max}, this collector "
                f"{oldest} to {newest}: update the {behind}",
            )
        self._hellos += 1
        if self._hellos > self._limits.hellos_max:
            return self.close("RESOURCE_EXHAUSTED", f"more than {self._limits.hellos_max} Hellos on one stream")
        if self._hellos == 1:
            self._etag = hello.assignment_etag
        self.hello = hello
        self._spool = hello.spool_id
        # Acks and Rejects name no spool: those of the one before would be read as the new one's. It is told by resume_from.
        self._ack_due = False
        self._rejects.clear()
        self._gap_seq = self._nack_rounds = 0
        self._is_to_declare = self._gate.adopt(self.agent, hello.spool_id, hello.first_unacked)
        assignment = self._assigned()
        welcome = records.Welcome(
            protocol=protocol,
            # From the durable mark: what is admitted but not yet committed may still be lost with this process.
            resume_from=self._gate.committed(self.agent, hello.spool_id) + 1,
            credit_bytes=self._limits.credit_bytes,
            frame_bytes_max=self._limits.frame_bytes_max,
            time_ms=now_ms,
            assignment_etag="" if assignment is None else assignment.etag,
            agent=self.agent,
            declare_again=self._is_to_declare,
        )
        actions: list[Action] = [Greeted(hello), Send(welcome)]
        actions.extend(self.assign())
        actions.extend(self._pulse(records.Pulse(hello.clock, last_seq=hello.last_seq), now_ms))
        return actions

    def _pulse(self, pulse: records.Pulse, now_ms: int) -> Sequence[Action]:
        if self._pulse_ms is not None and 0 <= now_ms - self._pulse_ms < self._limits.pulse_interval_ms_min:
            self.counts.pulses_dropped += 1
            return ()
        self._pulse_ms = now_ms
        self.counts.pulses += 1
        return (OfferPulse(pulse),)

    def _frame(self, frame: records.Frame, raw: bytes) -> Sequence[Action]:
        refusal = self._judge(frame.seq, frame.follows, len(raw))
        if refusal is not None:
            return refusal
        self.counts.frames += 1
        self.counts.frame_bytes += len(raw)
        return (OfferFrame(self._spool, frame, raw),)

    def _undecodable(self, raw: bytes, code: str, detail: str) -> Sequence[Action]:
        claim = claim_of(raw)
        if claim is None:
            self.counts.foreign += 1
            return self.close("INVALID_ARGUMENT", detail)
        refusal = self._judge(claim.seq, claim.follows, len(raw))
        if refusal is not None:
            return refusal
        self.counts.rejects += 1
        self._rejects.append(records.Reject(claim.seq, code, detail))
        return (DeadLetter(self._spool, claim.seq, code, detail, raw),)

    def _judge(self, seq: int, follows: int, size: int) -> Sequence[Action] | None:
        """None when the frame is admitted; then it counts as on its way."""
        if self.hello is None:
            return self.close("FAILED_PRECONDITION", "Frame before Hello; Hello comes first")
        admission = self._gate.admit(self.agent, self._spool, seq, follows)
        if admission is Admission.ACCEPT:
            self._in_flight.append((self._spool, seq, size))
            self.in_flight_bytes += size
            self._gap_seq = self._nack_rounds = 0
            if self._is_to_declare:  # frames come after the Welcome: it has been read
                self._is_to_declare = False
                self._gate.declaring(self.agent, self._spool)
            return None
        if admission is Admission.DUPLICATE:
            self.counts.duplicates += 1
            self._ack_due = True
            return ()
        return self._gap(seq, follows)

    def _gap(self, seq: int, follows: int) -> Sequence[Action]:
        """One Nack per gap. Whatever was under way behind it follows in rising order; a lower number is a new attempt."""
        self.counts.gaps += 1
        if seq > self._gap_seq > 0:
            self._gap_seq = seq
            return ()
        self._gap_seq = seq
        self._nack_rounds += 1
        expected = self._gate.high_water(self.agent, self._spool) + 1
        if self._nack_rounds > self._limits.nack_rounds_max:
            return self.close(
                "FAILED_PRECONDITION",
                f"frame {seq} follows {follows}, expected {expected}; asked {self._limits.nack_rounds_max} times",
            )
        return (Send(records.Nack(expected)),)
