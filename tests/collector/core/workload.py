"""Random rules, layouts and frames from one seed: what the detector and its oracle are both given."""

import math
import random
from dataclasses import dataclass

from tocsin_collector.core.model import Level, Rule, Severity
from tocsin_proto.codec import layout_id, pack_floats, pack_i32, pack_u32, pack_u64
from tocsin_proto.records import Layout, Section, Series, SeriesKind

METRICS = {
    "g.ratio": SeriesKind.GAUGE,
    "g.noise": SeriesKind.GAUGE,
    "c.small": SeriesKind.COUNTER32,
    "c.large": SeriesKind.COUNTER64,
    "s.port": SeriesKind.STATE,
}


@dataclass
class Shot:
    """One section, and the samples in it as the oracle takes them: (position in the layout, number, event time)."""

    layout: Layout
    section: Section
    samples: list[tuple[int, float, int]]
    made_ms: int


def rules(rng: random.Random) -> tuple[Rule, ...]:
    def hold() -> int:
        return rng.choice((0, 0, 1500, 4000, 70_000))

    ladder = (
        Level(Severity.WARNING, above=0.6, clear_below=rng.choice((None, 0.5)), for_ms=hold(), keep_ms=hold()),
        Level(Severity.MAJOR, above=0.8, clear_below=rng.choice((None, 0.7)), for_ms=hold(), keep_ms=hold()),
        Level(Severity.CRITICAL, above=0.9, for_ms=hold()),
    )
    return (
        Rule("ratio-high", "g.ratio", ladder[: rng.randint(1, 3)]),
        Rule("ratio-low", "g.ratio", (Level(Severity.MAJOR, below=0.1, clear_above=0.2, keep_ms=hold()),)),
        Rule("small-fast", "c.small", (Level(Severity.WARNING, above=900.0, clear_below=500.0, for_ms=hold()),)),
        Rule("large-fast", "c.large", (Level(Severity.MAJOR, above=900.0, keep_ms=hold()),)),
        Rule("port-down", "s.port", (Level(Severity.MAJOR, is_state=(2, 7), after=(1,), for_ms=hold()),)),
        Rule("port-test", "s.port", (Level(Severity.WARNING, is_state=(3,), keep_ms=hold()),)),
    )


def layouts(rng: random.Random) -> list[Layout]:
    made = []
    for group in range(rng.randint(1, 3)):
        metrics = [rng.choice(list(METRICS)) for _ in range(rng.randint(1, 12))]
        series = tuple(
            Series("", metric, "1", METRICS[metric], (("n", f"{group}.{n}"),)) for n, metric in enumerate(metrics)
        )
        made.append(Layout(layout_id(series), series))
    return made


class Source:
    """Values that hover around the limits, counters that wrap and reset, states that flip, and a good deal of nonsense."""

    def __init__(self, rng: random.Random, start_ms: int) -> None:
        self.rng = rng
        self.now_ms = start_ms
        self.raw: dict[tuple[int, int], int] = {}

    def shot(self, layout: Layout) -> Shot:
        rng = self.rng
        self.now_ms += rng.choice((0, 500, 1000, 1000, 1000, 3000, 9000))
        if rng.random() < 0.03:
            self.now_ms += rng.choice((44_000, 60_000, 300_000))
        at_ms = self.now_ms - (rng.choice((1500, 4000)) if rng.random() < 0.05 else 0)
        positions = list(range(len(layout.series)))
        is_sparse = rng.random() < 0.3
        if is_sparse:
            positions = sorted(rng.sample(positions, rng.randint(1, len(positions))))
        offsets = [rng.choice((0, 0, -200, 300)) for _ in positions] if rng.random() < 0.2 else []
        numbers = [self._number(layout, position) for position in positions]
        is_counter = [layout.series[position].kind.is_counter for position in positions]
        section = Section(
            layout=layout.id,
            time_ms=at_ms,
            values=pack_floats([n for n, counts in zip(numbers, is_counter, strict=True) if not counts]),
            counters=pack_u64([int(n) for n, counts in zip(numbers, is_counter, strict=True) if counts]),
            indices=pack_u32(positions) if is_sparse else b"",
            offsets_ms=pack_i32(offsets) if offsets else b"",
        )
        times = [at_ms + (offsets[i] if offsets else 0) for i in range(len(positions))]
        return Shot(layout, section, list(zip(positions, numbers, times, strict=True)), self.now_ms)

    def _number(self, layout: Layout, position: int) -> float:
        rng, kind = self.rng, layout.series[position].kind
        if kind is SeriesKind.GAUGE:
            if rng.random() < 0.03:
                return rng.choice((math.nan, math.inf, -math.inf))
            return rng.choice((0.05, 0.15, 0.3, 0.55, 0.65, 0.75, 0.85, 0.95, rng.random()))
        if kind is SeriesKind.STATE:
            return float(rng.choice((1, 1, 1, 2, 2, 3, 7)))
        top = 2**32 if kind is SeriesKind.COUNTER32 else 2**64
        key = (layout.id, position)
        raw = self.raw.get(key, rng.choice((0, 1000, top - 2000)))
        raw = rng.randrange(100) if rng.random() < 0.04 else (raw + rng.choice((0, 100, 700, 3000))) % top
        self.raw[key] = raw
        return raw
