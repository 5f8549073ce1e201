"""Records to wire bytes and back: the only importer of the generated messages.

Not the rules of what a message may say (`validity`, checked here in both directions) and not the stubs of gRPC.
Invariant: decoding raises nothing but `WireError`, whatever the bytes; `decode(encode(record)) == record`.
"""

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any, Final, NamedTuple

from google.protobuf.internal import api_implementation
from google.protobuf.message import DecodeError

from tocsin_proto import records as r
from tocsin_proto import validity
from tocsin_proto.columns import pack_floats, pack_i32, pack_u32, pack_u64
from tocsin_proto.layouts import Shape, check_section, check_shape, layout_id, shape_of
from tocsin_proto.limits import NAME_CHARS_MAX, TEXT_CHARS_MAX, WireError
from tocsin_proto.v1 import tocsin_pb2 as pb

__all__ = [
    "AGENT_BYTES_MAX",
    "COLLECTOR_BYTES_MAX",
    "NAME_CHARS_MAX",
    "TEXT_CHARS_MAX",
    "Shape",
    "WireError",
    "check_section",
    "check_shape",
    "decode_agent",
    "decode_collector",
    "decode_frame",
    "encode_agent",
    "encode_collector",
    "encode_frame",
    "layout_id",
    "pack_floats",
    "pack_i32",
    "pack_u32",
    "pack_u64",
    "require_fast_protobuf",
    "shape_of",
    "wrap_frame",
]

AGENT_BYTES_MAX: Final = r.FRAME_BYTES_MAX + 4  # the largest Frame behind its tag and length
COLLECTOR_BYTES_MAX: Final = 4 * 1024 * 1024  # what a gRPC peer accepts by default; an Assignment is the only large one
_FRAME_TAG: Final = bytes([pb.AgentMessage.FRAME_FIELD_NUMBER << 3 | 2])


class Body(NamedTuple):
    """One arm of a oneof: its record, both translations, and its check."""

    record: type[Any]
    fill: Callable[[Any, Any], None]  # (record, empty message)
    read: Callable[[Any], Any]
    check: Callable[[Any, str], None]


def encode_agent(message: r.AgentMessage) -> bytes:
    """WireError when the message breaks the contract: it is not sent, so that no poison is ever spooled."""
    raw = _encode(message, pb.AgentMessage(), _AGENT_NAMES, _AGENT)
    return _within(raw, AGENT_BYTES_MAX, "message")


def decode_agent(raw: bytes) -> r.AgentMessage:
    _within(raw, AGENT_BYTES_MAX, "message")
    message: r.AgentMessage = _decode(raw, pb.AgentMessage, _AGENT)
    return message


def encode_collector(message: r.CollectorMessage) -> bytes:
    raw = _encode(message, pb.CollectorMessage(), _COLLECTOR_NAMES, _COLLECTOR)
    return _within(raw, COLLECTOR_BYTES_MAX, "message")


def decode_collector(raw: bytes) -> r.CollectorMessage:
    _within(raw, COLLECTOR_BYTES_MAX, "message")
    message: r.CollectorMessage = _decode(raw, pb.CollectorMessage, _COLLECTOR)
    return message


def encode_frame(frame: r.Frame) -> bytes:
    """A bare Frame, as the spool and the journal keep it. WireError, also when it is beyond FRAME_BYTES_MAX."""
    validity.check_frame(frame)
    wire = pb.Frame()
    _fill_frame(frame, wire)
    return _within(wire.SerializeToString(), r.FRAME_BYTES_MAX, "frame")


def decode_frame(raw: bytes) -> r.Frame:
    _within(raw, r.FRAME_BYTES_MAX, "frame")
    try:
        frame = _read_frame(pb.Frame.FromString(raw))
    except DecodeError as exc:
        raise WireError("frame", _parse_problem(raw)) from exc
    validity.check_frame(frame)
    return frame


def wrap_frame(raw_frame: bytes) -> bytes:
    """The AgentMessage around an encoded Frame: tag, length, the same bytes."""
    return b"%b%b%b" % (_FRAME_TAG, _varint(len(raw_frame)), raw_frame)


def require_fast_protobuf() -> None:
    """RuntimeError on the pure-Python backend: fifty times slower, and open to recursion (CVE-2025-4565)."""
    backend = api_implementation.Type()
    if backend == "python":
        raise RuntimeError(
            "protobuf runs on its pure-Python backend, which Tocsin refuses: "
            "install the protobuf wheel of this platform and unset PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION"
        )


def _encode(record: Any, message: Any, names: Mapping[type[Any], str], bodies: Mapping[str, Body]) -> bytes:
    name = names[type(record)]
    body = bodies[name]
    body.check(record, name)
    arm = getattr(message, name)
    arm.SetInParent()  # a record of defaults only is present all the same
    body.fill(record, arm)
    raw: bytes = message.SerializeToString()
    return raw


def _decode(raw: bytes, message_type: Any, bodies: Mapping[str, Body]) -> Any:
    try:
        message = message_type.FromString(raw)
    except DecodeError as exc:
        raise WireError("message", _parse_problem(raw)) from exc
    name = message.WhichOneof("body")
    if name is None:
        raise WireError("message.body", f"missing, expected one of {', '.join(bodies)}")
    body = bodies[name]
    record = body.read(getattr(message, name))
    body.check(record, name)
    return record


def _within(raw: bytes, bytes_max: int, path: str) -> bytes:
    if len(raw) > bytes_max:
        raise WireError(path, f"{len(raw)} bytes, at most {bytes_max}")
    return raw


def _parse_problem(raw: bytes) -> str:
    return f"{len(raw)} bytes that are no such message (truncated, damaged, or not Tocsin's)"


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


# ------------------------------------------------------------------------------- records whose fields are the wire's


def _flat(record: type[Any], check: Callable[[Any, str], None]) -> Body:
    return Body(record, _fill_flat, _reader(record), check)


def _reader(record: type[Any]) -> Callable[[Any], Any]:
    names = record.__struct_fields__
    if len(names) == 1:
        one = attrgetter(*names)
        return lambda wire: record(one(wire))
    several = attrgetter(*names)
    return lambda wire: record(*several(wire))


def _fill_flat(record: Any, wire: Any) -> None:
    for name in record.__struct_fields__:
        value = getattr(record, name)
        if isinstance(value, tuple):
            getattr(wire, name).extend(value)
        else:
            setattr(wire, name, value)


_read_section: Final = attrgetter(*r.Section.__struct_fields__)
_read_heartbeat: Final = attrgetter(*r.Heartbeat.__struct_fields__)
_read_gap: Final = attrgetter(*r.Gap.__struct_fields__)
_read_device: Final = attrgetter(*r.AssignedDevice.__struct_fields__)


# ------------------------------------------------------------------------------------------------- records with parts


def _fill_frame(frame: r.Frame, wire: Any) -> None:
    wire.seq = frame.seq
    wire.follows = frame.follows
    _fill_clock(frame.clock, wire.clock)
    for layout in frame.layouts:
        _fill_layout(layout, wire.layouts.add())
    for section in frame.sections:
        _fill_flat(section, wire.sections.add())
    for event in frame.events:
        _fill_event(event, wire.events.add())
    for gap in frame.gaps:
        _fill_flat(gap, wire.gaps.add())
    if frame.heartbeat is not None:
        wire.heartbeat.SetInParent()
        _fill_flat(frame.heartbeat, wire.heartbeat)


def _read_frame(wire: Any) -> r.Frame:
    # Slices and truth tests instead of iteration: a repeated field is slow to iterate and slower when it is empty.
    layouts, sections, events, gaps = wire.layouts, wire.sections, wire.events, wire.gaps
    return r.Frame(
        wire.seq,
        wire.follows,
        _read_clock(wire, "frame"),
        tuple([_layout(one, n) for n, one in enumerate(layouts[:])]) if layouts else (),
        tuple([r.Section(*_read_section(one)) for one in sections[:]]) if sections else (),
        tuple([_event(one, n) for n, one in enumerate(events[:])]) if events else (),
        tuple([r.Gap(*_read_gap(one)) for one in gaps[:]]) if gaps else (),
        r.Heartbeat(*_read_heartbeat(wire.heartbeat)) if wire.HasField("heartbeat") else None,
    )


def _fill_clock(clock: r.Clock, wire: Any) -> None:
    wire.SetInParent()
    wire.wall_ms, wire.mono_ms, wire.boot = clock.wall_ms, clock.mono_ms, clock.boot


def _read_clock(wire: Any, path: str) -> r.Clock:
    if not wire.HasField("clock"):
        raise WireError(f"{path}.clock", "missing")
    clock = wire.clock
    return r.Clock(clock.wall_ms, clock.mono_ms, clock.boot)


def _fill_layout(layout: r.Layout, wire: Any) -> None:
    wire.id = layout.id
    for one in layout.series:
        wire.series.add(
            resource=one.resource,
            metric=one.metric,
            unit=one.unit,
            kind=int(one.kind),
            labels=[word for label in one.labels for word in label],
            interval_ms=one.interval_ms,
            states=[f"{number}={name}" for number, name in one.states],
        )


def _layout(wire: Any, n: int) -> r.Layout:
    path = f"frame.layouts[{n}].series"
    return r.Layout(wire.id, tuple([_series(one, f"{path}[{k}]") for k, one in enumerate(wire.series[:])]))


def _series(wire: Any, path: str) -> r.Series:
    kind = _KINDS.get(wire.kind)
    if kind is None:
        raise WireError(f"{path}.kind", f"{wire.kind}, expected one of {', '.join(map(str, _KINDS))}")
    return r.Series(
        wire.resource,
        wire.metric,
        wire.unit,
        kind,
        _pairs(wire.labels[:], f"{path}.labels"),
        wire.interval_ms,
        tuple([_state(text, f"{path}.states[{n}]") for n, text in enumerate(wire.states[:])]),
    )


def _fill_event(event: r.Event, wire: Any) -> None:
    wire.resource, wire.source, wire.name = event.resource, event.source, event.name
    wire.time_ms, wire.text = event.time_ms, event.text
    wire.fields.extend(word for field in event.fields for word in field)


def _event(wire: Any, n: int) -> r.Event:
    fields = _pairs(wire.fields[:], f"frame.events[{n}].fields")
    return r.Event(wire.resource, wire.source, wire.name, wire.time_ms, fields, wire.text)


def _pairs(words: Sequence[str], path: str) -> tuple[tuple[str, str], ...]:
    if len(words) % 2:
        raise WireError(path, f"{len(words)} words, expected name and value in turn")
    return tuple(zip(words[::2], words[1::2], strict=True))


def _state(text: str, path: str) -> tuple[int, str]:
    digits, equals, name = text.partition("=")
    # At most "-2147483648": longer digits are refused before int() has to read them.
    number = int(digits) if len(digits) <= 11 and digits.removeprefix("-").isdecimal() and digits.isascii() else None
    if not equals or number is None or str(number) != digits:
        raise WireError(path, 'expected "number=name", such as "1=up"')
    return number, name


def _fill_hello(hello: r.Hello, wire: Any) -> None:
    for name in _HELLO_FLAT:
        setattr(wire, name, getattr(hello, name))
    _fill_clock(hello.clock, wire.clock)
    wire.capabilities.extend(hello.capabilities)


def _read_hello(wire: Any) -> r.Hello:
    flat = {name: getattr(wire, name) for name in _HELLO_FLAT}
    return r.Hello(clock=_read_clock(wire, "hello"), capabilities=tuple(wire.capabilities[:]), **flat)


def _fill_pulse(pulse: r.Pulse, wire: Any) -> None:
    _fill_clock(pulse.clock, wire.clock)
    wire.backlog_bytes, wire.last_seq = pulse.backlog_bytes, pulse.last_seq


def _read_pulse(wire: Any) -> r.Pulse:
    return r.Pulse(_read_clock(wire, "pulse"), wire.backlog_bytes, wire.last_seq)


def _read_report(wire: Any) -> r.AssignmentReport:
    return r.AssignmentReport(wire.etag, tuple(wire.refused[:]))


def _fill_assignment(assignment: r.Assignment, wire: Any) -> None:
    wire.etag = assignment.etag
    for device in assignment.devices:
        _fill_flat(device, wire.devices.add())


def _read_assignment(wire: Any) -> r.Assignment:
    return r.Assignment(wire.etag, tuple([r.AssignedDevice(*_read_device(one)) for one in wire.devices[:]]))


# ------------------------------------------------------------------------------------------------------------- tables

_KINDS: Final[Mapping[int, r.SeriesKind]] = {int(kind): kind for kind in r.SeriesKind}
_HELLO_FLAT: Final = tuple(name for name in r.Hello.__struct_fields__ if name not in ("clock", "capabilities"))

# The names are those of the oneof arms in tocsin.proto.
_AGENT: Final[Mapping[str, Body]] = {
    "hello": Body(r.Hello, _fill_hello, _read_hello, validity.check_hello),
    "frame": Body(r.Frame, _fill_frame, _read_frame, validity.check_frame),
    "pulse": Body(r.Pulse, _fill_pulse, _read_pulse, validity.check_pulse),
    "assignment": Body(r.AssignmentReport, _fill_flat, _read_report, validity.check_assignment_report),
    "probe_answer": _flat(r.ProbeAnswer, validity.check_probe_answer),
}
_COLLECTOR: Final[Mapping[str, Body]] = {
    "welcome": _flat(r.Welcome, validity.check_welcome),
    "ack": _flat(r.Ack, validity.check_ack),
    "nack": _flat(r.Nack, validity.check_nack),
    "reject": _flat(r.Reject, validity.check_reject),
    "assignment": Body(r.Assignment, _fill_assignment, _read_assignment, validity.check_assignment),
    "drain": _flat(r.Drain, validity.check_drain),
    "revoked": _flat(r.Revoked, validity.check_revoked),
    "credit": _flat(r.Credit, validity.check_credit),
    "probe_request": _flat(r.ProbeRequest, validity.check_probe_request),
}
_AGENT_NAMES: Final = {body.record: name for name, body in _AGENT.items()}
_COLLECTOR_NAMES: Final = {body.record: name for name, body in _COLLECTOR.items()}
