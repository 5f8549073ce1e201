"""Records as columns and columns as records: what both the writer and the readers must spell alike.

Not SQL. Imports neither NumPy nor gRPC: the web process stays small. The invariant: `x_of(text(x)) == x`, but for numbers
that are not finite, which JSON does not have.
"""

import sys
from array import array
from collections.abc import Sequence
from math import isfinite
from typing import Any

import msgspec

from tocsin_collector.core.model import Config, Incident, SeriesAdded, Step

SERIES_COLUMNS = "id, agent, device, metric, unit, kind, labels, states, interval_ms"

_JSON = msgspec.json.Encoder()
_CONFIG = msgspec.json.Decoder(Config)
_INCIDENT = msgspec.json.Decoder(Incident)
_FACTS = msgspec.json.Decoder(dict[str, str | int | float])
_LABELS = msgspec.json.Decoder(tuple[tuple[str, str], ...])
_STATES = msgspec.json.Decoder(tuple[tuple[int, str], ...])


def text(value: Any) -> str:
    """JSON that reads back. ValueError when a record would not: it holds a number that JSON has not, where one must stand."""
    encoded = _JSON.encode(value)
    if b"null" not in encoded:  # what a NaN or an infinity is written as
        return encoded.decode()
    if isinstance(value, msgspec.Struct):
        encoded = _finite(value)
    elif isinstance(value, dict):
        encoded = _JSON.encode(_without_them(value))
    return encoded.decode()


def _finite(value: msgspec.Struct) -> bytes:
    """The record with words for such numbers among its facts, and without the pairs of its evidence that hold one."""
    encoded = _JSON.encode(_without_them(msgspec.to_builtins(value)))
    try:
        msgspec.json.decode(encoded, type=type(value))
    except msgspec.ValidationError as exc:
        raise ValueError(f"{type(value).__name__} holds a number that cannot be stored: {exc}") from exc
    return encoded


def _without_them(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_them(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without_them(one) for one in value if not (isinstance(one, list | tuple) and any(map(_is_none, one)))]
    return str(value) if _is_none(value) else value


def _is_none(value: Any) -> bool:
    return isinstance(value, float) and not isfinite(value)


def config_of(body: str) -> Config:
    return _CONFIG.decode(body)


def incident_of(body: str) -> Incident:
    return _INCIDENT.decode(body)


def step_of(at_ms: int, kind: str, facts: str) -> Step:
    return Step(at_ms, kind, _FACTS.decode(facts))


def series_of(row: Sequence[Any]) -> SeriesAdded:
    """From SERIES_COLUMNS."""
    id, agent, device, metric, unit, kind, labels, states, interval_ms = row
    labels, states = _LABELS.decode(labels), _STATES.decode(states)
    return SeriesAdded(id, agent, device, metric, unit, kind, labels, states, interval_ms)


def pack_ids(ids: Sequence[int]) -> bytes:
    """int64, little-endian."""
    return _native(array("q", ids)).tobytes()


def unpack_ids(body: bytes) -> list[int]:
    return _native(array("q", body)).tolist()


def live_of(body: bytes) -> list[tuple[int, int, float]]:
    """(series id, time_ms, value) of a `live` row: n int64 ids, n int64 times, n float64 values."""
    n = len(body) // 24
    body = body[: 24 * n]
    values = _native(array("d", body[16 * n :])).tolist()
    return list(zip(unpack_ids(body[: 8 * n]), unpack_ids(body[8 * n : 16 * n]), values, strict=True))


def signed(layout: int) -> int:
    """A 64-bit layout id as SQLite keeps whole numbers."""
    return layout - (1 << 64) if layout >= 1 << 63 else layout


def unsigned(layout: int) -> int:
    return layout + (1 << 64) if layout < 0 else layout


def _native(numbers: "array[Any]") -> "array[Any]":
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers
