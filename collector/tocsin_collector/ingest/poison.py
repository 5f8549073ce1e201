"""Which sequence number a message claims that could not be decoded.

Not a decoder: it looks at the first bytes only, where every protobuf writer puts the frame's first two fields. Invariant:
never raises, and reads at most a few bytes, whatever the rest is.
"""

from typing import NamedTuple

from tocsin_proto.limits import INT_MAX

_FRAME_TAG = 0x12  # AgentMessage.frame, length-delimited
_SEQ_TAG = 0x08  # Frame.seq, varint
_FOLLOWS_TAG = 0x10
_VARINT_BYTES_MAX = 10


class Claim(NamedTuple):
    seq: int
    follows: int


def claim_of(raw: bytes) -> Claim | None:
    """None when the bytes are no frame, or do not begin with a usable sequence number."""
    if not raw or raw[0] != _FRAME_TAG:
        return None
    _, at = _varint(raw, 1)  # the length: wrong in a truncated message, and of no use here
    seq, at = _field(raw, at, _SEQ_TAG)
    if not 0 < seq <= INT_MAX:
        return None
    follows, _ = _field(raw, at, _FOLLOWS_TAG)
    # A claim to follow itself or the future is part of what is wrong with it; it stood where it stood.
    return Claim(seq, follows if follows < seq else seq - 1)


def _field(raw: bytes, at: int, tag: int) -> tuple[int, int]:
    """The varint field `tag` at `at`, and where it ends; 0 when another field stands there, as in proto3."""
    return _varint(raw, at + 1) if at < len(raw) and raw[at] == tag else (0, at)


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    number = 0
    for n, byte in enumerate(raw[at : at + _VARINT_BYTES_MAX]):
        number |= (byte & 0x7F) << 7 * n
        if byte < 0x80:
            return number, at + n + 1
    return 0, len(raw)
