"""The scheduler as tables and properties: pure, no clock but the numbers given."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tocsin_agent.scheduler import GRAIN_MS, RUNNING_MAX, SILENT_MAX, Scheduler, jitter_ms


def take(scheduler: Scheduler, now_ms: int) -> list[str]:
    started = []
    for key in scheduler.due(now_ms):
        scheduler.started(key)
        started.append(key)
    return started


def test_jitter_is_the_same_after_a_restart_and_differs_between_targets():
    assert jitter_ms("sw-1", 60_000) == 56_000  # a constant: a restart must not move it
    assert len({jitter_ms(f"sw-{n}", 60_000) for n in range(200)}) > 40


@given(st.text(max_size=20), st.integers(1, 3_600_000))
def test_jitter_lies_in_the_interval_on_whole_seconds(name, interval_ms):
    jitter = jitter_ms(name, interval_ms)
    assert 0 <= jitter < interval_ms
    assert jitter % GRAIN_MS == 0


def test_targets_of_one_group_come_due_together():
    scheduler = Scheduler()
    lanes = {scheduler.add(f"host/{n}", 10_000, 5_000, group="host", first_within_ms=0) for n in range(5)}
    assert len(lanes) == 1
    assert len(take(scheduler, 5_000)) == 5
    for n in range(5):
        scheduler.finished(f"host/{n}", 5_003 + n)
    again_ms = scheduler.next_due(5_010)
    assert again_ms is not None
    assert take(scheduler, again_ms - 1) == []
    assert len(take(scheduler, again_ms)) == 5


@pytest.mark.parametrize(
    ("took_ms", "overruns"), [(0, 0), (9_999, 0), (10_000, 1), (10_001, 1), (19_999, 1), (35_000, 3)]
)
def test_slots_that_pass_during_a_run_are_overruns_and_are_not_made_up_for(took_ms, overruns):
    scheduler = Scheduler()
    scheduler.add("a", 10_000, 0, first_within_ms=0)
    take(scheduler, 0)
    scheduler.finished("a", 0)
    start_ms = scheduler.next_due(0)
    assert take(scheduler, start_ms) == ["a"]
    assert take(scheduler, start_ms + took_ms) == []  # never twice at once
    scheduler.finished("a", start_ms + took_ms)
    assert scheduler.overruns == overruns
    assert scheduler.next_due(start_ms + took_ms) == start_ms + (overruns + 1) * 10_000


def test_silent_devices_wait_for_each_other_and_never_delay_the_living():
    scheduler = Scheduler()
    for n in range(500):
        scheduler.add(f"dead/{n}", 10_000, 0, first_within_ms=0)
    scheduler.add("alive", 10_000, 0, first_within_ms=0)
    now_ms, seen = 0, set()
    while len(seen) < 501:  # first round: nobody knows yet who is silent
        batch = take(scheduler, now_ms)
        assert 0 < len(batch) <= RUNNING_MAX
        now_ms += 4_000
        for key in batch:
            scheduler.finished(key, now_ms, silent=key != "alive")
            seen.add(key)
    delays, runs, busy = [], 0, []
    for _ in range(600):
        for key in [one for one, until in busy if until <= now_ms]:
            scheduler.finished(key, now_ms, silent=key != "alive")
        busy = [(one, until) for one, until in busy if until > now_ms]
        due_ms = scheduler._entries["alive"].due_ms
        started = take(scheduler, now_ms)
        if "alive" in started:
            delays.append(now_ms - due_ms)
        runs += len(started) - ("alive" in started)
        busy += [(one, now_ms + (10 if one == "alive" else 4_000)) for one in started]
        assert sum(one != "alive" for one, _ in busy) <= SILENT_MAX
        now_ms += 1_000
    assert len(delays) >= 58
    assert max(delays) <= 1_000
    assert runs > 2_000  # yet every one of them is asked again and again: 16 slots, 4 s each, 600 s


def test_a_silent_device_that_answers_is_with_the_living_again():
    scheduler = Scheduler(silent_max=0)
    scheduler.add("a", 10_000, 0, first_within_ms=0)
    take(scheduler, 0)
    scheduler.finished("a", 0, silent=False)
    assert take(scheduler, scheduler.next_due(0)) == ["a"]
    scheduler.finished("a", 20_000, silent=True)
    assert take(scheduler, 40_000) == []  # no slot for silent ones at all here
    scheduler._silent_max = 1
    assert take(scheduler, 40_000) == ["a"]
    scheduler.finished("a", 40_000, silent=False)
    assert scheduler._running == {False: 0, True: 0}


@given(st.integers(0, 2**32))
def test_no_target_overlaps_itself_or_starves_whatever_happens(seed):
    luck = random.Random(seed)
    scheduler = Scheduler(running_max=3, silent_max=1)
    alive: dict[str, int] = {}
    running: dict[str, int] = {}
    starts: dict[str, int] = {}
    now_ms = 0
    for step in range(300):
        now_ms += luck.choice([0, 1, 500, 1_000, 5_000])
        roll = luck.random()
        if roll < 0.05 and len(alive) < 8:
            key = f"t{step}"
            alive[key] = luck.choice([1_000, 5_000, 30_000])
            scheduler.add(key, alive[key], now_ms)
        elif roll < 0.08 and alive:
            key = luck.choice(sorted(alive))
            del alive[key]
            running.pop(key, None)
            scheduler.remove(key)
        elif roll < 0.6 and running:
            key = luck.choice(sorted(running))
            scheduler.finished(key, now_ms, silent=luck.random() < 0.3)
            del running[key]
        for key in take(scheduler, now_ms):
            assert key in alive
            assert key not in running
            running[key] = now_ms
            starts[key] = starts.get(key, 0) + 1
        assert len(running) <= 3
        next_ms = scheduler.next_due(now_ms)
        assert next_ms is None or next_ms > now_ms
    # Let everything finish: whoever is left must come up within its interval and the queue before it.
    for _ in range(200):
        for key in sorted(running):
            scheduler.finished(key, now_ms)
        running.clear()
        now_ms += 1_000
        for key in take(scheduler, now_ms):
            running[key] = now_ms
            starts[key] = starts.get(key, 0) + 1
    assert set(alive) <= set(starts)
