"""What the record should say, worked out from the script and from which frames arrived: an oracle that shares no code.

A sample is evidence at its event time. Evidence further apart than the window leaves `unknown` between; a raised finding with
an impact makes the rest `down` or `degraded`; otherwise it is `up`. How and when the frames came plays no part in it.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.sim.agent_node import Made
from tests.sim.plant import SETTINGS, UNREACHABLE, Plant, Signal

from tocsin_collector.core.model import Level

Stretch = tuple[int, int]  # [from, to) in event time
WINDOW_MS = SETTINGS.silent_after_ms  # three polls are less


@dataclass
class Component:
    """evidence: event times, rising. down, degraded: stretches with a raised finding of that impact.

    watermark_ms: up to which all that the agent has to say has arrived; later than that nothing can be missed.
    """

    watermark_ms: int = 0
    evidence: list[int] = field(default_factory=list)
    down: list[Stretch] = field(default_factory=list)
    degraded: list[Stretch] = field(default_factory=list)

    def known(self, end_ms: int) -> list[Stretch]:
        """Where there is evidence."""
        out: list[Stretch] = []
        for at in self.evidence:
            if out and at - out[-1][1] <= WINDOW_MS:
                out[-1] = (out[-1][0], at)
            else:
                out.append((at, at))
        if out and self.watermark_ms - out[-1][1] <= WINDOW_MS:
            out[-1] = (out[-1][0], end_ms)
        return out

    def timeline(self, start_ms: int, end_ms: int) -> list[tuple[int, int, str]]:
        """(from, to, state) that tile [start_ms, end_ms)."""
        known = self.known(end_ms)
        edges = {
            start_ms,
            end_ms,
            *(edge for one in (known, self.down, self.degraded) for pair in one for edge in pair),
        }
        cuts = sorted(edge for edge in edges if start_ms <= edge <= end_ms)
        out: list[tuple[int, int, str]] = []
        for left, right in itertools.pairwise(cuts):
            state = "unknown" if not _covers(known, left) else "up"
            if state == "up":
                state = "down" if _covers(self.down, left) else "degraded" if _covers(self.degraded, left) else "up"
            if out and out[-1][2] == state:
                out[-1] = (out[-1][0], right, state)
            else:
                out.append((left, right, state))
        return out


@dataclass
class Expected:
    components: dict[str, Component]
    raised: dict[str, list[Stretch]]  # by incident key


def expected(plant: Plant, made: Sequence[Made], end_ms: int) -> Expected:
    """`made`: the frames that arrived, in order of event time."""
    names = (plant.agent, plant.switch, *plant.children)
    watermark_ms = made[-1].at_ms if made else 0
    components = {name: Component(watermark_ms) for name in names}
    components[plant.agent].evidence = [one.at_ms for one in made]
    series: dict[int, list[tuple[int, float]]] = {number: [] for number in range(len(plant.signals))}
    for one in made:
        for number, value in one.samples:
            series[number].append((one.at_ms, value))
    raised: dict[str, list[Stretch]] = {}
    for number, signal in enumerate(plant.signals):
        samples = series[number]
        if signal.rule is UNREACHABLE:
            components[signal.device].evidence = [at for at, _ in samples]
        if signal.series.kind.is_counter:
            samples = _rates(samples)
        stretches = _raised(signal, samples, watermark_ms, end_ms)
        raised[signal.key] = stretches
        if signal.rule.impact.value in ("down", "degraded"):
            getattr(components[signal.device], signal.rule.impact.value).extend(stretches)
    return Expected(components, raised)


def _raised(signal: Signal, samples: list[tuple[int, float]], watermark_ms: int, end_ms: int) -> list[Stretch]:
    """Where any level of the rule is raised."""
    stretches = [one for level in signal.rule.levels for one in _level(level, samples, watermark_ms, end_ms)]
    out: list[Stretch] = []
    for start, end in sorted(stretches):
        if out and start <= out[-1][1]:
            out[-1] = (out[-1][0], max(end, out[-1][1]))
        else:
            out.append((start, end))
    return out


def _level(level: Level, samples: list[tuple[int, float]], watermark_ms: int, end_ms: int) -> list[Stretch]:
    """One level over one series. breach: since when it waits to be raised; calm: since when it waits to end."""
    out: list[Stretch] = []
    breach = calm = start = None
    before = None
    for at, value in [*samples, (watermark_ms + 1, None)]:
        if breach is not None and breach + level.for_ms < at:
            start, breach = breach + level.for_ms, None
        if calm is not None and calm + level.keep_ms < at:
            assert start is not None
            out.append((start, calm + level.keep_ms))
            start = calm = None
        if value is None:
            break
        bad, good = _judge(level, value, before, is_on=breach is not None or start is not None)
        if start is None:
            breach = (at if breach is None else breach) if bad else None
            if breach is not None and at - breach >= level.for_ms:
                start, breach = at, None
        elif not good:
            calm = None
        else:
            calm = at if calm is None else calm
            if at - calm >= level.keep_ms:
                out.append((start, at))
                start = calm = None
        before = value
    if start is not None:
        out.append((start, end_ms))
    return out


def _judge(level: Level, value: float, before: float | None, *, is_on: bool) -> tuple[bool, bool]:
    """(does it breach, is it over)"""
    if level.is_state:
        bad = value in level.is_state and (is_on or before in level.after)
        return bad, value not in level.is_state
    if level.above is not None:
        limit = level.above if level.clear_below is None else level.clear_below
        return value > level.above, value <= limit
    assert level.below is not None
    return value < level.below, value >= level.below


def _rates(readings: list[tuple[int, float]]) -> list[tuple[int, float]]:
    return [
        (at, (value - before) * 1000 / (at - earlier))
        for (earlier, before), (at, value) in itertools.pairwise(readings)
    ]


def _covers(stretches: Sequence[Stretch], at_ms: int) -> bool:
    return any(start <= at_ms < end for start, end in stretches)
