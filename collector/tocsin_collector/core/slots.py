"""What a rule remembers of a series that is not idle, and the change of a finding that the detector reports.

Records only: what moves a slot from phase to phase is in `detector`, the one place with the semantics of rules.
"""

import math
from typing import NamedTuple

from tocsin_collector.core.model import Record, Rule, Severity

IDLE, PENDING, RAISED, CLEARING = 0, 1, 2, 3
NEVER_MS = 1 << 62


class Change(NamedTuple):
    """A finding changed at event time. severity None: it ended. crossing: it was raised already and is breached once more."""

    at_ms: int
    sid: int
    rule: int
    severity: Severity | None
    value: float
    level: int  # which level of the rule decided; -1: none
    since_ms: int  # first sample of the breach
    is_crossing: bool = False


class SlotState(Record, frozen=True):
    """A Slot as a snapshot holds it."""

    sid: int
    rule: int
    phase: tuple[int, ...]
    since: tuple[int, ...]
    is_beyond: bool
    before: float


class Slot:
    """What one rule remembers of one series that is not idle. phase, since: per level; end_ms: of its next timer."""

    __slots__ = ("before", "end_ms", "is_beyond", "phase", "since")

    def __init__(self, levels: int, before: float = math.nan) -> None:
        self.phase = [IDLE] * levels
        self.since = [0] * levels
        self.end_ms = NEVER_MS
        self.is_beyond = False  # was the newest sample breached?
        self.before = before  # a state series: what it was before it changed

    def top(self) -> int:
        """Index of the highest raised level, -1 for none. Levels stand in rising order of severity."""
        for index in range(len(self.phase) - 1, -1, -1):
            if self.phase[index] >= RAISED:
                return index
        return -1

    def is_idle(self) -> bool:
        return not any(self.phase)


def refit(slot: Slot, before: Rule, after: Rule) -> None:
    """An edited rule goes on where it was: a raised finding stays raised, and the next sample judges it by the new levels."""
    if before.levels == after.levels:
        return
    old = {level.severity: number for number, level in enumerate(before.levels)}
    top = slot.top()
    rank = before.levels[top].severity.rank if top >= 0 else 0
    phase, since = list(slot.phase), list(slot.since)
    slot.phase = [phase[old[level.severity]] if level.severity in old else IDLE for level in after.levels]
    slot.since = [since[old[level.severity]] if level.severity in old else 0 for level in after.levels]
    for number, level in enumerate(after.levels):
        if rank and (level.severity.rank <= rank or number == 0) and slot.phase[number] < RAISED:
            slot.phase[number], slot.since[number] = RAISED, since[top]
