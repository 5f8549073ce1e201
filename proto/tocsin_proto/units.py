"""Quantities as people write them: "10s", "256MiB", "99.9%" - parsed, computed with, and written back.

Not calendar arithmetic: a day here is 24 hours. Invariant: `Unit(str(quantity)) == quantity`.
"""

import re
from fractions import Fraction
from typing import ClassVar, Final, Self

DURATION_MS_MAX: Final = 3650 * 86_400_000
SIZE_BYTES_MAX: Final = 2**60

_MS: Final = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}
_BYTES: Final = {
    "TiB": 2**40,
    "GiB": 2**30,
    "MiB": 2**20,
    "KiB": 2**10,
    "TB": 10**12,
    "GB": 10**9,
    "MB": 10**6,
    "kB": 10**3,
    "KB": 10**3,
    "B": 1,
}
_DURATION: Final = re.compile(r"(?:\d{1,15}(?:\.\d{1,6})? ?(?:ms|[smhd]) ?)+", re.ASCII)
_PART: Final = re.compile(r"(\d+(?:\.\d+)?) ?(ms|[smhd])", re.ASCII)
_SIZE: Final = re.compile(r"(\d{1,19}(?:\.\d{1,6})?) ?([KMGT]iB|[kKMGT]B|B)", re.ASCII)
_RATIO: Final = re.compile(r"(\d{1,3}(?:\.\d{1,9})?) ?%", re.ASCII)


class Duration(int):
    """Milliseconds, written "500ms", "10s", "5m", "2h", "7d" or "1h30m". From a text, or from a number of milliseconds."""

    EXPECTED: ClassVar[str] = 'a duration such as "500ms", "10s", "5m", "2h" or "7d"'

    def __new__(cls, quantity: str | int) -> Self:
        return super().__new__(cls, _duration_ms(quantity) if isinstance(quantity, str) else quantity)

    @classmethod
    def parse(cls, written: object) -> Self:
        """From a settings file. ValueError says what would be right: a number without unit is refused."""
        if isinstance(written, int | float) and not isinstance(written, bool):
            raise ValueError(f'{written} has no unit, write "{written:g}s", "{written:g}m" or "{written:g}ms"')
        if not isinstance(written, str):
            raise ValueError(f"expected {cls.EXPECTED}")
        return cls(written)

    def __str__(self) -> str:
        rest, parts = abs(int(self)), []
        for unit, size in _MS.items():
            count, rest = divmod(rest, size)
            if count:
                parts.append(f"{count}{unit}")
        return "-" * (self < 0) + ("".join(parts) or "0s")

    def __repr__(self) -> str:
        return f"Duration({str(self)!r})" if self >= 0 else f"Duration({int(self)})"

    def __format__(self, spec: str) -> str:
        return format(int(self), spec) if spec else str(self)


class Size(int):
    """Bytes, written "512B", "64KB", "256MiB" or "8GiB". From a text, or from a number of bytes."""

    EXPECTED: ClassVar[str] = 'a size such as "64KiB", "256MiB" or "8GB"'

    def __new__(cls, quantity: str | int) -> Self:
        return super().__new__(cls, _size_bytes(quantity) if isinstance(quantity, str) else quantity)

    @classmethod
    def parse(cls, written: object) -> Self:
        """From a settings file. ValueError says what would be right: a number without unit is refused."""
        if isinstance(written, int | float) and not isinstance(written, bool):
            raise ValueError(f'{written} has no unit, write "{written:g}MiB", "{written:g}KiB" or "{written:g}B"')
        if not isinstance(written, str):
            raise ValueError(f"expected {cls.EXPECTED}")
        return cls(written)

    def __str__(self) -> str:
        if not self:
            return "0B"
        number = int(self)
        return next(f"{number // size}{unit}" for unit, size in _BYTES.items() if number % size == 0)

    def __repr__(self) -> str:
        return f"Size({str(self)!r})" if self >= 0 else f"Size({int(self)})"

    def __format__(self, spec: str) -> str:
        return format(int(self), spec) if spec else str(self)


class Ratio(float):
    """A share of the whole, 0 to 1, written 0.85 or "85%"."""

    EXPECTED: ClassVar[str] = 'a share such as 0.85 or "85%"'

    def __new__(cls, quantity: str | float) -> Self:
        return super().__new__(cls, _ratio(quantity) if isinstance(quantity, str) else quantity)

    @classmethod
    def parse(cls, written: object) -> Self:
        """From a settings file: a text in percent or a number from 0 to 1. ValueError says what would be right."""
        if isinstance(written, bool) or not isinstance(written, str | int | float):
            raise ValueError(f"expected {cls.EXPECTED}")
        if not isinstance(written, str) and not 0 <= written <= 1:
            raise ValueError(f"{written} is not from 0 to 1, write {cls.EXPECTED.removeprefix('a share such as ')}")
        return cls(written)

    def __str__(self) -> str:
        percent = f"{float(self) * 100:.9f}".rstrip("0").rstrip(".") + "%"
        # Nine digits of percent are what the text form can hold; anything finer stays a plain number.
        return percent if _RATIO.fullmatch(percent) and _ratio(percent) == float(self) else repr(float(self))

    def __repr__(self) -> str:
        return f"Ratio({float(self)!r})"

    def __format__(self, spec: str) -> str:
        return format(float(self), spec) if spec else str(self)


def _duration_ms(written: str) -> int:
    if not _DURATION.fullmatch(written):
        raise ValueError(f'"{written[:40]}" is not {Duration.EXPECTED}')
    total = sum(Fraction(number) * _MS[unit] for number, unit in _PART.findall(written))
    if total.denominator != 1:
        raise ValueError(f'"{written[:40]}" is finer than a millisecond, write whole milliseconds')
    if total > DURATION_MS_MAX:
        raise ValueError(f'"{written[:40]}" is too long, at most "{DURATION_MS_MAX // _MS["d"]}d"')
    return int(total)


def _size_bytes(written: str) -> int:
    found = _SIZE.fullmatch(written)
    if not found:
        raise ValueError(f'"{written[:40]}" is not {Size.EXPECTED}')
    total = Fraction(found[1]) * _BYTES[found[2]]
    if total.denominator != 1:
        raise ValueError(f'"{written[:40]}" is not a whole number of bytes')
    if total > SIZE_BYTES_MAX:
        raise ValueError(f'"{written[:40]}" is too large, at most "{SIZE_BYTES_MAX // 2**40}TiB"')
    return int(total)


def _ratio(written: str) -> float:
    found = _RATIO.fullmatch(written)
    if not found:
        raise ValueError(f'"{written[:40]}" is not {Ratio.EXPECTED}')
    share = Fraction(found[1]) / 100
    if share > 1:
        raise ValueError(f'"{written[:40]}" is more than the whole, write at most "100%"')
    return float(share)
