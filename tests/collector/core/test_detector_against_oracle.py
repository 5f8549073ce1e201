"""The detector and the plain-Python oracle say the same about every random workload: findings, times, final values."""

import math
import random

import pytest
from tests.collector.core.oracle import Memory, Oracle
from tests.collector.core.workload import Source, layouts, rules

from tocsin_collector.core.agents import Agent
from tocsin_collector.core.detector import Detector
from tocsin_collector.core.layouts import Layouts
from tocsin_collector.core.model import Device
from tocsin_collector.core.rules import RuleSet
from tocsin_collector.core.series import COLUMNS, Catalogue

START_MS = 1_700_000_000_000
AGENT = "edge-1"
HOST = Device(AGENT, "plant", is_agent=True)


class Rig:
    """A detector fed through layouts and sections, as the engine feeds it."""

    def __init__(self, the_rules: RuleSet) -> None:
        self.catalogue = Catalogue()
        self.detector = Detector(self.catalogue)
        self.detector.set = the_rules
        self.layouts = Layouts(self.catalogue, self.detector, lambda sid: 0)
        self.layouts.devices = {AGENT: HOST}
        self.agent = Agent(AGENT)

    def restarted(self) -> "Rig":
        """The same state in new objects, by way of what a snapshot holds."""
        other = Rig(self.detector.set)
        for info in self.catalogue.info:
            other.catalogue.add(info, other.detector.set.compile(info, HOST))
        for name in COLUMNS:
            count = self.catalogue.count
            getattr(other.catalogue, name)[:count] = getattr(self.catalogue, name)[:count]
        other.detector.thaw(self.detector.freeze())
        for name in COLUMNS:
            count = self.catalogue.count
            getattr(other.catalogue, name)[:count] = getattr(self.catalogue, name)[:count]
        for layout, where in self.agent.layouts.items():
            other.layouts.adopt(other.agent, layout, where.declared, [])
        return other


def play(seed: int, shots: int = 150) -> None:
    rng = random.Random(seed)
    the_rules = RuleSet(rules(rng))
    rig = Rig(the_rules)
    all_layouts = layouts(rng)
    oracle = Oracle({})
    said: list[tuple[int, int, int, str]] = []
    for layout in all_layouts:
        rig.layouts.declare(rig.agent, layout, [])
        for position, sid in enumerate(rig.agent.layouts[layout.id].declared):
            found = rig.catalogue.rules[sid]
            memory = Memory(layout.series[position].kind, [(index, the_rules.rules[index]) for index in found])
            oracle.series[sid] = memory
    source = Source(rng, START_MS)
    watermark = 0
    for _ in range(shots):
        shot = source.shot(rng.choice(all_layouts))
        declared = rig.agent.layouts[shot.layout.id].declared
        rig.layouts.apply(rig.agent, shot.section, 0, shot.made_ms, [])
        for position, number, at_ms in shot.samples:
            oracle.sample(declared[position], number, at_ms)
        if shot.made_ms > watermark and rng.random() < 0.7:
            watermark = shot.made_ms
            rig.detector.advance(AGENT, watermark)
            oracle.advance(watermark)
        said += [
            (c.at_ms, c.sid, c.rule, "again" if c.is_crossing else c.severity.value if c.severity else "over")
            for c in rig.detector.changes
        ]
        rig.detector.changes.clear()
        if rng.random() < 0.02:
            rig = rig.restarted()
    assert sorted(said) == sorted(oracle.said), f"seed {seed}"
    assert len(said) == len(oracle.said)
    for sid, memory in oracle.series.items():
        seen = rig.catalogue.m_value[sid]
        assert seen == memory.value or (math.isnan(seen) and math.isnan(memory.value)), f"seed {seed}, series {sid}"
        assert rig.catalogue.m_last_ms[sid] == (memory.last or 0), f"seed {seed}, series {sid}"


@pytest.mark.parametrize("block", range(8))
def test_detector_and_oracle_agree_on_random_workloads(block: int) -> None:
    for seed in range(block * 25, block * 25 + 25):
        play(seed)


def test_the_workloads_reach_every_kind_of_finding() -> None:
    """A test of the tests: 40 workloads raise, clear, and repeat findings of every rule."""
    reached = set()
    for seed in range(40):
        rng = random.Random(seed)
        the_rules = rules(rng)
        oracle = Oracle({})
        all_layouts = layouts(rng)
        ids: dict[tuple[int, int], int] = {}
        for layout in all_layouts:
            for position, one in enumerate(layout.series):
                sid = ids[(layout.id, position)] = len(ids)
                oracle.series[sid] = Memory(
                    one.kind, [(i, r) for i, r in enumerate(the_rules) if r.metric == one.metric]
                )
        source = Source(rng, START_MS)
        for _ in range(150):
            shot = source.shot(rng.choice(all_layouts))
            for position, number, at_ms in shot.samples:
                oracle.sample(ids[(shot.layout.id, position)], number, at_ms)
        reached |= {(the_rules[rule].id, what) for _, _, rule, what in oracle.said}
    for rule in ("ratio-high", "ratio-low", "small-fast", "large-fast", "port-down", "port-test"):
        assert (rule, "over") in reached, rule
    assert ("ratio-high", "again") in reached
    assert ("ratio-high", "critical") in reached
