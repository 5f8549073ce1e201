"""The reference for the detector: plain dictionaries, every sample looked at, nothing skipped, nothing vectorised.

It says what the rules mean in the slowest and plainest way. It shares no code with the detector beyond the records.
"""

import math
from dataclasses import dataclass, field

from tocsin_collector.core.model import Level, Rule
from tocsin_proto.records import SeriesKind

HOLE_MS = 45_000  # a sample says what is for so long


@dataclass
class LevelMemory:
    raised: bool = False
    since: int | None = None  # a breach that is not raised yet, or a clear that does not count yet


@dataclass
class Memory:
    """What the oracle knows of one series."""

    kind: SeriesKind
    rules: list[tuple[int, Rule]]
    last: int | None = None
    raw: int | None = None
    value: float = math.nan
    before: float = math.nan
    levels: dict[tuple[int, int], LevelMemory] = field(default_factory=dict)
    beyond: dict[int, bool] = field(default_factory=dict)
    onset: dict[int, float] = field(default_factory=dict)


@dataclass
class Oracle:
    series: dict[int, Memory]
    said: list[tuple[int, int, int, str]] = field(default_factory=list)  # (event time, series, rule, what)

    def sample(self, sid: int, number: float, at: int) -> None:
        memory = self.series[sid]
        if memory.last is not None and at <= memory.last:
            return
        value = self._rate(memory, int(number), at) if memory.kind.is_counter else float(number)
        if value is None:
            memory.last = at
            return
        if math.isnan(value) or math.isinf(value):
            return
        for index, rule in memory.rules:
            if memory.last is not None and at - memory.last > HOLE_MS:
                self._advance(sid, memory, index, rule, memory.last + HOLE_MS)
                for number in range(len(rule.levels)):
                    memory.levels.setdefault((index, number), LevelMemory()).since = None
            self._advance(sid, memory, index, rule, at - 1)
        old, memory.value, memory.last = memory.value, value, at
        for index, rule in memory.rules:
            if value != old or index not in memory.onset:
                memory.onset[index] = old
            self._judge(sid, memory, index, rule, value, at)

    def advance(self, upto: int) -> None:
        for sid, memory in self.series.items():
            for index, rule in memory.rules:
                self._advance(sid, memory, index, rule, min(upto, (memory.last or 0) + HOLE_MS))

    def _rate(self, memory: Memory, raw: int, at: int) -> float | None:
        before, memory.raw = memory.raw, raw
        if before is None or memory.last is None:
            return None
        delta = raw - before
        if delta < 0 and memory.kind is SeriesKind.COUNTER32 and before >= 2**31:
            delta += 2**32
        if delta < 0 and memory.kind is SeriesKind.COUNTER64 and before >= 2**64 - 1 - 2**40:
            delta += 2**64
        return None if delta < 0 else delta * 1000.0 / (at - memory.last)

    def _judge(self, sid: int, memory: Memory, index: int, rule: Rule, value: float, at: int) -> None:
        top_before = self._top(memory, index, rule)
        any_beyond = False
        for number, level in enumerate(rule.levels):
            state = memory.levels.setdefault((index, number), LevelMemory())
            beyond = self._beyond(level, value, memory.onset[index], state)
            any_beyond |= beyond
            if not state.raised:
                if not beyond:
                    state.since = None
                    continue
                state.since = at if state.since is None else state.since
                if at - state.since >= level.for_ms:
                    state.raised, state.since = True, None
            elif beyond or not self._over(level, value):
                state.since = None
            else:
                state.since = at if state.since is None else state.since
                if at - state.since >= level.keep_ms:
                    state.raised, state.since = False, None
        top = self._top(memory, index, rule)
        self._say(sid, index, rule, top_before, top, at)
        if top is not None and top == top_before and any_beyond and not memory.beyond.get(index, False):
            self.said.append((at, sid, index, "again"))
        memory.beyond[index] = any_beyond

    def _advance(self, sid: int, memory: Memory, index: int, rule: Rule, upto: int) -> None:
        while True:
            ends = []
            for number, level in enumerate(rule.levels):
                state = memory.levels.get((index, number))
                if state is not None and state.since is not None:
                    ends.append((state.since + (level.keep_ms if state.raised else level.for_ms), number))
            if not ends or min(ends)[0] > upto:
                return
            at, number = min(ends)
            before = self._top(memory, index, rule)
            state = memory.levels[(index, number)]
            state.raised, state.since = not state.raised, None
            self._say(sid, index, rule, before, self._top(memory, index, rule), at)

    def _beyond(self, level: Level, value: float, onset: float, state: LevelMemory) -> bool:
        if level.is_state:
            began = state.raised or state.since is not None
            return int(value) in level.is_state and (began or not level.after or onset in level.after)
        if level.above is not None:
            return value > level.above
        return level.below is not None and value < level.below

    def _over(self, level: Level, value: float) -> bool:
        if level.is_state:
            return int(value) not in level.is_state
        if level.above is not None:
            return value <= level.above if level.clear_below is None else value < level.clear_below
        assert level.below is not None
        return value >= level.below if level.clear_above is None else value > level.clear_above

    def _top(self, memory: Memory, index: int, rule: Rule) -> str | None:
        raised = [
            level.severity.value
            for number, level in enumerate(rule.levels)
            if memory.levels.get((index, number), LevelMemory()).raised
        ]
        return raised[-1] if raised else None

    def _say(self, sid: int, index: int, rule: Rule, before: str | None, after: str | None, at: int) -> None:
        if before != after:
            self.said.append((at, sid, index, after or "over"))
