"""The bounds of the wire, its one error, and the leaf checks that hold a value against a bound.

Not the rules of whole messages (`layouts`, `validity`). Invariant: every bound has a name here or in `records`.
"""

from collections.abc import Sequence
from typing import Final, TypeVar

_T = TypeVar("_T")

INT_MAX: Final = 2**63 - 1  # what a column of the store can hold
U32_MAX: Final = 2**32 - 1
TIME_MS_MIN: Final = -62_135_596_800_000  # the years 1 to 9999: what a calendar can print, and far from any overflow
TIME_MS_MAX: Final = 253_402_300_799_999
SPOOL_ID_BYTES: Final = 16
NAME_CHARS_MAX: Final = 256  # resource, metric, unit, label name and value, state, etag, host name ...
TEXT_CHARS_MAX: Final = 8192  # event text and field value, detail, reason
ADDRESS_CHARS_MAX: Final = 1024
SETTINGS_BYTES_MAX: Final = 64 * 1024
EVENTS_MAX: Final = 1000
SECTIONS_MAX: Final = 1000
LAYOUTS_MAX: Final = 1000
GAPS_MAX: Final = 1000
LABELS_MAX: Final = 32
STATES_MAX: Final = 256
CAPABILITIES_MAX: Final = 64
REFUSED_MAX: Final = 1000
DEVICES_MAX: Final = 20_000
STATE_MIN: Final = -(2**31)
STATE_MAX: Final = 2**31 - 1


class WireError(ValueError):
    """A message breaks the contract: `frame.sections[2].values: 12 bytes, expected a multiple of 8`."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path
        self.problem = problem


def few(items: Sequence[_T], most: int, path: str, name: str) -> Sequence[_T]:
    if len(items) > most:
        raise WireError(f"{path}.{name}", f"{len(items)}, at most {most}")
    return items


def name_text(text: str, path: str) -> None:
    text_within(text, path, NAME_CHARS_MAX)


def named(text: str, path: str) -> None:
    if not text:
        raise WireError(path, f"empty, expected 1 to {NAME_CHARS_MAX} characters")
    text_within(text, path, NAME_CHARS_MAX)


def text_within(text: str, path: str, chars_max: int = TEXT_CHARS_MAX) -> None:
    if len(text) > chars_max:
        raise WireError(path, f"{len(text)} characters, at most {chars_max}")
    # File names that are not UTF-8 reach Python as lone surrogates, and protobuf refuses those.
    if not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
        raise WireError(path, "not Unicode text (lone surrogate)")


def moment(time_ms: int, path: str) -> None:
    if not TIME_MS_MIN <= time_ms <= TIME_MS_MAX:
        raise time_error(time_ms, path)


def time_error(time_ms: int, path: str) -> WireError:
    return WireError(path, f"{time_ms}, expected Unix milliseconds in the years 1 to 9999")


def count_63(number: int, path: str) -> None:
    if not 0 <= number <= INT_MAX:
        raise WireError(path, f"{number}, expected 0 to 2^63 - 1")


def count_32(number: int, path: str) -> None:
    if not 0 <= number <= U32_MAX:
        raise WireError(path, f"{number}, expected 0 to 2^32 - 1")
