"""What SNMP values are once decoded, and how they become text and numbers.

Not the wire (`codec`) and not their meaning (`profile`). Invariant: every function here takes whatever a device may
send and never raises.
"""

import math
from enum import Enum

Oid = tuple[int, ...]

TEXT_LENGTH_MAX = 255


class Missing(Enum):
    """Answers that hold no value. They are values of their own kind, not errors (RFC 3416, 3)."""

    OBJECT = "noSuchObject"
    INSTANCE = "noSuchInstance"
    END = "endOfMibView"
    NULL = "null"


Value = int | float | bytes | Oid | Missing


def oid(text: str) -> Oid:
    """`"1.3.6.1"` or `".1.3.6.1"` -> (1, 3, 6, 1). ValueError says what is wrong."""
    parts = text.strip().removeprefix(".").split(".")
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise ValueError(f"{text!r} is not an OID, write numbers and dots: 1.3.6.1.2.1.1.3.0")
    numbers = tuple(int(part) for part in parts)
    if not 2 <= len(numbers) <= 128 or numbers[0] > 2 or max(numbers) > 0xFFFFFFFF:
        raise ValueError(f"{text!r} is not an OID: 2 to 128 numbers, the first 0 to 2, each below 2^32")
    return numbers


def dotted(numbers: Oid) -> str:
    return ".".join(map(str, numbers))


def text(value: Value | None) -> str:
    """For labels and identity: printable, one line, trimmed, at most 255 characters; "" when there is nothing."""
    if value is None or isinstance(value, Missing):
        return ""
    if isinstance(value, tuple):
        return dotted(value)
    if isinstance(value, bytes):
        # Device strings are often padded with NUL and in no declared encoding: odd bytes are shown, never fatal.
        head = value[: 4 * TEXT_LENGTH_MAX]
        decoded = head.decode("utf-8", "replace")
        cleaned = "".join(c if c.isprintable() else " " for c in decoded.replace("\0", ""))
        return " ".join(cleaned.split())[:TEXT_LENGTH_MAX]
    return str(value)


def number(value: Value | None) -> int | float | None:
    """An int or a finite float; strings of digits count ("23.5"), everything else is None."""
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes) and 0 < len(value) <= 32:
        try:
            parsed = float(value.decode("ascii").strip("\0 "))
        except ValueError:
            return None
        return parsed if math.isfinite(parsed) else None
    return None
