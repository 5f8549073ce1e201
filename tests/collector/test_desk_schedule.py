"""When the next attempt is: pure decisions."""

from hypothesis import given
from hypothesis import strategies as st
from tests.support.desk_rig import OK, PERMANENT, RETRY, UNCERTAIN

from tocsin_collector.desk.base import Outcome, Verdict
from tocsin_collector.desk.schedule import RETRY_AFTER_MS_MAX, Breaker, Pace, Result, is_due, judge, observe, places

PACE = Pace()
NOW = 1_800_000_000_000
OUTCOMES = st.sampled_from([OK, RETRY, UNCERTAIN, PERMANENT, Outcome(Verdict.RETRY, "", 7.0)])


def test_an_outcome_becomes_a_state() -> None:
    assert judge(0, OK, NOW, 0.5, PACE) == Result("sent", 1, NOW)
    assert judge(4, PERMANENT, NOW, 0.5, PACE) == Result("dead", 5, NOW, "HTTP 422")
    assert judge(0, RETRY, NOW, 0.5, PACE) == Result("due", 1, NOW + 1_000, "busy")
    assert judge(1, UNCERTAIN, NOW, 0.5, PACE) == Result("due", 2, NOW + 2_000, "no answer")


@given(attempts=st.integers(0, 10_000), luck=st.floats(0, 1, exclude_max=True), asked_s=st.floats(-1e9, 1e9))
def test_a_pause_is_bounded_and_never_shorter_than_what_was_asked_for(
    attempts: int, luck: float, asked_s: float
) -> None:
    result = judge(attempts, Outcome(Verdict.RETRY, "x" * 9000, asked_s), NOW, luck, PACE)
    pause_ms = result.at_ms - NOW
    assert PACE.retry_ms_min <= pause_ms <= max(PACE.retry_ms_max, RETRY_AFTER_MS_MAX)
    assert pause_ms >= min(int(max(asked_s, 0) * 1000), RETRY_AFTER_MS_MAX)
    assert (result.state, len(result.error)) == ("due", 500)


def test_luck_spreads_retries_over_the_whole_pause() -> None:
    pauses = [judge(3, RETRY, NOW, luck / 100, PACE).at_ms - NOW for luck in range(100)]
    assert (min(pauses), max(pauses)) == (250, 15_840)
    assert len(set(pauses)) > 95


def test_a_channel_that_fails_in_a_row_pauses_is_probed_and_works_again() -> None:
    breaker = Breaker()
    for _ in range(PACE.failures_max - 1):
        breaker = observe(breaker, RETRY, NOW, PACE)
        assert places(breaker, 3, NOW, PACE) == 5
    breaker = observe(breaker, RETRY, NOW, PACE)
    assert (breaker.is_open, places(breaker, 0, NOW + 9_999, PACE)) == (True, 0)
    assert places(breaker, 0, NOW + 10_000, PACE) == 1
    assert places(breaker, 1, NOW + 10_000, PACE) == 0

    late = observe(breaker, RETRY, NOW + 5_000, PACE)
    assert late.until_ms == breaker.until_ms, "what was on its way when the pause began says nothing new"
    again = observe(breaker, RETRY, NOW + 10_000, PACE)
    assert again.until_ms == NOW + 30_000
    assert observe(again, OK, NOW + 30_000, PACE) == Breaker()


def test_a_receiver_that_asks_for_time_gets_it_from_the_whole_channel() -> None:
    breaker = observe(Breaker(), Outcome(Verdict.RETRY, "HTTP 429", 30.0), NOW, PACE)
    assert places(breaker, 0, NOW + 29_999, PACE) == 0
    assert places(breaker, 0, NOW + 30_000, PACE) == PACE.parallel_max


@given(st.lists(st.tuples(OUTCOMES, st.integers(0, 200_000)), max_size=200))
def test_whatever_comes_a_channel_is_asked_again_within_its_longest_pause(story: list[tuple[Outcome, int]]) -> None:
    breaker, now_ms = Breaker(), NOW
    for outcome, later_ms in story:
        now_ms += later_ms
        breaker = observe(breaker, outcome, now_ms, PACE)
        assert places(breaker, 0, now_ms + PACE.pause_ms_max, PACE) >= 1
        assert 0 <= breaker.pause_ms <= PACE.pause_ms_max


def test_a_clock_that_was_set_back_holds_nothing_up() -> None:
    assert is_due(NOW, NOW)
    assert not is_due(NOW + RETRY_AFTER_MS_MAX, NOW)
    assert is_due(NOW + 10 * 365 * 86_400_000, NOW)
