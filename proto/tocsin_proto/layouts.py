"""Layouts: their name, their rules, and what they demand of a section.

Not where layouts are kept: the agent's spool and the collector's catalogue do that, each in its own way.
Invariant: equal content, equal id, on every machine and in every version.
"""

from hashlib import blake2b

from tocsin_proto import records as r
from tocsin_proto.columns import unpack_u32
from tocsin_proto.limits import LABELS_MAX, STATE_MAX, STATE_MIN, STATES_MAX, U32_MAX, WireError, name_text, named


class Shape(r.Record, frozen=True):
    """What a Layout demands of a Section: which series are counters, and how many of each kind there are."""

    id: int
    counter: tuple[bool, ...]
    values: int
    counters: int


def layout_id(series: tuple[r.Series, ...]) -> int:
    """The name of a layout: 63 bits of BLAKE2b over its content, never 0.

    63, so that it fits a signed 64-bit column. Every word goes in behind its length, so that no two contents share
    one encoding. The result is on disk everywhere: changing this function is a new protocol version.
    """
    content: list[str] = []
    for one in series:
        words = [one.resource, one.metric, one.unit, f"{one.kind:d}", f"{one.interval_ms}", f"{len(one.labels)}"]
        words += [word for label in one.labels for word in label]
        words += [f"{number}={name}" for number, name in one.states]
        content.append(f"{len(words)};")
        content += [f"{len(word)}:{word}" for word in words]
    digest = blake2b("".join(content).encode(), digest_size=8, person=b"tocsin.layout.1").digest()
    return int.from_bytes(digest, "big") >> 1 or 1


def shape_of(layout: r.Layout) -> Shape:
    counter = tuple(one.kind in (r.SeriesKind.COUNTER32, r.SeriesKind.COUNTER64) for one in layout.series)
    return Shape(id=layout.id, counter=counter, values=counter.count(False), counters=counter.count(True))


def check_section(section: r.Section, layout: r.Layout, path: str = "section") -> None:
    """Hold a section against its layout. WireError. Whoever checks many keeps the `Shape` and calls `check_shape`."""
    check_shape(section, shape_of(layout), path)


def check_shape(section: r.Section, shape: Shape, path: str = "section") -> None:
    """Hold a section, already sound in itself, against the shape of its layout. WireError."""
    if section.layout != shape.id:
        raise WireError(f"{path}.layout", f"{section.layout:#x}, expected {shape.id:#x}")
    values, counters, samples = shape.values, shape.counters, len(shape.counter)
    if section.indices:
        indices = unpack_u32(section.indices)
        if indices[-1] >= samples:
            raise WireError(f"{path}.indices", f"{indices[-1]}, but layout {shape.id:#x} has {samples} series")
        samples = len(indices)
        counters = sum(map(shape.counter.__getitem__, indices))
        values = samples - counters
    if len(section.values) != 8 * values:
        raise _length(f"{path}.values", section.values, 8, values, shape.id)
    if len(section.counters) != 8 * counters:
        raise _length(f"{path}.counters", section.counters, 8, counters, shape.id)
    if section.offsets_ms and len(section.offsets_ms) != 4 * samples:
        raise _length(f"{path}.offsets_ms", section.offsets_ms, 4, samples, shape.id)


def _length(path: str, column: bytes, size: int, items: int, layout: int) -> WireError:
    return WireError(path, f"{len(column)} bytes, expected {size * items} ({size} per series of layout {layout:#x})")


def check_layout(layout: r.Layout, path: str) -> None:
    if not 0 < len(layout.series) <= r.LAYOUT_SERIES_MAX:
        raise WireError(f"{path}.series", f"{len(layout.series)} series, expected 1 to {r.LAYOUT_SERIES_MAX}")
    seen: dict[tuple[str, str, tuple[tuple[str, str], ...]], int] = {}
    for n, one in enumerate(layout.series):
        try:
            _series(one)
        except WireError as exc:
            raise WireError(f"{path}.series[{n}].{exc.path}", exc.problem) from None
        first = seen.setdefault((one.resource, one.metric, one.labels), n)
        if first != n:
            raise WireError(f"{path}.series[{n}]", f"the same series as series[{first}]")
    expected = layout_id(layout.series)
    if layout.id != expected:
        raise WireError(f"{path}.id", f"{layout.id:#x}, expected {expected:#x} (the hash of its content)")


def _series(series: r.Series) -> None:
    """WireError with a path inside the series: a layout has up to a thousand, whose paths are rarely needed."""
    name_text(series.resource, "resource")
    named(series.metric, "metric")
    name_text(series.unit, "unit")
    if not isinstance(series.kind, r.SeriesKind):
        raise WireError("kind", f"{series.kind}, expected one of {', '.join(str(int(k)) for k in r.SeriesKind)}")
    if not 0 <= series.interval_ms <= U32_MAX:
        raise WireError("interval_ms", f"{series.interval_ms}, expected 0 to {U32_MAX} ms")
    if len(series.labels) > LABELS_MAX:
        raise WireError("labels", f"{len(series.labels)}, at most {LABELS_MAX}")
    last = ""
    for n, (name, value) in enumerate(series.labels):
        named(name, f"labels[{n}] name")
        name_text(value, f"labels[{n}] value")
        if name <= last:
            raise WireError(f"labels[{n}]", f'"{name}" after "{last}", expected names in order, each once')
        last = name
    if len(series.states) > STATES_MAX:
        raise WireError("states", f"{len(series.states)}, at most {STATES_MAX}")
    for n, (number, name) in enumerate(series.states):
        named(name, f"states[{n}] name")
        if not STATE_MIN <= number <= STATE_MAX:
            raise WireError(f"states[{n}]", f"{number}, expected a signed 32-bit number")
