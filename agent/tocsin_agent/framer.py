"""Measurements become frames: a dictionary of layouts, and per flush one dense section for each layout that has news.

Not the spool, and no clock: stamps and clocks come in. A series is found by the identity of its object (probes yield the
same one every time), so that a sample costs two array stores and no hash of strings. Series of one lane (what comes due
together) share layouts; a layout never changes, new series get a new one, and now and then the dictionary is rebuilt.
Invariant: every measurement `put` accepted is in exactly one frame of the next flush.
"""

from array import array
from collections.abc import Iterator
from math import isfinite
from typing import Protocol

from tocsin_agent.frame_size import FRAME_BUDGET, LAYOUT_BUDGET, SERIES_BYTES_MAX, event_bytes, fitted, series_bytes
from tocsin_proto.codec import WireError, layout_id
from tocsin_proto.columns import pack_i32, pack_u32
from tocsin_proto.layouts import check_layout
from tocsin_proto.limits import EVENTS_MAX, SECTIONS_MAX
from tocsin_proto.records import LAYOUT_SERIES_MAX, Clock, Event, Frame, Heartbeat, Layout, Section, Series, SeriesKind

SERIES_MAX = 50_000  # of one agent; more is refused, by name
EVENTS_BYTES_MAX = 4 * 1024 * 1024
TIME_GRAIN_MS = 20  # stamps this close share one: an offset column costs more than it tells
TIME_SPAN_MS = 86_400_000  # offsets are int32: a stepped clock starts a new section
STALE_MS = 3_600_000  # a series not seen for this long leaves at the next rebuild
SETTLED_MS = 60_000  # no new series for this long: worth putting the late ones beside the early ones
REBUILD_PAUSE_MS = 600_000

_Key = tuple[str, str, tuple[tuple[str, str], ...]]  # what a series is, whatever its unit or interval

COUNTER_BITS = {SeriesKind.COUNTER32: 32, SeriesKind.COUNTER64: 64}


class FrameSink(Protocol):
    """The spool, as the framer sees it."""

    def begin(self) -> None: ...
    def next_seq(self) -> tuple[int, int]: ...
    def declares(self, layout_id: int, /) -> bool: ...
    def append(self, frame: Frame, /) -> None: ...


class Framer:
    def __init__(self) -> None:
        self.events_dropped = 0
        self._tables: list[_Table] = []
        self._open: dict[str, _Table] = {}  # per lane the table that still takes new series
        self._slots: dict[
            int, tuple[_Table, int]
        ] = {}  # id(series): the table holds the object, so the id stays its own
        self._known: dict[_Key, tuple[_Table, int]] = {}
        self._closed: list[tuple[Layout, Section, int]] = []
        self._events: list[Event] = []
        self._events_bytes = 0
        self._grown_ms = 0
        self._rebuilt_ms: int | None = None

    @property
    def is_empty(self) -> bool:
        return not (self._events or self._closed or any(table.count for table in self._tables))

    @property
    def series_count(self) -> int:
        return len(self._known)

    def put(self, lane: str, series: Series, value: float | int | None, time_ms: int) -> str | None:
        """Takes one measurement; or says what is wrong with it, and it is gone."""
        slot = self._slots.get(id(series))
        if slot is None:
            try:
                slot = self._admit(lane, series)
            except WireError as error:
                return str(error)
        table, index = slot
        if table.present[index] or (table.count and abs(time_ms - table.first_ms) > TIME_SPAN_MS):
            self._close(table)
        try:
            return table.set(index, value, time_ms)
        except (TypeError, ValueError, OverflowError):
            return f"{series.metric}: {value!r} is no {series.kind.name.lower()}"

    def event(self, event: Event) -> None:
        """Takes one event; past EVENTS_MAX or EVENTS_BYTES_MAX in one flush the newest are dropped and counted."""
        if len(self._events) >= EVENTS_MAX or self._events_bytes >= EVENTS_BYTES_MAX:
            self.events_dropped += 1
            return
        event = fitted(event)
        self._events_bytes += event_bytes(event)
        self._events.append(event)

    def flush(self, sink: FrameSink, clock: Clock, heartbeat: Heartbeat | None = None) -> int:
        """Appends all that was put since the last flush, in as few frames as fit; returns how many."""
        for table in self._tables:
            table.touch(clock.mono_ms)
            self._close(table)
        sections, self._closed = self._closed, []
        events, self._events = self._events, []
        self._events_bytes = 0
        frames = 0
        for draft in _drafts(sink, sections, events, heartbeat):
            seq, follows = sink.next_seq()
            sink.append(
                Frame(
                    seq,
                    follows,
                    clock,
                    tuple(draft.layouts),
                    tuple(draft.sections),
                    tuple(draft.events),
                    (),
                    draft.beat,
                )
            )
            frames += 1
        if self._is_worth_rebuilding(clock.mono_ms):
            self._rebuild(clock.mono_ms)
        return frames

    def _admit(self, lane: str, series: Series) -> tuple["_Table", int]:
        """The place of a series object that was not seen before. WireError when the wire cannot carry it."""
        key = (series.resource, series.metric, series.labels)
        place = self._known.get(key)
        if place is not None:
            table, index = place
            self._slots.pop(id(table.series[index]), None)
            if table.series[index] == series:
                table.series[index] = series  # equal, another object: from now on this one is found
                self._slots[id(series)] = place
                return place
            # Another unit or interval under the old name: the old meaning is over. One layout cannot hold both.
            del self._known[key]
            if self._open.get(table.lane) is table:
                del self._open[table.lane]
            table.retired.add(index)
        check_layout(Layout(layout_id((series,)), (series,)), series.metric[:100])
        size = series_bytes(series)
        if size > SERIES_BYTES_MAX:
            raise WireError(series.metric, f"{size} bytes of names, at most {SERIES_BYTES_MAX}")
        if len(self._known) >= SERIES_MAX:
            raise WireError(series.metric, f"more than {SERIES_MAX} series")
        open_ = self._open.get(lane)
        if open_ is None or len(open_.series) >= LAYOUT_SERIES_MAX or open_.bytes + size > LAYOUT_BUDGET:
            open_ = self._open[lane] = _Table(lane)
            self._tables.append(open_)
        place = self._known[key] = self._slots[id(series)] = (open_, open_.add(series, size))
        self._grown_ms = -1  # the next flush dates it
        return place

    def _close(self, table: "_Table") -> None:
        """What the table holds becomes a section; from now on its layout is sealed."""
        if not table.count:
            return
        if self._open.get(table.lane) is table:
            del self._open[table.lane]
        layout = table.seal()
        self._closed.append((layout, table.take(), table.bytes))

    def _is_worth_rebuilding(self, mono_ms: int) -> bool:
        if self._grown_ms < 0:
            self._grown_ms = mono_ms
        if self._rebuilt_ms is None:
            self._rebuilt_ms = mono_ms - REBUILD_PAUSE_MS
        since_ms = mono_ms - self._rebuilt_ms
        if since_ms >= STALE_MS:
            return True
        scattered = len(self._tables) > len({table.lane for table in self._tables})
        return scattered and since_ms >= REBUILD_PAUSE_MS and mono_ms - self._grown_ms >= SETTLED_MS

    def _rebuild(self, mono_ms: int) -> None:
        """Each lane's living series side by side again. Only between flushes: no table holds a measurement now."""
        assert self.is_empty
        self._rebuilt_ms = mono_ms
        old, self._tables = self._tables, []
        self._open, self._slots, self._known = {}, {}, {}
        for table in old:
            for index, series in enumerate(table.series):
                if index not in table.retired and mono_ms - table.seen_ms[index] < STALE_MS:
                    home, place = self._admit(table.lane, series)
                    home.seen_ms[place] = table.seen_ms[index]
        self._open.clear()
        self._grown_ms = mono_ms


class _Table:
    """The columns of one layout, filled between two flushes."""

    def __init__(self, lane: str) -> None:
        self.lane = lane
        self.bytes = 0
        self.series: list[Series] = []
        self.retired: set[int] = set()
        self.count = 0
        self.first_ms = 0
        self.present = bytearray()
        self.seen_ms = array("q")
        self._layout: Layout | None = None
        self._limit: list[int] = []  # counters: first value beyond; else 0
        self._column: list[int] = []
        self._values = array("d")
        self._counters = array("Q")
        self._times = array("q")

    def add(self, series: Series, size: int) -> int:
        assert self._layout is None, series
        bits = COUNTER_BITS.get(series.kind)
        column = self._values if bits is None else self._counters
        self._limit.append(0 if bits is None else 1 << bits)
        self._column.append(len(column))
        column.append(0)
        self._times.append(0)
        self.seen_ms.append(0)
        self.present.append(0)
        self.series.append(series)
        self.bytes += size
        return len(self.series) - 1

    def set(self, index: int, value: float | int | None, time_ms: int) -> str | None:
        """Stores one value. NaN, infinities, None, fractions of counts and counts below zero have no meaning: refused."""
        limit = self._limit[index]
        if limit:
            if value != int(value) or not 0 <= value < limit:  # type: ignore[arg-type]
                return f"{self.series[index].metric}: {value!r}, expected a whole number from 0 below {limit}"
            self._counters[self._column[index]] = int(value)
        else:
            if not isfinite(value):  # type: ignore[arg-type]
                return f"{self.series[index].metric}: {value!r}, expected a finite number"
            self._values[self._column[index]] = value  # type: ignore[assignment]
        if not self.count:
            self.first_ms = time_ms
        self.count += 1
        self.present[index] = 1
        self._times[index] = time_ms
        return None

    def seal(self) -> Layout:
        if self._layout is None:
            series = tuple(self.series)
            self._layout = Layout(layout_id(series), series)
        return self._layout

    def touch(self, mono_ms: int) -> None:
        """Remembers which series were seen; before `take`, which forgets."""
        if self.count == len(self.series):
            self.seen_ms = array("q", [mono_ms]) * self.count
        elif self.count:
            for index, here in enumerate(self.present):
                if here:
                    self.seen_ms[index] = mono_ms

    def take(self) -> Section:
        """The values held, as a section; the table is empty afterwards."""
        assert self._layout is not None
        if self.count == len(self.series):
            section = self._section(self._times, self._values.tobytes(), self._counters.tobytes(), b"")
        else:
            here = [index for index, is_here in enumerate(self.present) if is_here]
            values = array("d", [self._values[self._column[i]] for i in here if not self._limit[i]])
            counters = array("Q", [self._counters[self._column[i]] for i in here if self._limit[i]])
            times = array("q", [self._times[i] for i in here])
            section = self._section(times, values.tobytes(), counters.tobytes(), pack_u32(here))
        self.present = bytearray(len(self.series))
        self.count = 0
        return section

    def _section(self, times: "array[int]", values: bytes, counters: bytes, indices: bytes) -> Section:
        assert self._layout is not None
        first, last = min(times), max(times)
        offsets = pack_i32([time - first for time in times]) if last - first > TIME_GRAIN_MS else b""
        return Section(self._layout.id, first, values, counters, indices, offsets)


class _Draft:
    """One frame in the making."""

    def __init__(self, beat: Heartbeat | None) -> None:
        self.layouts: list[Layout] = []
        self.sections: list[Section] = []
        self.events: list[Event] = []
        self.beat = beat
        self.bytes = 0


def _drafts(
    sink: FrameSink, sections: list[tuple[Layout, Section, int]], events: list[Event], beat: Heartbeat | None
) -> Iterator[_Draft]:
    """Cuts a flush into frames. The caller appends each before it takes the next: what a segment declares depends on it."""
    sink.begin()
    draft = _Draft(beat)
    for event in events:
        size = event_bytes(event)
        if draft.bytes + size > FRAME_BUDGET:
            yield draft
            sink.begin()
            draft = _Draft(None)
        draft.events.append(event)
        draft.bytes += size
    declared: set[int] = set()
    for layout, section, layout_bytes in sections:
        own = len(section.values) + len(section.counters) + len(section.indices) + len(section.offsets_ms) + 64
        declares = layout.id not in declared and not sink.declares(layout.id)
        size = own + (layout_bytes if declares else 0)
        if draft.bytes + size > FRAME_BUDGET or len(draft.sections) >= SECTIONS_MAX:
            yield draft
            sink.begin()
            draft, declared = _Draft(None), set()
            declares = not sink.declares(layout.id)
            size = own + (layout_bytes if declares else 0)
        if declares:
            draft.layouts.append(layout)
            declared.add(layout.id)
        draft.sections.append(section)
        draft.bytes += size
    if draft.sections or draft.events or draft.beat is not None:
        yield draft
