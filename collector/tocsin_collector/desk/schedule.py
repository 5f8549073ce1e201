"""When the next attempt is, and whether a channel may be tried at all: decisions only, no I/O, no clock, no luck.

Not the order of notices (`lanes.py`). The invariants: only a permanent refusal ends the attempts; between two attempts
of a notice lies at most `retry_ms_max`, or what the receiver asked for; a channel that failed `failures_max` times in a
row is asked by one notice at a time until it takes one.
"""

import msgspec

from tocsin_collector.desk.base import Outcome, Verdict

RETRY_AFTER_MS_MAX = 3_600_000  # a receiver that asks for more is asked again after this
ERROR_CHARS_MAX = 500


class Pace(msgspec.Struct, frozen=True):
    """Numbers of the outbox. parallel_max: at once per channel. lanes_max: held in memory per channel."""

    retry_ms: int = 2_000  # of the first retry at most; doubles
    retry_ms_min: int = 250
    retry_ms_max: int = 300_000
    failures_max: int = 5
    pause_ms: int = 10_000  # of a channel that failed so often; doubles
    pause_ms_max: int = 120_000
    parallel_max: int = 8
    lanes_max: int = 1_000
    page_rows: int = 256


class Breaker(msgspec.Struct, frozen=True):
    """How a channel does. until_ms: nothing is sent before. pause_ms: the newest pause, 0 while it works."""

    failures: int = 0  # in a row
    until_ms: int = 0
    pause_ms: int = 0

    @property
    def is_open(self) -> bool:
        return self.pause_ms > 0


class Result(msgspec.Struct, frozen=True):
    """What an attempt makes of an outbox row. state: due, sent, dead; at_ms: of the next attempt, or of the end."""

    state: str
    attempts: int
    at_ms: int
    error: str = ""


def judge(attempts: int, outcome: Outcome, now_ms: int, luck: float, pace: Pace) -> Result:
    """attempts: those before this one. luck: in [0, 1), spreads retries over the whole pause ("full jitter")."""
    attempts += 1
    error = outcome.detail[:ERROR_CHARS_MAX]
    if outcome.verdict is Verdict.OK:
        return Result("sent", attempts, now_ms)
    if outcome.verdict is Verdict.PERMANENT:
        return Result("dead", attempts, now_ms, error)
    widest_ms = min(pace.retry_ms_max, pace.retry_ms << min(attempts - 1, 30))
    pause_ms = max(pace.retry_ms_min, int(widest_ms * luck), asked_ms(outcome))
    return Result("due", attempts, now_ms + pause_ms, error)


def observe(breaker: Breaker, outcome: Outcome, now_ms: int, pace: Pace) -> Breaker:
    """The channel after one more outcome.

    A permanent refusal counts as a failure too: when everything is refused (a wrong secret), that costs a few notices
    and then one at a time, not all that are waiting.
    """
    if outcome.verdict is Verdict.OK:
        return Breaker()
    failures = breaker.failures + 1
    until_ms = max(breaker.until_ms, now_ms + asked_ms(outcome) if asked_ms(outcome) else 0)
    is_late = not is_due(breaker.until_ms, now_ms)  # sent before the pause began: says nothing new
    if failures < pace.failures_max or is_late:
        return Breaker(failures, until_ms, breaker.pause_ms)
    pause_ms = min(pace.pause_ms_max, breaker.pause_ms * 2 or pace.pause_ms)
    return Breaker(failures, max(until_ms, now_ms + pause_ms), pause_ms)


def places(breaker: Breaker, in_flight: int, now_ms: int, pace: Pace) -> int:
    """How many notices may be sent now."""
    if not is_due(breaker.until_ms, now_ms):
        return 0
    return max(0, (1 if breaker.is_open else pace.parallel_max) - in_flight)


def is_due(at_ms: int, now_ms: int) -> bool:
    """Also when it lies further ahead than any pause may: then the clock was set back since."""
    return not now_ms < at_ms <= now_ms + RETRY_AFTER_MS_MAX


def asked_ms(outcome: Outcome) -> int:
    """The pause that the receiver asked for, within bounds."""
    return int(min(max(outcome.retry_after_s, 0.0) * 1000, RETRY_AFTER_MS_MAX))
