"""Columns of a Section: numbers to dense little-endian bytes and back, on any host, without NumPy.

Not for the collector's hot path, which reads the same bytes with `numpy.frombuffer`.
Invariant: `unpack_x(pack_x(numbers))` gives the same numbers, whatever the byte order of the host.
"""

import sys
from array import array
from collections.abc import Iterable
from typing import Any, Final

_SWAPPED: Final = sys.byteorder == "big"
_U32: Final = "I" if array("I").itemsize == 4 else "L"
_I32: Final = "i" if array("i").itemsize == 4 else "l"


def pack_floats(numbers: Iterable[float]) -> bytes:
    """float64, 8 bytes each."""
    return _pack("d", numbers)


def pack_u64(numbers: Iterable[int]) -> bytes:
    """uint64, 8 bytes each; OverflowError below 0 or from 2^64 on."""
    return _pack("Q", numbers)


def pack_u32(numbers: Iterable[int]) -> bytes:
    """uint32, 4 bytes each; OverflowError below 0 or from 2^32 on."""
    return _pack(_U32, numbers)


def pack_i32(numbers: Iterable[int]) -> bytes:
    """int32, 4 bytes each; OverflowError outside -2^31 .. 2^31 - 1."""
    return _pack(_I32, numbers)


def unpack_floats(column: bytes) -> "array[float]":
    return _unpack("d", column)


def unpack_u64(column: bytes) -> "array[int]":
    return _unpack("Q", column)


def unpack_u32(column: bytes) -> "array[int]":
    return _unpack(_U32, column)


def unpack_i32(column: bytes) -> "array[int]":
    return _unpack(_I32, column)


def _pack(code: str, numbers: Iterable[Any]) -> bytes:
    if isinstance(numbers, array) and numbers.typecode == code and not _SWAPPED:
        return numbers.tobytes()
    column: array[Any] = array(code, numbers)
    if _SWAPPED:
        column.byteswap()
    return column.tobytes()


def _unpack(code: str, column: bytes) -> "array[Any]":
    """ValueError unless `column` is a whole number of items."""
    numbers: array[Any] = array(code)
    numbers.frombytes(column)
    if _SWAPPED:
        numbers.byteswap()
    return numbers
