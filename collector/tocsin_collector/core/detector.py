"""From samples to findings: one quiet filter over whole sections, and ONE scalar state machine that knows what rules mean.

The filter commits at once all samples that cannot change anything (finite, newer, inside the series' quiet band, no flag);
the rest go, in order, to `_sample`. A finding changes only there, in `advance` (a hold ran out) and in `no_data`. Timers run
on the agent's own event time, so that a backlog gives the same findings as a live stream (ADR 0003).

Levels: idle -> pending (breached, `for` runs) -> raised -> clearing (cleared, `keep` runs) -> idle. The finding's severity is
that of the highest raised level. A NaN or an infinity is no value: counted, and nothing else.
"""

import math

import numpy as np

from tocsin_collector.core.model import Level, Rule
from tocsin_collector.core.rules import RuleSet, is_breached, is_cleared
from tocsin_collector.core.series import ACTIVE, FRESH, WATCHED, Catalogue, Counts, Flags, Floats, Ints, Span
from tocsin_collector.core.slots import CLEARING, IDLE, NEVER_MS, PENDING, RAISED, Change, Slot, SlotState, refit
from tocsin_proto.records import SeriesKind

HOLE_MS = 45_000
GONE_MS = 300_000  # and never less than ten intervals

WRAP_32 = 1 << 32
WRAP_32_FROM = 1 << 31  # a 32-bit counter that falls from above here has wrapped; from below, it was reset
RAW_MAX = (1 << 64) - 1
WRAP_64_FROM = RAW_MAX - (1 << 40)


class Detector:
    """State of all rules over all series. Every method that can change a finding appends to `changes`."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue
        self.set = RuleSet(())
        self.slots: dict[tuple[int, int], Slot] = {}
        self.changes: list[Change] = []
        self.due: dict[str, dict[tuple[int, int], int]] = {}  # agent -> slots with a running timer -> its next end
        self.watched_samples: list[tuple[int, int]] = []  # (sid, event time) of WATCHED series
        self.bad_values = 0
        self.out_of_order = 0
        self.resets = 0

    # ---------------------------------------------------------------------------------------- whole sections at once

    def section(self, ids: Span, values: Floats, raw: Counts, at_ms: int) -> None:
        """One sample of each series of a whole layout: the gauges' values, then the counters' readings."""
        c = self.catalogue
        ids.look(c)
        quiet, test, numbers = ids.quiet, ids.test, values
        # The usual case, made out by comparing bytes: all were heard of together before, and this is later.
        is_later = at_ms > ids.newest_ms and ids.is_even()
        if len(raw):
            numbers = ids.numbers
            ids.measured[:] = values
            if is_later:
                ids.elapsed[()] = at_ms - ids.newest_ms
                np.multiply(np.subtract(raw, ids.counter_raw, ids.delta), _PER_SECOND, ids.rates)
                np.divide(ids.rates, ids.elapsed, ids.rates)
            else:
                np.copyto(ids.rates, _rate(raw, ids.counter_raw, at_ms - ids.counter_last_ms))
        np.less_equal(numbers, ids.high, quiet)
        np.logical_and(quiet, np.greater_equal(numbers, ids.low, test), quiet)
        if not is_later:
            np.logical_and(quiet, np.less(ids.last_ms, at_ms, test), quiet)
        if ids.flags.tobytes() != ids.unflagged:
            np.logical_and(quiet, np.logical_not(ids.flags, test), quiet)
        if len(raw):
            np.logical_and(ids.counted, np.greater_equal(raw, ids.counter_raw, ids.rose), ids.counted)
        loud = _loud(quiet, ids.start)
        if not loud:
            ids.commit(numbers, raw, at_ms)
            return
        kept = self._kept(loud)
        ids.commit(numbers, raw, at_ms)
        self._give_back(kept)
        for sid in loud:
            place = sid - ids.start
            if place < ids.gauges_n:
                self._sample(sid, values.item(place), at_ms)
            else:
                self._reading(sid, raw.item(place - ids.gauges_n), at_ms)

    def _kept(self, sids: list[int]) -> list[tuple[int, int, float, int]]:
        """What the loud series hold: a whole section is written at once, and they get theirs back before they are looked at."""
        c = self.catalogue
        return [(sid, c.m_last_ms[sid], c.m_value[sid], c.m_raw[sid]) for sid in sids]

    def _give_back(self, kept: list[tuple[int, int, float, int]]) -> None:
        c = self.catalogue
        for sid, last_ms, value, raw in kept:
            c.m_last_ms[sid] = last_ms
            c.m_value[sid] = value
            c.m_raw[sid] = raw

    def gauges(self, ids: Ints, values: Floats, at_ms: int | Ints) -> None:
        """The same for scattered series, or samples with times of their own. values: (n,) in the order of `ids`."""
        c = self.catalogue
        quiet = values <= c.high[ids]
        quiet &= values >= c.low[ids]
        quiet &= c.last_ms[ids] < at_ms
        quiet &= c.flags[ids] == 0
        self._commit(ids, quiet, values, at_ms)
        loud = np.flatnonzero(~quiet)
        for sid, value, when in zip(ids[loud].tolist(), values[loud].tolist(), _times(at_ms, loud), strict=True):
            self._sample(sid, value, when)

    def counters(self, ids: Ints, raw: Counts, at_ms: int | Ints) -> None:
        """Readings of distinct counters: (n,) uint64. They become rates per second."""
        c = self.catalogue
        before = c.raw[ids]
        elapsed = at_ms - c.last_ms[ids]
        rate = _rate(raw, before, elapsed)
        quiet = raw >= before
        quiet &= rate <= c.high[ids]
        quiet &= rate >= c.low[ids]
        quiet &= elapsed > 0
        quiet &= c.flags[ids] == 0
        self._commit(ids, quiet, rate, at_ms)
        c.raw[ids[quiet]] = raw[quiet]
        loud = np.flatnonzero(~quiet)
        for sid, reading, when in zip(ids[loud].tolist(), raw[loud].tolist(), _times(at_ms, loud), strict=True):
            self._reading(sid, reading, when)

    def _commit(self, ids: Ints, quiet: Flags, values: Floats, at_ms: int | Ints) -> None:
        c = self.catalogue
        c.last_ms[ids[quiet]] = at_ms if isinstance(at_ms, int) else at_ms[quiet]
        c.value[ids[quiet]] = values[quiet]

    # --------------------------------------------------------------------------------------------- one sample, in order

    def _reading(self, sid: int, raw: int, at_ms: int) -> None:
        """One reading of a counter -> one rate, unless there is nothing to compare it with."""
        c = self.catalogue
        elapsed, before = at_ms - c.m_last_ms[sid], c.m_raw[sid]
        if elapsed <= 0:
            self.out_of_order += 1
            return
        is_fresh = c.m_flags[sid] & FRESH
        c.m_raw[sid] = raw
        delta = raw - before
        if not is_fresh and delta < 0:
            if c.info[sid].kind == SeriesKind.COUNTER32 and before >= WRAP_32_FROM and raw < WRAP_32:
                delta += WRAP_32
            elif c.info[sid].kind == SeriesKind.COUNTER64 and before >= WRAP_64_FROM:
                delta += RAW_MAX + 1
        if is_fresh or delta < 0:
            self.resets += not is_fresh
            c.m_last_ms[sid] = at_ms
            c.m_flags[sid] &= ~FRESH & 0xFF
            self._seen(sid, at_ms)
            return
        self._sample(sid, delta * 1000.0 / elapsed, at_ms)

    def _sample(self, sid: int, value: float, at_ms: int) -> None:
        """One value of one series: the only place where a sample meets a rule."""
        c = self.catalogue
        if at_ms <= c.m_last_ms[sid]:
            self.out_of_order += 1
            return
        if not math.isfinite(value):
            self.bad_values += 1
            return
        before = c.m_value[sid]
        if c.m_flags[sid] & ACTIVE and at_ms - c.m_last_ms[sid] > self._hole_ms(sid):
            self._break(sid)
        c.m_last_ms[sid] = at_ms
        c.m_value[sid] = value
        c.m_flags[sid] &= ~FRESH & 0xFF
        self._seen(sid, at_ms)
        if not c.rules[sid]:
            return
        is_active = False
        is_state = c.info[sid].kind == SeriesKind.STATE
        for index in c.rules[sid]:
            is_active |= self._judge(sid, index, value, before, at_ms)
        if is_state and self._needs_change(sid):
            c.m_low[sid] = c.m_high[sid] = value
        self._flag(sid, is_active)

    def _judge(self, sid: int, index: int, value: float, before: float, at_ms: int) -> bool:
        """One rule against one value; True while the rule has something to remember."""
        rule, band = self.set.rules[index], self.set.bands[index]
        key = (sid, index)
        slot = self.slots.get(key)
        is_inside = band is not None and band[0] <= value <= band[1]
        if slot is None:
            if is_inside:
                return False  # nothing to remember, and nothing begins
            slot = Slot(len(rule.levels), before)
        elif slot.end_ms < at_ms:
            self._run(slot, rule, sid, index, at_ms - 1, value)
        elif is_inside and max(slot.phase) < RAISED:
            del self.slots[key]  # what was pending has not lasted
            self._undue(sid, key)
            return False
        if value != before:
            slot.before = before
        was, is_beyond = slot.top(), False
        since = at_ms
        for number, level in enumerate(rule.levels):
            beyond = _is_beyond(level, value, slot, number)
            is_beyond |= beyond
            self._move(slot, number, level, beyond, value, at_ms)
            if beyond and slot.phase[number] in (PENDING, RAISED):
                since = min(since, slot.since[number])
        top = slot.top()
        self._report(sid, index, rule, was, top, at_ms, value, since)
        if top >= 0 and top == was and is_beyond and not slot.is_beyond:
            self.changes.append(Change(at_ms, sid, index, rule.levels[top].severity, value, top, since, True))
        slot.is_beyond = is_beyond
        return self._keep(sid, index, slot, rule)

    @staticmethod
    def _move(slot: Slot, number: int, level: Level, beyond: bool, value: float, at_ms: int) -> None:
        phase = slot.phase[number]
        if phase in (IDLE, PENDING):
            if not beyond:
                slot.phase[number] = IDLE
                return
            if phase == IDLE:
                slot.since[number] = at_ms
                slot.phase[number] = PENDING
            if at_ms - slot.since[number] >= level.for_ms:
                slot.phase[number] = RAISED
        elif not _is_over(level, value, beyond):
            slot.phase[number] = RAISED
        elif phase == RAISED:
            slot.phase[number], slot.since[number] = (CLEARING, at_ms) if level.keep_ms else (IDLE, 0)
        elif at_ms - slot.since[number] >= level.keep_ms:
            slot.phase[number] = IDLE

    def _run(self, slot: Slot, rule: Rule, sid: int, index: int, upto_ms: int, value: float) -> None:
        """Let the timers that end at or before `upto_ms` end, each at its own time."""
        while True:
            ends = [
                (slot.since[n] + (level.for_ms if slot.phase[n] == PENDING else level.keep_ms), n)
                for n, level in enumerate(rule.levels)
                if slot.phase[n] in (PENDING, CLEARING)
            ]
            end, number = min(ends, default=(upto_ms + 1, 0))
            if end > upto_ms:
                return
            was, since = slot.top(), slot.since[number]
            slot.phase[number] = RAISED if slot.phase[number] == PENDING else IDLE
            self._report(sid, index, rule, was, slot.top(), end, value, since)

    def _report(
        self, sid: int, index: int, rule: Rule, was: int, top: int, at_ms: int, value: float, since: int
    ) -> None:
        if top != was:
            severity = rule.levels[top].severity if top >= 0 else None
            self.changes.append(Change(at_ms, sid, index, severity, value, top if top >= 0 else was, since))

    # -------------------------------------------------------------------------------------------- without a sample

    def advance(self, agent: str, upto_ms: int) -> None:
        """Timers of the agent's series run up to the event time `upto_ms`, up to which all it has to say has arrived."""
        due = self.due.get(agent)
        if not due:
            return
        for key in [key for key, end in due.items() if end <= upto_ms]:
            slot = self.slots.get(key)
            sid, index = key
            if slot is None:
                self._undue(sid, key)
                continue
            seen_ms = self.catalogue.m_last_ms[sid] + self._hole_ms(sid)
            self._run(slot, self.set.rules[index], sid, index, min(upto_ms, seen_ms), self.catalogue.m_value[sid])
            self._keep(sid, index, slot, self.set.rules[index])
            self._flag(sid, any((sid, other) in self.slots for other in self.catalogue.rules[sid]))

    def no_data(self, sid: int, upto_ms: int) -> None:
        """Raise the no-data levels of a series that has been silent up to the event time `upto_ms`."""
        c = self.catalogue
        last = c.m_last_ms[sid]
        for index in c.rules[sid]:
            rule = self.set.rules[index]
            if not any(level.no_data_ms for level in rule.levels):
                continue
            slot = self.slots.get((sid, index)) or Slot(len(rule.levels))
            for number, level in enumerate(rule.levels):
                end = last + level.no_data_ms
                if not level.no_data_ms or slot.phase[number] >= RAISED or end > upto_ms:
                    continue
                was = slot.top()
                slot.phase[number], slot.since[number] = RAISED, last
                self._report(sid, index, rule, was, slot.top(), end, c.m_value[sid], last)
            if self._keep(sid, index, slot, rule):
                self._flag(sid, True)

    def sweep(self, ids: Ints, watermark_ms: int) -> None:
        """Of the series `ids`, those that their agent has not reported for long while it went on reporting are gone
        (unmounted, unplugged, retired): what they had raised ends, at its own time."""
        c = self.catalogue
        active = ids[(c.flags[ids] & ACTIVE > 0) & (watermark_ms - c.last_ms[ids] > GONE_MS)]
        for sid in active.tolist():
            end_ms = c.m_last_ms[sid] + max(GONE_MS, 10 * c.info[sid].interval_ms)
            if end_ms <= watermark_ms:
                self._gone(sid, end_ms)

    def _gone(self, sid: int, end_ms: int) -> None:
        for index in self.catalogue.rules[sid]:
            if not any(level.no_data_ms for level in self.set.rules[index].levels):
                self.forget(sid, index, end_ms)

    def step_back(self, now_ms: int) -> None:
        """The collector's clock was set back: no sample and no timer of the future stands in the way of the present."""
        np.minimum(self.catalogue.last_ms, now_ms, out=self.catalogue.last_ms)
        for (sid, index), slot in list(self.slots.items()):
            slot.since = [min(since, now_ms) for since in slot.since]
            self._keep(sid, index, slot, self.set.rules[index])

    def adopt(self, rules: RuleSet, kept: dict[int, int]) -> None:
        """Put another rule set in force. kept: old index -> new index of the rules that are still there."""
        before, self.set = self.set, rules
        slots, self.slots, self.due = self.slots, {}, {}
        for (sid, index), slot in slots.items():
            if index in kept:
                rule = rules.rules[kept[index]]
                refit(slot, before.rules[index], rule)
                self._keep(sid, kept[index], slot, rule)

    def _hole_ms(self, sid: int) -> int:
        """How long after a sample it still says what is: three intervals, and never less than HOLE_MS."""
        return max(HOLE_MS, 3 * self.catalogue.info[sid].interval_ms)

    def _break(self, sid: int) -> None:
        """A hole in what is known of the series: what was pending or clearing has to show itself anew."""
        seen_ms = self.catalogue.m_last_ms[sid] + self._hole_ms(sid)
        for index in self.catalogue.rules[sid]:
            slot = self.slots.get((sid, index))
            if slot is not None:
                rule = self.set.rules[index]
                self._run(slot, rule, sid, index, seen_ms, self.catalogue.m_value[sid])
                slot.phase = [RAISED if phase >= RAISED else IDLE for phase in slot.phase]
                self._keep(sid, index, slot, rule)

    def move(self, sid: int, agent: str) -> None:
        """Another agent reports the series from here on: its timers run on that agent's time."""
        old = self.due.get(self.catalogue.agent[sid], {})
        moved = {key: old.pop(key) for key in [key for key in old if key[0] == sid]}
        self.catalogue.agent[sid] = agent
        if moved:
            self.due.setdefault(agent, {}).update(moved)

    def forget(self, sid: int, index: int, at_ms: int) -> None:
        """A series no longer has this rule: what it had raised ends."""
        slot = self.slots.pop((sid, index), None)
        self._undue(sid, (sid, index))
        if slot is not None and slot.top() >= 0:
            self.changes.append(Change(at_ms, sid, index, None, self.catalogue.m_value[sid], slot.top(), at_ms))
        self._flag(sid, any((sid, other) in self.slots for other in self.catalogue.rules[sid]))

    # --------------------------------------------------------------------------------------------------------- leaves

    def _seen(self, sid: int, at_ms: int) -> None:
        if self.catalogue.m_flags[sid] & WATCHED:
            self.watched_samples.append((sid, at_ms))

    def _flag(self, sid: int, is_active: bool) -> None:
        flags = self.catalogue.m_flags[sid]
        self.catalogue.m_flags[sid] = flags | ACTIVE if is_active else flags & ~ACTIVE & 0xFF

    def _needs_change(self, sid: int) -> bool:
        return any(level.is_state for index in self.catalogue.rules[sid] for level in self.set.rules[index].levels)

    def _keep(self, sid: int, index: int, slot: Slot, rule: Rule) -> bool:
        """Remember the slot while it is not idle, and when its next timer ends."""
        key = (sid, index)
        if slot.is_idle():
            self.slots.pop(key, None)
            self._undue(sid, key)
            return False
        self.slots[key] = slot
        end_ms = NEVER_MS
        for phase, since, level in zip(slot.phase, slot.since, rule.levels, strict=True):
            if phase == PENDING:
                end_ms = min(end_ms, since + level.for_ms)
            elif phase == CLEARING:
                end_ms = min(end_ms, since + level.keep_ms)
        slot.end_ms = end_ms
        if end_ms < NEVER_MS:
            self.due.setdefault(self.catalogue.agent[sid], {})[key] = end_ms
        else:
            self._undue(sid, key)
        return True

    def _undue(self, sid: int, key: tuple[int, int]) -> None:
        due = self.due.get(self.catalogue.agent[sid])
        if due is not None:
            due.pop(key, None)

    # ------------------------------------------------------------------------------------------------------- snapshot

    def freeze(self) -> tuple[SlotState, ...]:
        return tuple(
            SlotState(sid, rule, tuple(slot.phase), tuple(slot.since), slot.is_beyond, slot.before)
            for (sid, rule), slot in self.slots.items()
        )

    def thaw(self, states: tuple[SlotState, ...]) -> None:
        for state in states:
            slot = Slot(len(state.phase), state.before)
            slot.phase, slot.since, slot.is_beyond = list(state.phase), list(state.since), state.is_beyond
            self._keep(state.sid, state.rule, slot, self.set.rules[state.rule])
            self._flag(state.sid, True)


# 0-d arrays: NumPy looks at a Python number anew in every call.
_ONE = np.array(1, np.int64)
_PER_SECOND = np.array(1000.0)


def _rate(raw: Counts, before: Counts, elapsed: Ints) -> Floats:
    """Per second, (n,); without meaning where time did not pass or the counter fell."""
    rate: Floats = np.multiply(raw - before, _PER_SECOND)
    np.divide(rate, np.maximum(elapsed, _ONE), rate)
    return rate


def _loud(quiet: Flags, start: int) -> list[int]:
    """Ids of the series that are not quiet. Most often none, and few else: bytes are searched faster than arrays."""
    found: list[int] = []
    mask = quiet.tobytes()
    place = mask.find(0)
    while place >= 0:
        found.append(start + place)
        place = mask.find(0, place + 1)
    return found


def _times(at_ms: int | Ints, places: Ints) -> list[int]:
    return [at_ms] * len(places) if isinstance(at_ms, int) else at_ms[places].tolist()


def _is_beyond(level: Level, value: float, slot: Slot, number: int) -> bool:
    """Does the value breach the level? A state level that has begun no longer asks what was before."""
    if level.no_data_ms:
        return False  # a sample is data
    if level.is_state:
        was_right = not level.after or slot.phase[number] != IDLE or slot.before in level.after
        return was_right and int(value) in level.is_state
    return is_breached(level, value)


def _is_over(level: Level, value: float, beyond: bool) -> bool:
    """Does the value end the level?"""
    if level.no_data_ms:
        return True
    if level.is_state:
        return int(value) not in level.is_state
    return not beyond and is_cleared(level, value)
