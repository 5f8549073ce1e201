"""The framer against the wire itself: what goes in comes out of the decoded bytes, no more, no less."""

import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tocsin_agent.framer import REBUILD_PAUSE_MS, SETTLED_MS, STALE_MS, TIME_GRAIN_MS, Framer
from tocsin_proto.codec import check_section, decode_frame, encode_frame
from tocsin_proto.columns import unpack_floats, unpack_i32, unpack_u32, unpack_u64
from tocsin_proto.limits import EVENTS_MAX
from tocsin_proto.records import FRAME_BYTES_MAX, Clock, Event, Frame, Heartbeat, Layout, Series, SeriesKind

WALL_MS = 1_800_000_000_000


class Sink:
    """A spool in memory that keeps bytes, and forgets what it declared when a segment begins."""

    def __init__(self, segment_frames: int = 1_000_000) -> None:
        self.raw: list[bytes] = []
        self._declared: set[int] = set()
        self._segment_frames = segment_frames
        self._began = 0

    def begin(self) -> None:
        if len(self.raw) - self._began >= self._segment_frames:
            self._declared.clear()
            self._began = len(self.raw)

    def next_seq(self) -> tuple[int, int]:
        return len(self.raw) + 1, len(self.raw)

    def declares(self, layout_id: int, /) -> bool:
        return layout_id in self._declared

    def append(self, frame: Frame, /) -> None:
        assert frame.seq == len(self.raw) + 1
        raw = encode_frame(frame)
        assert len(raw) <= FRAME_BYTES_MAX
        self._declared |= {layout.id for layout in frame.layouts}
        self.raw.append(raw)

    def frames(self) -> list[Frame]:
        return [decode_frame(raw) for raw in self.raw]


def measured(frames: list[Frame]) -> Counter:
    """Every (series, value, stamp) in the frames, read as the collector would."""
    layouts: dict[int, Layout] = {}
    found: Counter = Counter()
    for frame in frames:
        layouts |= {layout.id: layout for layout in frame.layouts}
        for section in frame.sections:
            layout = layouts[section.layout]
            check_section(section, layout)
            indices = unpack_u32(section.indices) if section.indices else range(len(layout.series))
            offsets = unpack_i32(section.offsets_ms) if section.offsets_ms else [0] * len(indices)
            values, counters = iter(unpack_floats(section.values)), iter(unpack_u64(section.counters))
            for index, offset in zip(indices, offsets, strict=True):
                series = layout.series[index]
                value = next(counters) if series.kind.is_counter else next(values)
                found[series, value, section.time_ms + offset] += 1
            assert next(values, None) is None
            assert next(counters, None) is None
    return found


def clock(mono_ms: int = 0) -> Clock:
    return Clock(WALL_MS + mono_ms, mono_ms, 7)


def gauge(name: str, *, resource: str = "", **labels: str) -> Series:
    return Series(resource, name, "1", SeriesKind.GAUGE, tuple(sorted(labels.items())), 10_000)


KINDS = st.sampled_from(list(SeriesKind))
POOL = st.lists(
    st.builds(
        lambda number, kind, resource: Series(resource, f"metric.{number}", "1", kind, (("n", str(number)),), 10_000),
        st.integers(0, 40),
        KINDS,
        st.sampled_from(["", "sw-1"]),
    ),
    min_size=1,
    max_size=30,
    unique_by=lambda series: (series.resource, series.metric),
)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_frames_decode_to_exactly_what_was_put(data):
    pool = data.draw(POOL)
    framer, sink, expected = Framer(), Sink(data.draw(st.integers(1, 5))), Counter()
    mono_ms = 0
    for _ in range(data.draw(st.integers(1, 8))):
        for _ in range(data.draw(st.integers(0, 20))):
            series = data.draw(st.sampled_from(pool))
            if data.draw(st.booleans()):  # an equal object that is not the same
                series = Series(*(getattr(series, name) for name in series.__struct_fields__))
            if series.kind.is_counter:
                value = data.draw(st.integers(0, 2**32 - 1 if series.kind is SeriesKind.COUNTER32 else 2**64 - 1))
            else:
                value = data.draw(st.floats(allow_nan=False, allow_infinity=False))
            # Stamps further apart than the grain are kept exactly; in between they may be taken together.
            time_ms = WALL_MS + mono_ms + data.draw(st.sampled_from([0, 100, 900, -50, 3 * 86_400_000]))
            assert framer.put(data.draw(st.sampled_from(["a", "b"])), series, value, time_ms) is None
            expected[series, value, time_ms] += 1
        framer.flush(sink, clock(mono_ms))
        assert framer.is_empty
        mono_ms += data.draw(st.sampled_from([1_000, SETTLED_MS, REBUILD_PAUSE_MS, STALE_MS]))
    assert measured(sink.frames()) == expected


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (SeriesKind.GAUGE, math.nan),
        (SeriesKind.GAUGE, math.inf),
        (SeriesKind.GAUGE, None),
        (SeriesKind.GAUGE, "12"),
        (SeriesKind.STATE, -math.inf),
        (SeriesKind.COUNTER64, -1),
        (SeriesKind.COUNTER64, 2**64),
        (SeriesKind.COUNTER64, 1.5),
        (SeriesKind.COUNTER64, math.nan),
        (SeriesKind.COUNTER64, math.inf),
        (SeriesKind.COUNTER64, None),
        (SeriesKind.COUNTER32, 2**32),
        (SeriesKind.GAUGE, 10**400),
    ],
)
def test_a_value_without_meaning_is_refused_by_name_and_harms_nothing_else(kind, value):
    framer, sink = Framer(), Sink()
    good, bad = gauge("good"), Series("", "bad", "1", kind, (), 10_000)
    assert framer.put("a", good, 1.0, WALL_MS) is None
    refused = framer.put("a", bad, value, WALL_MS)
    assert refused is not None
    assert "bad" in refused
    framer.flush(sink, clock())
    assert measured(sink.frames()) == Counter([(good, 1.0, WALL_MS)])


@pytest.mark.parametrize(
    "series",
    [
        Series("", "", "1", SeriesKind.GAUGE),
        Series("", "m" * 257, "1", SeriesKind.GAUGE),
        Series("", "m", "1", SeriesKind.GAUGE, (("b", "1"), ("a", "2"))),
        Series("", "m", "1", SeriesKind.GAUGE, tuple((f"l{n:02}", "字" * 250) for n in range(32))),
    ],
)
def test_a_series_the_wire_cannot_carry_is_refused_when_it_appears(series):
    framer = Framer()
    assert framer.put("a", series, 1.0, WALL_MS) is not None
    assert framer.is_empty
    assert framer.series_count == 0


def test_a_steady_host_is_one_dense_section_and_declares_its_layout_once():
    framer, sink = Framer(), Sink()
    pool = [gauge("cpu.used_ratio", cpu=str(n)) for n in range(200)]
    for mono_ms in range(0, 50_000, 10_000):
        for n, series in enumerate(pool):
            framer.put("host", series, n / 7, WALL_MS + mono_ms + n % TIME_GRAIN_MS)
        assert framer.flush(sink, clock(mono_ms)) == 1
    frames = sink.frames()
    assert [len(frame.layouts) for frame in frames] == [1, 0, 0, 0, 0]
    for frame in frames:
        (section,) = frame.sections
        assert (len(section.values), section.indices, section.offsets_ms) == (1600, b"", b"")


def test_a_new_segment_declares_again():
    framer, sink = Framer(), Sink(segment_frames=2)
    series = gauge("load.average")
    for mono_ms in range(0, 60_000, 10_000):
        framer.put("host", series, 1.0, WALL_MS)
        framer.flush(sink, clock(mono_ms))
    assert [len(frame.layouts) for frame in sink.frames()] == [1, 0, 1, 0, 1, 0]


def test_latecomers_move_beside_the_others_once_things_have_settled():
    framer, sink = Framer(), Sink()
    early, late = [gauge(f"e{n}") for n in range(5)], [gauge(f"l{n}") for n in range(3)]
    sections = []
    for turn in range(80):
        for series in early + (late if turn else []):
            framer.put("host", series, turn, WALL_MS)
        framer.flush(sink, clock(turn * 10_000))
        sections.append(len(sink.frames()[-1].sections))
    assert sections[0] == 1
    assert sections[1] == 2
    assert sections[-1] == 1


def test_a_series_not_seen_for_an_hour_leaves_and_the_rest_is_dense_again():
    framer, sink = Framer(), Sink()
    stays, leaves = gauge("stays"), gauge("leaves")
    framer.put("host", leaves, 1.0, WALL_MS)
    for mono_ms in range(0, 3 * STALE_MS, 60_000):
        framer.put("host", stays, 1.0, WALL_MS)
        framer.flush(sink, clock(mono_ms))
    assert framer.series_count == 1
    assert sink.frames()[-1].sections[0].indices == b""
    framer.put("host", leaves, 2.0, WALL_MS)  # it comes back: known again, nothing lost
    framer.flush(sink, clock(3 * STALE_MS))
    assert (leaves, 2.0, WALL_MS) in measured(sink.frames())


def test_a_series_under_the_same_name_with_another_unit_is_another_series():
    framer, sink = Framer(), Sink()
    old, new = gauge("m"), Series("", "m", "By", SeriesKind.GAUGE, (), 10_000)
    for series in (old, new, old, new):
        assert framer.put("a", series, 1.0, WALL_MS) is None
    framer.flush(sink, clock())
    assert measured(sink.frames()) == Counter({(old, 1.0, WALL_MS): 2, (new, 1.0, WALL_MS): 2})
    assert framer.series_count == 1


def test_a_large_flush_is_split_below_the_bound_and_nothing_is_lost():
    framer, sink = Framer(), Sink()
    pool = [gauge("if.in_bytes", interface=f"{'x' * 200}-{n}") for n in range(6_000)]
    for series in pool:
        framer.put("a", series, 2.0, WALL_MS)
    events = [Event("", "trap", "linkDown", WALL_MS, (("a", "v" * 8_000),), "t" * 8_000) for _ in range(100)]
    for event in events:
        framer.event(event)
    assert framer.flush(sink, clock(), Heartbeat()) > 5
    frames = sink.frames()
    assert sum(measured(frames).values()) == 6_000
    assert [event for frame in frames for event in frame.events] == events
    assert [frame.heartbeat is not None for frame in frames].count(True) == 1


@pytest.mark.parametrize(("text", "kept"), [("short", EVENTS_MAX), ("\ud800" * 9_999, 100)])
def test_events_are_bounded_cut_to_size_and_what_is_dropped_is_counted(text, kept):
    framer, sink = Framer(), Sink()
    fields = tuple((f"z{n}", "v" * 99_999) for n in range(400)) if kept < EVENTS_MAX else (("a", "b"),)
    for _ in range(EVENTS_MAX + 5):
        framer.event(Event("r" * 999, "trap", "", WALL_MS, fields, text))
    framer.flush(sink, clock())
    sent = sum(len(frame.events) for frame in sink.frames())
    assert kept // 2 <= sent <= kept
    assert sent + framer.events_dropped == EVENTS_MAX + 5
    framer.event(Event("", "trap", "next", WALL_MS))
    framer.flush(sink, clock())
    assert sink.frames()[-1].events[0].name == "next"


def test_nothing_to_say_is_no_frame_and_a_heartbeat_alone_is_one():
    framer, sink = Framer(), Sink()
    assert framer.flush(sink, clock()) == 0
    assert framer.flush(sink, clock(), Heartbeat(probe_errors=3)) == 1
    (frame,) = sink.frames()
    assert frame.heartbeat == Heartbeat(probe_errors=3)
