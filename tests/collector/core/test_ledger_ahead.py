"""Changes that are newer than the evidence of their component, when the agent falls silent in between."""

import pytest
from tests.collector.core.plant import Record

from tocsin_collector.core.ledger import WAITING_MAX, Tracker
from tocsin_collector.core.model import ComponentState, Effect, Impact

UP, DEGRADED, UNKNOWN = ComponentState.UP, ComponentState.DEGRADED, ComponentState.UNKNOWN


def degraded_from_10(tracker: Tracker) -> list[Effect]:
    """Evidence at 5 and 15 s, degraded since 10."""
    out: list[Effect] = [tracker.begin(0), *tracker.evidence(5_000, 5_000)]
    out += tracker.evidence(10_000, 10_000)
    out += tracker.change(10_000, "k", Impact.DEGRADED, True)
    return [*out, *tracker.evidence(15_000, 15_000)]


@pytest.mark.parametrize("came", ["before the silence", "after the silence"])
def test_a_clear_without_evidence_of_its_own_keeps_its_time_over_a_silence(came: str) -> None:
    """The clear at 20 s came in a frame without the device's own sample; the next sample is of 25 s."""
    tracker, record = Tracker("switch", 20_000), Record()
    effects = degraded_from_10(tracker)
    clear = (20_000, "k", Impact.DEGRADED, False)
    if came == "before the silence":
        effects += tracker.change(*clear)
    effects += tracker.silence()
    if came == "after the silence":
        effects += tracker.change(*clear)
    effects += tracker.evidence(25_000, 60_000)
    effects += tracker.evidence(60_000, 60_000)
    record.take(effects)
    assert record.timeline("switch", 70_000) == [
        (0, 5_000, UNKNOWN),
        (5_000, 10_000, UP),
        (10_000, 20_000, DEGRADED),
        (20_000, 25_000, UP),
        (25_000, 60_000, UNKNOWN),
        (60_000, 70_000, UP),
    ]


def test_a_device_that_nobody_speaks_of_does_not_grow_without_bound() -> None:
    tracker = Tracker("switch", 20_000)
    degraded_from_10(tracker)
    tracker.silence()
    for n in range(3 * WAITING_MAX):
        tracker.change(20_000 + n, "k", Impact.DEGRADED, n % 2 == 0)
    assert len(tracker.waiting) == WAITING_MAX
    assert tracker.evidence(200_000, 200_000)[-1].state is UP


def test_evidence_between_two_changes_ahead_of_it_keeps_both_times() -> None:
    tracker, record = Tracker("switch", 20_000), Record()
    effects = degraded_from_10(tracker)
    effects += tracker.change(18_000, "k", Impact.DEGRADED, False)
    effects += tracker.change(24_000, "k", Impact.DEGRADED, True)
    effects += tracker.evidence(20_000, 25_000)
    effects += tracker.silence()
    effects += tracker.evidence(30_000, 31_000)
    record.take(effects)
    assert record.timeline("switch", 31_000) == [
        (0, 5_000, UNKNOWN),
        (5_000, 10_000, UP),
        (10_000, 18_000, DEGRADED),
        (18_000, 24_000, UP),
        (24_000, 31_000, DEGRADED),
    ]


def test_a_change_that_quiet_evidence_has_overtaken_is_not_ahead_any_more() -> None:
    """Quiet samples only move the column: the engine sets last_ms."""
    tracker, record = Tracker("switch", 20_000), Record()
    effects = degraded_from_10(tracker)
    effects += tracker.change(18_000, "k", Impact.DEGRADED, False)
    effects += tracker.change(20_000, "k", Impact.DEGRADED, True)
    tracker.last_ms = 24_000
    effects += tracker.change(24_000, "k", Impact.DEGRADED, False)
    tracker.last_ms = 26_000
    effects += tracker.silence()
    effects += tracker.evidence(30_000, 31_000)
    record.take(effects)
    assert record.timeline("switch", 31_000)[-3:] == [
        (18_000, 20_000, UP),
        (20_000, 24_000, DEGRADED),
        (24_000, 31_000, UP),
    ]
