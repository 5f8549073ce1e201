"""The codec: what goes in comes out, whatever is damaged is refused by name, and no bytes raise anything but WireError."""

import random
import struct
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from google.protobuf.internal import api_implementation
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tocsin_proto import codec, columns
from tocsin_proto import records as r
from tocsin_proto.limits import EVENTS_MAX, INT_MAX, NAME_CHARS_MAX, TEXT_CHARS_MAX, TIME_MS_MAX, TIME_MS_MIN
from tocsin_proto.v1 import tocsin_pb2 as pb

counts = st.integers(0, INT_MAX)
small = st.integers(0, 2**32 - 1)
times = st.integers(TIME_MS_MIN, TIME_MS_MAX)
names = st.text(min_size=1, max_size=12)
words = st.text(max_size=12)
clocks = st.builds(r.Clock, wall_ms=times, mono_ms=st.integers(0, TIME_MS_MAX), boot=st.integers(0, 2**64 - 1))
labels = st.dictionaries(names, words, max_size=3).map(lambda found: tuple(sorted(found.items())))
states = st.lists(st.tuples(st.integers(-(2**31), 2**31 - 1), names), max_size=3).map(tuple)
series = st.builds(
    r.Series,
    resource=words,
    metric=names,
    unit=words,
    kind=st.sampled_from(r.SeriesKind),
    labels=labels,
    interval_ms=small,
    states=states,
)


def layout_of(found: list[r.Series]) -> r.Layout:
    return r.Layout(id=codec.layout_id(tuple(found)), series=tuple(found))


layouts = st.lists(series, min_size=1, max_size=4, unique_by=lambda s: (s.resource, s.metric, s.labels)).map(layout_of)


@st.composite
def sections(draw: st.DrawFn) -> r.Section:
    values = draw(st.lists(st.floats(), max_size=5))
    counters = draw(st.lists(st.integers(0, 2**64 - 1), min_size=0 if values else 1, max_size=5))
    samples = len(values) + len(counters)
    indices = draw(st.none() | st.lists(small, min_size=samples, max_size=samples, unique=True))
    offsets = draw(st.none() | st.lists(st.integers(-(2**31), 2**31 - 1), min_size=samples, max_size=samples))
    return r.Section(
        layout=draw(st.integers(1, INT_MAX)),
        time_ms=draw(times),
        values=codec.pack_floats(values),
        counters=codec.pack_u64(counters),
        indices=codec.pack_u32(sorted(indices or [])),
        offsets_ms=codec.pack_i32(offsets or []),
    )


fields = st.lists(st.tuples(names, words), max_size=4).map(lambda found: tuple(sorted(found)))
events = st.builds(r.Event, resource=words, source=names, name=names, time_ms=times, fields=fields, text=words)
spans = st.tuples(st.integers(1, INT_MAX), st.integers(1, INT_MAX)).map(sorted) | st.just([0, 0])
gaps = st.builds(
    lambda span, **rest: r.Gap(first_seq=span[0], last_seq=span[1], **rest),
    spans,
    from_ms=times,
    to_ms=times,
    reason=words,
    frames=counts,
)
heartbeats = st.builds(r.Heartbeat, *[counts] * 4)


@st.composite
def frames(draw: st.DrawFn) -> r.Frame:
    seq = draw(st.integers(1, INT_MAX))
    return r.Frame(
        seq=seq,
        follows=draw(st.integers(0, seq - 1)),
        clock=draw(clocks),
        layouts=tuple(draw(st.lists(layouts, max_size=2))),
        sections=tuple(draw(st.lists(sections(), max_size=3))),
        events=tuple(draw(st.lists(events, max_size=2))),
        gaps=tuple(draw(st.lists(gaps, max_size=2))),
        heartbeat=draw(st.none() | heartbeats),
    )


@st.composite
def hellos(draw: st.DrawFn) -> r.Hello:
    last = draw(counts)
    low, high = sorted(draw(st.tuples(st.integers(1, 9), st.integers(1, 9))))
    return r.Hello(
        protocol_min=low,
        protocol_max=high,
        version=draw(words),
        spool_id=draw(st.binary(min_size=16, max_size=16)),
        first_unacked=draw(st.integers(1, last + 1)),
        last_seq=last,
        clock=draw(clocks),
        capabilities=tuple(draw(st.lists(names, max_size=3))),
        assignment_etag=draw(words),
        hostname=draw(words),
    )


agent_messages = st.one_of(
    hellos(),
    frames(),
    st.builds(r.Pulse, clock=clocks, backlog_bytes=counts, last_seq=counts),
    st.builds(r.AssignmentReport, etag=words, refused=st.lists(words, max_size=3).map(tuple)),
    st.builds(r.ProbeAnswer, request=counts, reachable=st.booleans(), detail=words),
)
devices = st.builds(r.AssignedDevice, id=names, address=words, kind=names, settings=st.binary(max_size=40))
collector_messages = st.one_of(
    st.builds(
        r.Welcome,
        protocol=st.integers(1, 9),
        resume_from=st.integers(1, INT_MAX),
        credit_bytes=small,
        frame_bytes_max=small,
        time_ms=times,
        assignment_etag=words,
        agent=words,
    ),
    st.builds(r.Ack, seq=counts),
    st.builds(r.Nack, expected=counts),
    st.builds(r.Reject, seq=counts, code=names, detail=words),
    st.builds(r.Assignment, etag=words, devices=st.lists(devices, max_size=3).map(tuple)),
    st.builds(r.Drain, reconnect_after_ms=small),
    st.builds(r.Revoked, reason=words),
    st.builds(r.Credit, bytes=small),
    st.builds(r.ProbeRequest, request=counts, resource=words),
)

quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@quick
@given(agent_messages)
def test_every_agent_message_comes_back_as_it_went(message: r.AgentMessage) -> None:
    assert codec.decode_agent(codec.encode_agent(message)) == message


@quick
@given(collector_messages)
def test_every_collector_message_comes_back_as_it_went(message: r.CollectorMessage) -> None:
    assert codec.decode_collector(codec.encode_collector(message)) == message


@quick
@given(frames())
def test_a_wrapped_frame_is_the_agent_message_of_that_frame(frame: r.Frame) -> None:
    raw = codec.encode_frame(frame)
    assert codec.decode_frame(raw) == frame
    assert codec.wrap_frame(raw) == codec.encode_agent(frame)


@quick
@given(agent_messages, collector_messages, st.randoms(use_true_random=False))
def test_damaged_bytes_give_wire_error_or_a_message_that_is_sound(
    agent: r.AgentMessage, collector: r.CollectorMessage, luck: random.Random
) -> None:
    for raw, decode, encode in (
        (codec.encode_agent(agent), codec.decode_agent, codec.encode_agent),
        (codec.encode_collector(collector), codec.decode_collector, codec.encode_collector),
        (codec.encode_agent(agent)[3:], codec.decode_frame, codec.encode_frame),
    ):
        for _ in range(8):
            survives(damage(raw, luck), decode, encode)


@quick
@given(st.binary(max_size=200))
def test_arbitrary_bytes_give_wire_error_or_a_message_that_is_sound(raw: bytes) -> None:
    survives(raw, codec.decode_agent, codec.encode_agent)
    survives(raw, codec.decode_collector, codec.encode_collector)
    survives(raw, codec.decode_frame, codec.encode_frame)


def survives(raw: bytes, decode: Callable[[bytes], Any], encode: Callable[[Any], bytes]) -> None:
    try:
        message = decode(raw)
    except codec.WireError:
        return
    assert decode(encode(message)) == message


def damage(raw: bytes, luck: random.Random) -> bytes:
    damaged = bytearray(raw)
    for _ in range(luck.randint(1, 3)):
        if not damaged:
            break
        at = luck.randrange(len(damaged))
        match luck.randrange(4):
            case 0:
                del damaged[at:]
            case 1:
                damaged[at] ^= 1 << luck.randrange(8)
            case 2:
                damaged[at:at] = luck.randbytes(luck.randint(1, 9))
            case _:
                del damaged[at : at + luck.randint(1, 9)]
    return bytes(damaged)


CLOCK = r.Clock(wall_ms=1_700_000_000_000, mono_ms=5, boot=7)
SERIES = (
    r.Series(resource="", metric="cpu.used_ratio", unit="1", kind=r.SeriesKind.GAUGE),
    r.Series(resource="", metric="if.in_bytes", unit="By", kind=r.SeriesKind.COUNTER64, labels=(("if", "eth0"),)),
    r.Series(resource="", metric="if.oper", unit="1", kind=r.SeriesKind.STATE, states=((1, "up"), (2, "down"))),
)
LAYOUT = r.Layout(id=codec.layout_id(SERIES), series=SERIES)
SECTION = r.Section(layout=LAYOUT.id, time_ms=9, values=bytes(16), counters=bytes(8))
FRAME = r.Frame(seq=2, follows=1, clock=CLOCK, layouts=(LAYOUT,), sections=(SECTION,))
EVENT = r.Event(resource="", source="trap", name="linkDown", time_ms=1)
HELLO = r.Hello(
    protocol_min=1, protocol_max=1, version="1", spool_id=bytes(16), first_unacked=1, last_seq=0, clock=CLOCK
)


def changed(**fields: Any) -> r.Frame:
    return msgspec.structs.replace(FRAME, **fields)


def with_section(**fields: Any) -> r.Frame:
    return changed(sections=(msgspec.structs.replace(SECTION, **fields),))


def with_series(one: r.Series, **fields: Any) -> r.Frame:
    found = (msgspec.structs.replace(one, **fields),)
    return changed(layouts=(r.Layout(id=codec.layout_id(found), series=found),))


REFUSED: dict[str, tuple[r.AgentMessage, str]] = {
    "sequence number 0": (changed(seq=0, follows=0), "frame.seq: 0, expected 1 to 2^63 - 1"),
    "sequence number beyond the store": (changed(seq=2**63), f"frame.seq: {2**63}, expected 1 to 2^63 - 1"),
    "follows itself": (changed(follows=2), "frame.follows: 2, expected less than seq 2"),
    "a clock beyond the calendar": (
        changed(clock=r.Clock(TIME_MS_MAX + 1, 0, 0)),
        f"frame.clock.wall_ms: {TIME_MS_MAX + 1}, expected Unix milliseconds in the years 1 to 9999",
    ),
    "a section time beyond the calendar": (
        with_section(time_ms=TIME_MS_MIN - 1),
        f"frame.sections[0].time_ms: {TIME_MS_MIN - 1}, expected Unix milliseconds in the years 1 to 9999",
    ),
    "half a value": (with_section(values=bytes(12)), "frame.sections[0].values: 12 bytes, expected a multiple of 8"),
    "half a counter": (
        with_section(counters=bytes(9)),
        "frame.sections[0].counters: 9 bytes, expected a multiple of 8",
    ),
    "a section of nothing": (
        with_section(values=b"", counters=b""),
        "frame.sections[0]: 0 samples, expected 1 to 1000",
    ),
    "a section of more than a layout can hold": (
        with_section(values=bytes(8 * 1000)),
        "frame.sections[0]: 1001 samples, expected 1 to 1000",
    ),
    "fewer indices than samples": (
        with_section(indices=bytes(8)),
        "frame.sections[0].indices: 8 bytes, expected 12 (4 per sample)",
    ),
    "more offsets than samples": (
        with_section(offsets_ms=bytes(16)),
        "frame.sections[0].offsets_ms: 16 bytes, expected 12 (4 per sample)",
    ),
    "indices out of order": (
        with_section(indices=codec.pack_u32([0, 2, 2])),
        "frame.sections[0].indices: not strictly increasing",
    ),
    "a section without a layout": (
        with_section(layout=0),
        "frame.sections[0].layout: 0x0, expected a layout id (1 to 2^63 - 1)",
    ),
    "a layout under another name": (
        changed(layouts=(r.Layout(id=1, series=SERIES),)),
        f"frame.layouts[0].id: 0x1, expected {LAYOUT.id:#x} (the hash of its content)",
    ),
    "a layout of nothing": (
        changed(layouts=(r.Layout(id=1, series=()),)),
        "frame.layouts[0].series: 0 series, expected 1 to 1000",
    ),
    "a layout beyond its bound": (
        changed(layouts=(r.Layout(id=1, series=SERIES * 334),)),
        "frame.layouts[0].series: 1002 series, expected 1 to 1000",
    ),
    "one series twice": (
        changed(layouts=(layout_of([SERIES[0], SERIES[1], SERIES[0]]),)),
        "frame.layouts[0].series[2]: the same series as series[0]",
    ),
    "labels out of order": (
        with_series(SERIES[0], labels=(("b", ""), ("a", ""))),
        'frame.layouts[0].series[0].labels[1]: "a" after "b", expected names in order, each once',
    ),
    "a label twice": (
        with_series(SERIES[0], labels=(("a", "1"), ("a", "2"))),
        'frame.layouts[0].series[0].labels[1]: "a" after "a", expected names in order, each once',
    ),
    "a series without a metric": (
        with_series(SERIES[0], metric=""),
        "frame.layouts[0].series[0].metric: empty, expected 1 to 256 characters",
    ),
    "a resource too long": (
        with_series(SERIES[0], resource="x" * (NAME_CHARS_MAX + 1)),
        "frame.layouts[0].series[0].resource: 257 characters, at most 256",
    ),
    "a text that is not Unicode": (
        changed(events=(msgspec.structs.replace(EVENT, text="mount \udcff"),)),
        "frame.events[0].text: not Unicode text (lone surrogate)",
    ),
    "an event text too long": (
        changed(events=(msgspec.structs.replace(EVENT, text="x" * (TEXT_CHARS_MAX + 1)),)),
        "frame.events[0].text: 8193 characters, at most 8192",
    ),
    "event fields out of order": (
        changed(events=(msgspec.structs.replace(EVENT, fields=(("b", ""), ("a", ""))),)),
        'frame.events[0].fields[1]: "a" after "b", expected fields sorted by name',
    ),
    "too many layouts": (changed(layouts=(LAYOUT,) * 1001), "frame.layouts: 1001, at most 1000"),
    "too many events": (changed(events=(EVENT,) * (EVENTS_MAX + 1)), "frame.events: 1001, at most 1000"),
    "a gap that ends before it begins": (
        changed(gaps=(r.Gap(5, 4, 0, 0, ""),)),
        "frame.gaps[0]: seq 5 to 4, expected first <= last, or 0 and 0",
    ),
    "a spool id of another length": (
        msgspec.structs.replace(HELLO, spool_id=bytes(15)),
        "hello.spool_id: 15 bytes, expected 16",
    ),
    "a spool that holds what was never written": (
        msgspec.structs.replace(HELLO, first_unacked=2),
        "hello.first_unacked: 2, expected 1 to last_seq + 1",
    ),
    "a protocol range upside down": (
        msgspec.structs.replace(HELLO, protocol_min=2),
        "hello.protocol_min: 2 to 1, expected 1 <= min <= max",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_message_that_breaks_a_rule_is_not_encoded(case: str) -> None:
    message, expected = REFUSED[case]
    with pytest.raises(codec.WireError) as refused:
        codec.encode_agent(message)
    assert str(refused.value) == expected


def frame_with(fill: Callable[[Any], object]) -> bytes:
    """A sound frame on the wire, changed by `fill` behind the back of the encoder."""
    wire = pb.AgentMessage.FromString(codec.encode_agent(FRAME))
    fill(wire.frame)
    return wire.SerializeToString()


def set_fields(message: Any, **values: Any) -> None:
    for name, value in values.items():
        setattr(message, name, value)


FOREIGN: dict[str, tuple[Callable[[Any], object], str]] = {
    "unknown kind": (
        lambda f: set_fields(f.layouts[0].series[1], kind=9),
        "frame.layouts[0].series[1].kind: 9, expected one of 1, 2, 3, 4",
    ),
    "kind not given": (
        lambda f: set_fields(f.layouts[0].series[1], kind=0),
        "frame.layouts[0].series[1].kind: 0, expected one of 1, 2, 3, 4",
    ),
    "label without value": (
        lambda f: f.layouts[0].series[1].labels.append("x"),
        "frame.layouts[0].series[1].labels: 3 words, expected name and value in turn",
    ),
    "state without number": (
        lambda f: f.layouts[0].series[2].states.append("up"),
        'frame.layouts[0].series[2].states[2]: expected "number=name", such as "1=up"',
    ),
    "state with an odd number": (
        lambda f: f.layouts[0].series[2].states.append("007=bond"),
        'frame.layouts[0].series[2].states[2]: expected "number=name", such as "1=up"',
    ),
    "state with a number that never ends": (
        lambda f: f.layouts[0].series[2].states.append("9" * 6000 + "=x"),
        'frame.layouts[0].series[2].states[2]: expected "number=name", such as "1=up"',
    ),
    "no clock": (lambda f: f.ClearField("clock"), "frame.clock: missing"),
    "half a value": (
        lambda f: set_fields(f.sections[0], values=bytes(12)),
        "frame.sections[0].values: 12 bytes, expected a multiple of 8",
    ),
    "sequence number 0": (lambda f: set_fields(f, seq=0), "frame.seq: 0, expected 1 to 2^63 - 1"),
    "a flood of empty sections": (
        lambda f: [f.sections.add() for _ in range(5000)],
        "frame: more than 4000 layouts, sections, events and gaps together",
    ),
    "a flood of empty series": (
        lambda f: [f.layouts[0].series.add() for _ in range(5000)],
        "frame.layouts[0].series: 5003 series, expected 1 to 1000",
    ),
    "changed layout": (
        lambda f: set_fields(f.layouts[0].series[0], unit="%"),
        f"frame.layouts[0].id: {LAYOUT.id:#x}, expected "
        f"{codec.layout_id((msgspec.structs.replace(SERIES[0], unit='%'), *SERIES[1:])):#x} (the hash of its content)",
    ),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_a_foreign_frame_that_breaks_a_rule_is_refused_with_its_path(case: str) -> None:
    fill, expected = FOREIGN[case]
    with pytest.raises(codec.WireError) as refused:
        codec.decode_agent(frame_with(fill))
    assert str(refused.value) == expected


def test_a_message_without_a_body_is_refused() -> None:
    with pytest.raises(codec.WireError, match=r"message\.body: missing, expected one of hello, frame"):
        codec.decode_agent(b"")
    with pytest.raises(codec.WireError, match=r"message\.body: missing, expected one of welcome, ack"):
        codec.decode_collector(b"")


def test_fields_of_a_later_version_are_ignored() -> None:
    unknown_field = b"\xfa\x7f\x03abc"  # number 2047, length-delimited
    raw = codec.encode_frame(FRAME) + unknown_field
    assert codec.decode_frame(raw) == FRAME


def test_a_frame_of_exactly_the_bound_passes_both_ways_and_one_byte_more_does_not() -> None:
    full = (msgspec.structs.replace(EVENT, text="x" * TEXT_CHARS_MAX),) * 31

    def padded(chars: int) -> r.Frame:
        return changed(events=(*full, msgspec.structs.replace(EVENT, text="y" * chars)))

    filler = 2000 + r.FRAME_BYTES_MAX - len(codec.encode_frame(padded(2000)))
    raw = codec.encode_frame(padded(filler))
    assert len(raw) == r.FRAME_BYTES_MAX
    assert codec.decode_agent(codec.wrap_frame(raw)) == codec.decode_frame(raw) == padded(filler)
    beyond = padded(filler + 1)
    for encode in (codec.encode_frame, codec.encode_agent):
        with pytest.raises(codec.WireError, match="bytes, at most"):
            encode(beyond)
    with pytest.raises(codec.WireError, match=rf"frame: {len(raw) + 2} bytes, at most {r.FRAME_BYTES_MAX}"):
        codec.decode_frame(raw + b"\x00\x00")
    with pytest.raises(codec.WireError, match="message: "):
        codec.decode_agent(codec.wrap_frame(raw + b"\x00\x00"))


def test_a_section_fits_its_layout_or_says_how_it_does_not() -> None:
    codec.check_section(SECTION, LAYOUT)
    sparse = r.Section(layout=LAYOUT.id, time_ms=1, values=bytes(8), counters=bytes(8), indices=codec.pack_u32([1, 2]))
    codec.check_section(sparse, LAYOUT)
    wrong: dict[str, dict[str, Any]] = {
        "section.values: 8 bytes, expected 16 (8 per series of layout": {"values": bytes(8)},
        "section.counters: 16 bytes, expected 8 (8 per series of layout": {"counters": bytes(16)},
        "section.indices: 3, but layout": {"indices": codec.pack_u32([0, 1, 3])},
        "section.values: 16 bytes, expected 8 (8 per series of layout": {"indices": codec.pack_u32([0, 1])},
        "section.offsets_ms: 8 bytes, expected 12 (4 per series of layout": {"offsets_ms": bytes(8)},
        "section.layout: 0x5, expected": {"layout": 5},
    }
    for message, fields in wrong.items():
        with pytest.raises(codec.WireError) as refused:
            codec.check_section(msgspec.structs.replace(SECTION, **fields), LAYOUT)
        assert str(refused.value).startswith(message)


def test_a_layout_has_one_name_for_ever() -> None:
    # On disk at agents and collectors: when this number changes, the protocol version does.
    assert codec.layout_id(SERIES) == 7496135159482942987


@quick
@given(st.lists(series, max_size=4).map(tuple), st.lists(series, max_size=4).map(tuple))
def test_different_layouts_have_different_names(one: tuple[r.Series, ...], other: tuple[r.Series, ...]) -> None:
    assert 0 < codec.layout_id(one) < 2**63
    assert (codec.layout_id(one) == codec.layout_id(other)) == (one == other)


def test_words_that_run_into_each_other_are_different_layouts() -> None:
    def name(**fields: Any) -> int:
        return codec.layout_id((msgspec.structs.replace(SERIES[0], **fields),))

    variants = [
        name(resource="a", metric="b"),
        name(resource="ab", metric=""),
        name(resource="a", metric="b", labels=(("1=x", "2=y"),)),
        name(resource="a", metric="b", states=((1, "x"), (2, "y"))),
        name(resource="a", metric="b", labels=(("1=x", "2=y"),), states=()),
    ]
    assert len(set(variants)) == 4  # the last says the same as the third


@given(st.lists(st.floats()), st.lists(st.integers(0, 2**64 - 1)), st.lists(st.integers(-(2**31), 2**31 - 1)))
def test_columns_are_little_endian_and_come_back(floats: list[float], longs: list[int], ints: list[int]) -> None:
    assert columns.pack_floats(floats) == struct.pack(f"<{len(floats)}d", *floats)
    assert columns.pack_u64(longs) == struct.pack(f"<{len(longs)}Q", *longs)
    assert columns.pack_i32(ints) == struct.pack(f"<{len(ints)}i", *ints)
    assert columns.pack_u32(map(abs, ints)) == struct.pack(f"<{len(ints)}I", *map(abs, ints))
    assert columns.pack_floats(columns.unpack_floats(columns.pack_floats(floats))) == columns.pack_floats(floats)
    assert list(columns.unpack_u64(columns.pack_u64(longs))) == longs
    assert list(columns.unpack_i32(columns.pack_i32(ints))) == ints
    assert list(columns.unpack_u32(columns.pack_u32(map(abs, ints)))) == [abs(one) for one in ints]


def test_the_pure_python_backend_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    codec.require_fast_protobuf()
    monkeypatch.setattr(api_implementation, "Type", lambda: "python")
    with pytest.raises(RuntimeError, match="pure-Python backend, which Tocsin refuses"):
        codec.require_fast_protobuf()


def test_a_bundle_carries_frames_as_they_are_and_nothing_else() -> None:
    clock = r.Clock(1_760_000_000_000, 5, 7)
    messages = [codec.encode_agent(r.Frame(seq, seq - 1, clock)) for seq in (1, 2, 3)]
    raw = codec.bundle(messages)
    assert codec.unbundle(raw) == messages
    assert codec.unbundle(messages[0]) is None
    with pytest.raises(codec.WireError, match="taken apart"):
        codec.decode_agent(raw)
    pulse = codec.encode_agent(r.Pulse(clock))
    for wrong in (codec.bundle([pulse]), codec.bundle([raw]), codec.bundle([b""]), codec.bundle([])):
        with pytest.raises(codec.WireError):
            codec.unbundle(wrong)
    with pytest.raises(codec.WireError):
        codec.unbundle(codec.bundle([messages[0]] * (codec.BUNDLE_FRAMES_MAX + 1)))


@given(st.binary(max_size=200), st.integers(0, 60))
def test_a_damaged_bundle_is_refused_or_holds_messages(noise: bytes, cut: int) -> None:
    clock = r.Clock(1_760_000_000_000, 5, 7)
    raw = codec.bundle([codec.encode_agent(r.Frame(1, 0, clock))])[: -cut or None] + noise
    try:
        parts = codec.unbundle(raw)
    except codec.WireError:
        return
    for part in parts or []:
        try:
            codec.decode_agent(part)
        except codec.WireError:
            continue
