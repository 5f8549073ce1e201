"""Which rules a series has, worked out once, when the series appears.

Compiling yields what the detector needs per series: its rules, and the band [low, high] inside which a value cannot matter
to any of them (the quiet filter's only question). Semantics of a rule live in `detector`, nowhere else.
"""

import math
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import NamedTuple

from tocsin_collector.core.model import Device, Level, Rule, SeriesAdded

# One finite step inside infinity, so that infinities are never quiet.
QUIET_MAX = math.nextafter(math.inf, 0.0)


class Compiled(NamedTuple):
    """The rules of one series. rules: indices into the rule set. must_see: every sample has to be looked at."""

    rules: tuple[int, ...]
    low: float
    high: float
    must_see: bool
    no_data: bool


NO_RULES = Compiled((), -QUIET_MAX, QUIET_MAX, False, False)


class RuleSet:
    """Rules by metric, so that a new series looks at the few that can match. bands: see `_band`."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        self.rules = tuple(rules)
        self.bands = tuple(_band(rule) for rule in self.rules)
        self._by_metric: dict[str, list[int]] = {}
        for index, rule in enumerate(self.rules):
            self._by_metric.setdefault(rule.metric, []).append(index)

    def compile(self, series: SeriesAdded, device: Device | None) -> Compiled:
        if device is None:
            return NO_RULES  # not in the registry (any more): nobody is to be told of it
        found = tuple(i for i in self._by_metric.get(series.metric, ()) if matches(self.rules[i], series, device))
        if not found:
            return NO_RULES
        low, high, must_see, no_data = -QUIET_MAX, QUIET_MAX, False, False
        for index in found:
            for level in self.rules[index].levels:
                if level.above is not None:
                    high = min(high, level.above)
                if level.below is not None:
                    low = max(low, level.below)
                must_see = must_see or bool(level.is_state)
                no_data = no_data or bool(level.no_data_ms)
        return Compiled(found, low, high, must_see, no_data)


def _band(rule: Rule) -> tuple[float, float] | None:
    """The values that breach no level of the rule; None for a rule about states, which are not in order."""
    if any(level.is_state for level in rule.levels):
        return None
    high = min([level.above for level in rule.levels if level.above is not None], default=QUIET_MAX)
    low = max([level.below for level in rule.levels if level.below is not None], default=-QUIET_MAX)
    return low, high


def matches(rule: Rule, series: SeriesAdded, device: Device | None) -> bool:
    """Does `where` let the series in? Of one name's patterns any may match; "!pattern" keeps out; a missing name is ""."""
    if rule.metric != series.metric:
        return False
    return all(_admits(patterns, _fact(name, series, device)) for name, patterns in rule.where.items())


def _admits(patterns: tuple[str, ...], value: str) -> bool:
    if any(fnmatchcase(value, pattern[1:]) for pattern in patterns if pattern.startswith("!")):
        return False
    wanted = [pattern for pattern in patterns if not pattern.startswith("!")]
    return not wanted or any(fnmatchcase(value, pattern) for pattern in wanted)


def _fact(name: str, series: SeriesAdded, device: Device | None) -> str:
    if name == "device":
        return series.device
    for label, value in series.labels:
        if label == name:
            return value
    if device is None:
        return ""
    if name in ("site", "line", "kind"):
        return str(getattr(device, name))
    return device.tags.get(name, "")


def is_breached(level: Level, value: float) -> bool:
    """Is the value beyond the level? NaN is beyond nothing."""
    return (level.above is not None and value > level.above) or (level.below is not None and value < level.below)


def is_cleared(level: Level, value: float) -> bool:
    """Is the value back far enough to end the level? The clear level itself still counts as raised, as the level does."""
    if level.above is not None:
        limit = level.above if level.clear_below is None else level.clear_below
        return value <= limit if level.clear_below is None else value < limit
    if level.below is not None:
        limit = level.below if level.clear_above is None else level.clear_above
        return value >= limit if level.clear_above is None else value > limit
    return False
