"""Records as columns and columns as records: what both the writer and the readers must spell alike.

Not SQL. Imports neither NumPy nor gRPC: the web process stays small. The invariant: `x_of(text(x)) == x`.
"""

import sys
from array import array
from collections.abc import Sequence
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
    return _JSON.encode(value).decode()


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
