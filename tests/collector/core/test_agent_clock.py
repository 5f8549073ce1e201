"""Event time against messages that were held up on the way, and clocks that were set."""

from tocsin_collector.core.agents import LATE_ANCHORS_MIN, Agent
from tocsin_proto.records import Clock

NOW_MS = 1_760_000_000_000


def test_a_message_that_was_held_up_does_not_move_event_time() -> None:
    """A partition of ten seconds: what waited in it arrives late, and says nothing of the agent's clock."""
    agent = Agent("edge-1")
    agent.anchor(Clock(NOW_MS, 1_000, 7), NOW_MS + 20)
    agent.anchor(Clock(NOW_MS + 10_000, 11_000, 7), NOW_MS + 19_800)
    assert agent.correct(Clock(NOW_MS + 12_000, 13_000, 7)) == 0
    agent.anchor(Clock(NOW_MS + 20_000, 21_000, 7), NOW_MS + 20_030)
    assert agent.correct(Clock(NOW_MS + 21_000, 22_000, 7)) == 0


def test_a_burst_that_was_held_up_does_not_move_event_time_either() -> None:
    """Three pulses that waited together are late by different times."""
    agent = Agent("edge-1")
    agent.anchor(Clock(NOW_MS, 0, 7), NOW_MS)
    for sent_ms in (10_000, 20_000, 30_000):
        agent.anchor(Clock(NOW_MS + sent_ms, sent_ms, 7), NOW_MS + 35_000)
    assert agent.correct(Clock(NOW_MS + 36_000, 36_000, 7)) == 0


def test_the_collectors_clock_set_forward_is_followed_after_a_few_messages() -> None:
    agent = Agent("edge-1")
    agent.anchor(Clock(NOW_MS, 0, 7), NOW_MS)
    for number in range(1, LATE_ANCHORS_MIN + 1):
        assert agent.correct(Clock(NOW_MS + number, number, 7)) == 0
        agent.anchor(Clock(NOW_MS + 10_000 * number, 10_000 * number, 7), NOW_MS + 60_000 + 10_000 * number)
    assert agent.correct(Clock(NOW_MS + 40_000, 40_000, 7)) == 60_000


def test_an_earlier_message_is_always_the_better_one() -> None:
    agent = Agent("edge-1")
    agent.anchor(Clock(NOW_MS, 0, 7), NOW_MS + 30_000)
    assert agent.correct(Clock(NOW_MS + 1_000, 1_000, 7)) == 30_000
    agent.anchor(Clock(NOW_MS + 10_000, 10_000, 7), NOW_MS + 10_010)
    assert agent.correct(Clock(NOW_MS + 11_000, 11_000, 7)) == 0


def test_a_wall_clock_that_jumps_is_put_right_by_the_monotonic_one() -> None:
    agent = Agent("edge-1")
    agent.anchor(Clock(NOW_MS, 5_000, 7), NOW_MS)
    assert agent.correct(Clock(NOW_MS + 3_600_000, 6_000, 7)) == -3_599_000
