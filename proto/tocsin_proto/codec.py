"""Records to wire bytes and back: the only importer of the generated messages.

Not the rules of what a message may say (`validity`, checked here in both directions) and not the stubs of gRPC.
Invariant: decoding raises nothing but `WireError`, whatever the bytes; `decode(encode(record)) == record`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from google.protobuf.internal import api_implementation
from google.protobuf.message import DecodeError

from tocsin_proto import records as r
from tocsin_proto import translate, validity
from tocsin_proto.columns import pack_floats, pack_i32, pack_u32, pack_u64
from tocsin_proto.layouts import Shape, check_section, check_shape, layout_id, shape_of
from tocsin_proto.limits import NAME_CHARS_MAX, TEXT_CHARS_MAX, WireError
from tocsin_proto.v1 import tocsin_pb2 as pb

__all__ = [
    "AGENT_BYTES_MAX",
    "BUNDLE_FRAMES_MAX",
    "COLLECTOR_BYTES_MAX",
    "NAME_CHARS_MAX",
    "TEXT_CHARS_MAX",
    "Shape",
    "WireError",
    "bundle",
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
    "unbundle",
    "wrap_frame",
]

AGENT_BYTES_MAX: Final = r.FRAME_BYTES_MAX + 4  # the largest Frame behind its tag and length
COLLECTOR_BYTES_MAX: Final = 4 * 1024 * 1024  # what a gRPC peer accepts by default; an Assignment is the only large one
BUNDLE_FRAMES_MAX: Final = 256
_FRAME_TAG: Final = bytes([pb.AgentMessage.FRAME_FIELD_NUMBER << 3 | 2])
_BUNDLE_TAG: Final = bytes([pb.AgentMessage.BUNDLE_FIELD_NUMBER << 3 | 2])


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
    translate.fill_frame(frame, wire)
    return _within(wire.SerializeToString(), r.FRAME_BYTES_MAX, "frame")


def decode_frame(raw: bytes) -> r.Frame:
    _within(raw, r.FRAME_BYTES_MAX, "frame")
    try:
        frame = translate.read_frame(pb.Frame.FromString(raw))
    except DecodeError as exc:
        raise WireError("frame", _parse_problem(raw)) from exc
    validity.check_frame(frame)
    return frame


def wrap_frame(raw_frame: bytes) -> bytes:
    """The AgentMessage around an encoded Frame: tag, length, the same bytes."""
    return b"%b%b%b" % (_FRAME_TAG, _varint(len(raw_frame)), raw_frame)


def bundle(messages: Sequence[bytes]) -> bytes:
    """One message that carries several encoded frames (as `wrap_frame` makes them), in their order."""
    raw = pb.AgentMessage(bundle=pb.Bundle(frames=messages)).SerializeToString()
    return _within(raw, AGENT_BYTES_MAX, "message")


def unbundle(raw: bytes) -> list[bytes] | None:
    """The encoded messages that a bundle carries; None when `raw` is a message of its own. WireError: neither."""
    if raw[:1] != _BUNDLE_TAG:
        return None
    _within(raw, AGENT_BYTES_MAX, "message")
    try:
        frames = list(pb.AgentMessage.FromString(raw).bundle.frames)
    except DecodeError as exc:
        raise WireError("message.bundle", _parse_problem(raw)) from exc
    if not 0 < len(frames) <= BUNDLE_FRAMES_MAX:
        raise WireError("message.bundle", f"{len(frames)} frames, expected 1 to {BUNDLE_FRAMES_MAX}")
    for number, frame in enumerate(frames):
        if frame[:1] != _FRAME_TAG:
            raise WireError(f"message.bundle[{number}]", "is no frame; a bundle carries nothing else")
    return frames


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
    if name not in bodies:
        raise WireError(f"message.{name}", "is no message of its own: it is taken apart before it is read")
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


def _flat(record: type[Any], check: Callable[[Any, str], None]) -> Body:
    return Body(record, translate.fill_flat, translate.reader(record), check)


# ------------------------------------------------------------------------------------------------------------- tables

# The names are those of the oneof arms in tocsin.proto.
_AGENT: Final[Mapping[str, Body]] = {
    "hello": Body(r.Hello, translate.fill_hello, translate.read_hello, validity.check_hello),
    "frame": Body(r.Frame, translate.fill_frame, translate.read_frame, validity.check_frame),
    "pulse": Body(r.Pulse, translate.fill_pulse, translate.read_pulse, validity.check_pulse),
    "assignment": Body(
        r.AssignmentReport, translate.fill_flat, translate.read_report, validity.check_assignment_report
    ),
    "probe_answer": _flat(r.ProbeAnswer, validity.check_probe_answer),
}
_COLLECTOR: Final[Mapping[str, Body]] = {
    "welcome": _flat(r.Welcome, validity.check_welcome),
    "ack": _flat(r.Ack, validity.check_ack),
    "nack": _flat(r.Nack, validity.check_nack),
    "reject": _flat(r.Reject, validity.check_reject),
    "assignment": Body(r.Assignment, translate.fill_assignment, translate.read_assignment, validity.check_assignment),
    "drain": _flat(r.Drain, validity.check_drain),
    "revoked": _flat(r.Revoked, validity.check_revoked),
    "credit": _flat(r.Credit, validity.check_credit),
    "probe_request": _flat(r.ProbeRequest, validity.check_probe_request),
}
_AGENT_NAMES: Final = {body.record: name for name, body in _AGENT.items()}
_COLLECTOR_NAMES: Final = {body.record: name for name, body in _COLLECTOR.items()}
