"""A start from committed truth alone: what was seen counts as seen, and nothing else does."""

import msgspec
from tests.collector.core.plant import START_MS, STEP_MS, Record, config

from tocsin_collector.core.engine import Engine
from tocsin_collector.core.ledger import NOT_SEEN
from tocsin_collector.core.model import (
    ComponentState,
    Config,
    Effect,
    Entry,
    FrameIn,
    Incident,
    IncidentState,
    LayoutAdded,
    PulseIn,
    SeriesAdded,
    Settings,
    Severity,
    Splice,
    Tick,
    Truth,
)
from tocsin_proto.codec import layout_id, pack_floats
from tocsin_proto.records import Clock, Frame, Layout, Pulse, Section, Series, SeriesKind

SETUP = msgspec.structs.replace(config(1, 0), settings=Settings(silent_after_ms=20_000))
SWITCH = Series("switch-0", "device.reachable", "1", SeriesKind.STATE)
LAYOUT = Layout(layout_id((SWITCH,)), (SWITCH,))
AT_MS = START_MS + 60_000


def truth(*tails: Splice, seen_ms: int = 0, incidents: tuple[Incident, ...] = (), with_layout: bool = True) -> Truth:
    return Truth(
        offset=100,
        at_ms=AT_MS,
        config=SETUP,
        series=(SeriesAdded(0, "agent-0", "switch-0", "device.reachable", "1", int(SeriesKind.STATE)),),
        layouts=(LayoutAdded("agent-0", LAYOUT.id, (0,)),) if with_layout else (),
        incidents=incidents,
        tails=tails,
        seen=((0, seen_ms),) if seen_ms else (),
    )


def sample(seq: int, made_ms: int) -> FrameIn:
    clock = Clock(made_ms, made_ms - START_MS, 1)
    return FrameIn(
        "agent-0", b"s", Frame(seq, seq - 1, clock, (LAYOUT,), (Section(LAYOUT.id, made_ms, pack_floats([1.0])),))
    )


def play(start: Truth, *inputs: tuple[int, FrameIn | Tick | PulseIn | Config]) -> tuple[Engine, Record]:
    engine, record = Engine.from_truth(start), Record()
    effects: list[Effect] = [*start.tails]
    for number, (at_ms, what) in enumerate(inputs):
        effects += engine.step(Entry(101 + number, at_ms, what))
    record.take(effects)
    return engine, record


def test_a_hole_that_began_before_the_start_is_unknown_from_the_last_sample_on() -> None:
    tail = Splice("switch-0", START_MS, ComponentState.UP)
    back_ms = AT_MS + STEP_MS
    _, record = play(truth(tail, seen_ms=START_MS + 30_000), (back_ms, sample(1, back_ms)))
    assert record.timeline("switch-0", back_ms + 1) == [
        (START_MS, START_MS + 30_000, ComponentState.UP),
        (START_MS + 30_000, back_ms, ComponentState.UNKNOWN),
        (back_ms, back_ms + 1, ComponentState.UP),
    ]


def test_a_device_that_was_seen_shortly_before_goes_on_without_a_gap() -> None:
    tail = Splice("switch-0", START_MS, ComponentState.UP)
    back_ms = AT_MS + STEP_MS
    _, record = play(truth(tail, seen_ms=AT_MS - STEP_MS), (back_ms, sample(1, back_ms)))
    assert record.timeline("switch-0", back_ms + 1) == [(START_MS, back_ms + 1, ComponentState.UP)]


def test_a_device_that_was_never_seen_is_not_up_before_its_first_sample() -> None:
    tail = Splice("switch-0", AT_MS - 1_000, ComponentState.UNKNOWN, cause=NOT_SEEN)
    first_ms = AT_MS + STEP_MS
    _, record = play(truth(tail), (first_ms, sample(1, first_ms)))
    assert record.timeline("switch-0", first_ms + 1) == [
        (AT_MS - 1_000, first_ms, ComponentState.UNKNOWN),
        (first_ms, first_ms + 1, ComponentState.UP),
    ]


def test_a_silent_agent_that_never_sent_a_frame_resolves_when_it_is_heard() -> None:
    silent = Incident(
        "I-7", "agent-silent/agent-0", "agent-silent", "agent-0", Severity.MAJOR, IncidentState.OPEN,
        START_MS, START_MS, START_MS, was_told=True, notices=1,
    )  # fmt: skip
    start = truth(incidents=(silent,), with_layout=False)
    clock = Clock(AT_MS + 1_000, 1_000, 1)
    engine, _ = play(start, (AT_MS + 1_000, PulseIn("agent-0", Pulse(clock))))
    assert engine.book.incidents["I-7"].state is IncidentState.OPEN, "a pulse is no proof that it measures"
    engine, _ = play(start, (AT_MS + 1_000, FrameIn("agent-0", b"s", Frame(1, 0, clock))))
    assert engine.book.incidents["I-7"].state is IncidentState.RESOLVED
