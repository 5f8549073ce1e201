"""A small random plant for the engine: agents, polled devices behind a switch, faults, and what each agent would send.

Each agent's frames come in sequence with true event times; how they are delivered (late, in bursts, interleaved, with ticks in
between) is the test's business.
"""

import random
from dataclasses import dataclass

from tocsin_collector.core.ledger import Row, splice
from tocsin_collector.core.model import (
    ComponentState,
    Config,
    Device,
    Effect,
    Entry,
    FrameIn,
    Impact,
    Level,
    PulseIn,
    Registry,
    Rule,
    Severity,
    Site,
    SnmpAccess,
    Splice,
    Tick,
)
from tocsin_proto.codec import layout_id, pack_floats
from tocsin_proto.records import Clock, Frame, Layout, Pulse, Section, Series, SeriesKind

START_MS = 1_700_000_000_000
STEP_MS = 5_000

RULES = (
    Rule(
        "device-unreachable",
        "device.reachable",
        (Level(Severity.CRITICAL, below=1.0),),
        says="{device} does not answer",
        impact=Impact.DOWN,
        is_reachability=True,
    ),
    Rule(
        "disk-full",
        "disk.used_ratio",
        (
            Level(Severity.WARNING, above=0.8, clear_below=0.7, for_ms=7_000),
            Level(Severity.MAJOR, above=0.9, clear_below=0.85, keep_ms=12_000),
        ),
        says="{mount} on {device} is {value} full",
        impact=Impact.DEGRADED,
    ),
)


def config(agents: int, devices: int) -> Config:
    """Each agent polls a switch and `devices` devices behind it."""
    poll = SnmpAccess(interval_ms=STEP_MS)
    found = []
    for a in range(agents):
        found.append(Device(f"agent-{a}", "plant", is_agent=True))
        found.append(Device(f"switch-{a}", "plant", watched_by=f"agent-{a}", address="192.0.2.1", snmp=poll))
        for d in range(devices):
            found.append(
                Device(
                    f"device-{a}-{d}",
                    "plant",
                    watched_by=f"agent-{a}",
                    address="192.0.2.2",
                    snmp=poll,
                    parents=(f"switch-{a}",),
                )
            )
    return Config(Registry(1, (Site("plant"),), tuple(found)), RULES)


@dataclass
class Script:
    """What one agent sends: (event time, frame), in sequence."""

    agent: str
    frames: list[tuple[int, Frame]]


def script(rng: random.Random, agent: int, devices: int, steps: int) -> Script:
    """Random faults: devices that stop answering, disks that hover, and stretches in which the agent itself made nothing."""
    names = [f"switch-{agent}", *(f"device-{agent}-{d}" for d in range(devices))]
    series = [Series(name, "device.reachable", "1", SeriesKind.STATE) for name in names]
    series += [Series("", "disk.used_ratio", "1", SeriesKind.GAUGE, (("mount", m),)) for m in ("/", "/data")]
    layout = Layout(layout_id(tuple(series)), tuple(series))
    reachable = dict.fromkeys(names, 1.0)
    frames: list[tuple[int, Frame]] = []
    now_ms = START_MS + 1000 + agent * 137
    for seq in range(1, steps + 1):
        now_ms += STEP_MS if rng.random() < 0.97 else rng.choice((20_000, 60_000, 200_000))
        for name in names:
            if rng.random() < 0.06:
                reachable[name] = 1.0 - reachable[name]
        disks = [rng.choice((0.5, 0.75, 0.82, 0.88, 0.95)) for _ in range(2)]
        values = pack_floats([*reachable.values(), *disks])
        section = Section(layout.id, now_ms, values)
        clock = Clock(now_ms, now_ms - START_MS, 1)
        frames.append((now_ms, Frame(seq, seq - 1, clock, (layout,), (section,))))
    return Script(f"agent-{agent}", frames)


def deliver(rng: random.Random, scripts: list[Script], setup: Config, end_ms: int, late: float) -> list[Entry]:
    """A journal: config, then frames in each agent's order with random delays, ticks each second. late: share of outages."""
    events: list[tuple[int, int, FrameIn | PulseIn | Tick | Config]] = [(START_MS, 0, setup)]
    for number, one in enumerate(scripts):
        available_ms = START_MS
        events.append((START_MS, 1, PulseIn(one.agent, Pulse(Clock(START_MS, 0, 1)))))
        for made_ms, frame in one.frames:
            if rng.random() < late:
                available_ms = max(available_ms, made_ms + rng.choice((3_000, 30_000, 120_000, 600_000)))
            available_ms = max(available_ms, made_ms + rng.randint(1, 400))
            events.append((available_ms, 10 + number, FrameIn(one.agent, b"s", frame)))
    events += [(now, 9, Tick()) for now in range(START_MS + 1000, end_ms, 1000)]
    events.sort(key=lambda event: event[:2])
    return [Entry(offset, at, what) for offset, (at, _, what) in enumerate(events)]


class Record:
    """The ledger as a store would hold it."""

    def __init__(self) -> None:
        self.rows: dict[str, list[Row]] = {}
        self._next = 0

    def take(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Splice):
                self._splice(effect)

    def _splice(self, new: Splice) -> None:
        rows = self.rows.setdefault(new.component, [])
        superseded, pieces = splice(rows, new)
        kept = [row for row in rows if row.id not in superseded]
        for piece in pieces:
            self._next += 1
            kept.append(Row(self._next, *piece))
        self.rows[new.component] = sorted(kept, key=lambda row: row.start_ms)

    def timeline(self, component: str, end_ms: int) -> list[tuple[int, int, ComponentState]]:
        """Merged (start, end, state) up to end_ms; fails on a hole or an overlap."""
        merged: list[tuple[int, int, ComponentState]] = []
        for row in self.rows[component]:
            end, state = row.end_ms or end_ms, ComponentState(row.state)
            if merged:
                assert merged[-1][1] == row.start_ms, (component, merged[-1], row)
            if merged and merged[-1][2] is state:
                merged[-1] = (merged[-1][0], end, state)
            else:
                merged.append((row.start_ms, end, state))
        return merged
