"""The core alone, in one process: million samples a second through `Engine.step`, beside the plain oracle of the tests.

Quiet: nothing crosses a level. Active: one sample in a hundred is of a series that does. Both do the same samples in the same
run, so that their ratio holds on a noisy machine; each figure is that of the best of several equal stretches.
"""

import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tests.collector.core.oracle import Memory, Oracle

from bench.frames import Workload, series
from bench.machine import talk
from tocsin_collector import rules_file
from tocsin_collector.core.engine import Engine
from tocsin_collector.core.model import Config, Device, Entry, FrameIn, Registry, Rule, SeriesAdded, Site
from tocsin_collector.core.rules import RuleSet
from tocsin_proto.codec import layout_id
from tocsin_proto.records import Clock, Frame, Layout, Section

AGENT = "edge-1"
START_MS = 1_800_000_000_000
STEP_MS = 1_000
STRETCHES = 25

T = TypeVar("T")


def run(*, quick: bool) -> dict[str, Any]:
    samples = 500_000 if quick else 1_000_000
    rules = rules_file.read(Path("/nonexistent"))  # the built-in ones
    figures: dict[str, Any] = {
        "quiet_200_msps": _engine(rules, 200, 0.0, samples),
        "quiet_5000_msps": _engine(rules, 5_000, 0.0, samples),
        "active_200_msps": _engine(rules, 200, 0.01, samples),
        "oracle_msps": _oracle(rules, 200, 0.01, samples // 5),
    }
    figures["oracle_ratio"] = round(figures["active_200_msps"] / figures["oracle_msps"], 1)
    talk(f"core: {figures}")
    return figures


def _layout(samples: int) -> Layout:
    the_series = series(samples)
    return Layout(layout_id(the_series), the_series)


def _frames(layout: Layout, active: float, count: int) -> Iterator[Frame]:
    """Frames of one section as records, never encoded: 5,000 samples are more than the wire lets into a section."""
    samples = len(layout.series)
    phases = [array("d", values).tobytes() for values in Workload(samples, active).phases()]
    counters = np.full(samples // 5, 1_000_000, np.uint64)
    for seq in range(1, count + 1):
        at_ms = START_MS + seq * STEP_MS
        counters[::2] += np.uint64(1_500)  # errors, every other one, stay what they are
        section = Section(layout.id, at_ms, phases[seq % len(phases)], counters.tobytes())
        layouts = (layout,) if seq == 1 else ()
        yield Frame(seq, seq - 1, Clock(at_ms, seq * STEP_MS, 1), layouts, (section,))


def _engine(rules: tuple[Rule, ...], samples: int, active: float, total: int) -> float:
    """Million samples a second. Figures are those of the best stretch."""
    engine = Engine()
    registry = Registry(1, (Site("plant"),), (Device(AGENT, "plant", is_agent=True),))
    engine.step(Entry(0, START_MS, Config(registry, rules)))
    count = 1 + total // samples // STRETCHES * STRETCHES
    entries = [
        Entry(frame.seq, START_MS + frame.seq * STEP_MS, FrameIn(AGENT, b"s", frame))
        for frame in _frames(_layout(samples), active, count)
    ]
    engine.step(entries[0])
    best_s = _best(engine.step, entries[1:])
    assert engine.samples == count * samples, (engine.samples, count)
    return round(samples / best_s / 1e6, 2)


def _oracle(rules: tuple[Rule, ...], samples: int, active: float, total: int) -> float:
    """The same samples, told one by one to the oracle."""
    layout = _layout(samples)
    compiled = RuleSet(rules)
    memories = {}
    for sid, one in enumerate(layout.series):
        info = SeriesAdded(sid, AGENT, AGENT, one.metric, one.unit, int(one.kind), one.labels)
        memories[sid] = Memory(one.kind, [(n, compiled.rules[n]) for n in compiled.compile(info, None).rules])
    oracle = Oracle(memories)

    def told(frame: Frame) -> None:
        (section,) = frame.sections
        numbers = [*array("d", section.values), *array("Q", section.counters)]
        for sid, number in enumerate(numbers):
            oracle.sample(sid, number, section.time_ms)
        oracle.advance(section.time_ms)

    return round(samples / _best(told, list(_frames(layout, active, total // samples))) / 1e6, 3)


def _best(work: Callable[[T], object], items: Sequence[T]) -> float:
    """Seconds an item, of the best of STRETCHES equal stretches."""
    size = len(items) // STRETCHES
    found = []
    for start in range(0, size * STRETCHES, size):
        began = time.perf_counter()
        for item in items[start : start + size]:
            work(item)
        found.append((time.perf_counter() - began) / size)
    return min(found)
