"""Records into empty wire messages and back, field by field.

Not the bytes (`codec`) and not the rules (`validity`); only what a record cannot hold - an unknown enum, a label without
value, a missing clock - is refused here. Invariant: `read_x` after `fill_x` gives the same record.
"""

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any, Final

from tocsin_proto import records as r
from tocsin_proto.limits import EVENTS_MAX, GAPS_MAX, LAYOUTS_MAX, SECTIONS_MAX, WireError

_KINDS: Final[Mapping[int, r.SeriesKind]] = {int(kind): kind for kind in r.SeriesKind}
_PARTS_MAX: Final = LAYOUTS_MAX + SECTIONS_MAX + EVENTS_MAX + GAPS_MAX
_HELLO_FLAT: Final = tuple(name for name in r.Hello.__struct_fields__ if name not in ("clock", "capabilities"))


# ------------------------------------------------------------------------------- records whose fields are the wire's


def reader(record: type[Any]) -> Callable[[Any], Any]:
    names = record.__struct_fields__
    if len(names) == 1:
        one = attrgetter(*names)
        return lambda wire: record(one(wire))
    several = attrgetter(*names)
    return lambda wire: record(*several(wire))


def fill_flat(record: Any, wire: Any) -> None:
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


def fill_frame(frame: r.Frame, wire: Any) -> None:
    wire.seq = frame.seq
    wire.follows = frame.follows
    _fill_clock(frame.clock, wire.clock)
    for layout in frame.layouts:
        _fill_layout(layout, wire.layouts.add())
    for section in frame.sections:
        fill_flat(section, wire.sections.add())
    for event in frame.events:
        _fill_event(event, wire.events.add())
    for gap in frame.gaps:
        fill_flat(gap, wire.gaps.add())
    if frame.heartbeat is not None:
        wire.heartbeat.SetInParent()
        fill_flat(frame.heartbeat, wire.heartbeat)


def read_frame(wire: Any) -> r.Frame:
    # Slices instead of iteration, and only of what is there: a repeated field is slow to iterate, even when empty.
    layouts, sections, events, gaps = wire.layouts, wire.sections, wire.events, wire.gaps
    some_layouts, some_sections, some_events, some_gaps = len(layouts), len(sections), len(events), len(gaps)
    if some_layouts + some_sections + some_events + some_gaps > _PARTS_MAX:
        # Before any record is made: an empty part is two bytes, and a full frame of them would hold the loop up.
        raise WireError("frame", f"more than {_PARTS_MAX} layouts, sections, events and gaps together")
    return r.Frame(
        wire.seq,
        wire.follows,
        _read_clock(wire, "frame"),
        tuple([_layout(one, n) for n, one in enumerate(layouts[:])]) if some_layouts else (),
        tuple([r.Section(*_read_section(one)) for one in sections[:]]) if some_sections else (),
        tuple([_event(one, n) for n, one in enumerate(events[:])]) if some_events else (),
        tuple([r.Gap(*_read_gap(one)) for one in gaps[:]]) if some_gaps else (),
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
    if len(wire.series) > r.LAYOUT_SERIES_MAX:
        problem = f"{len(wire.series)} series, expected 1 to {r.LAYOUT_SERIES_MAX}"
        raise WireError(f"frame.layouts[{n}].series", problem)
    return r.Layout(wire.id, tuple([_series(one, n, k) for k, one in enumerate(wire.series[:])]))


def _series(wire: Any, n: int, k: int) -> r.Series:
    # A layout has up to a thousand series: paths are made only for what is refused.
    kind = _KINDS.get(wire.kind)
    if kind is None:
        known = ", ".join(map(str, _KINDS))
        raise WireError(f"frame.layouts[{n}].series[{k}].kind", f"{wire.kind}, expected one of {known}")
    labels, states = wire.labels, wire.states
    try:
        return r.Series(
            wire.resource,
            wire.metric,
            wire.unit,
            kind,
            _pairs(labels[:], "labels") if labels else (),
            wire.interval_ms,
            tuple([_state(text, f"states[{m}]") for m, text in enumerate(states[:])]) if states else (),
        )
    except WireError as exc:
        raise WireError(f"frame.layouts[{n}].series[{k}].{exc.path}", exc.problem) from None


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


def fill_hello(hello: r.Hello, wire: Any) -> None:
    for name in _HELLO_FLAT:
        setattr(wire, name, getattr(hello, name))
    _fill_clock(hello.clock, wire.clock)
    wire.capabilities.extend(hello.capabilities)


def read_hello(wire: Any) -> r.Hello:
    flat = {name: getattr(wire, name) for name in _HELLO_FLAT}
    return r.Hello(clock=_read_clock(wire, "hello"), capabilities=tuple(wire.capabilities[:]), **flat)


def fill_pulse(pulse: r.Pulse, wire: Any) -> None:
    _fill_clock(pulse.clock, wire.clock)
    wire.backlog_bytes, wire.last_seq = pulse.backlog_bytes, pulse.last_seq


def read_pulse(wire: Any) -> r.Pulse:
    return r.Pulse(_read_clock(wire, "pulse"), wire.backlog_bytes, wire.last_seq)


def read_report(wire: Any) -> r.AssignmentReport:
    return r.AssignmentReport(wire.etag, tuple(wire.refused[:]))


def fill_assignment(assignment: r.Assignment, wire: Any) -> None:
    wire.etag = assignment.etag
    for device in assignment.devices:
        fill_flat(device, wire.devices.add())


def read_assignment(wire: Any) -> r.Assignment:
    return r.Assignment(wire.etag, tuple([r.AssignedDevice(*_read_device(one)) for one in wire.devices[:]]))
