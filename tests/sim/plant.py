"""The truth of a simulated plant: what every sensor would show at any moment, scripted from the seed.

Each agent watches its own host (two disks, one interface) and polls a switch with devices behind it. The script says
when each of them is at fault; nothing of the product is used here but its words.
"""

import random
from bisect import bisect_right
from dataclasses import dataclass, field

from tocsin_collector.core.model import (
    Config,
    Device,
    Impact,
    Level,
    Registry,
    Rule,
    Settings,
    Severity,
    Site,
    SnmpAccess,
)
from tocsin_proto.records import Series, SeriesKind

START_MS = 1_760_000_000_000
SAMPLE_MS = 5_000
SETTINGS = Settings(silent_after_ms=20_000, hold_ms=6_000, reopen_within_ms=60_000, close_after_ms=90_000)
UNREACHABLE = Rule(
    "device-unreachable",
    "device.reachable",
    (Level(Severity.CRITICAL, below=1.0),),
    says="{device} does not answer",
    impact=Impact.DOWN,
    is_reachability=True,
)
DISK_FULL = Rule(
    "disk-full",
    "disk.used_ratio",
    (
        Level(Severity.WARNING, above=0.8, clear_below=0.7, for_ms=7_000),
        Level(Severity.MAJOR, above=0.9, clear_below=0.85, keep_ms=12_000),
    ),
    says="{mount} on {device} is {value} full",
    impact=Impact.DEGRADED,
)
INTERFACE_DOWN = Rule(
    "interface-down",
    "if.oper_status",
    (Level(Severity.MAJOR, is_state=(2,), after=(1,)),),
    says="{interface} of {device} is down",
    impact=Impact.DEGRADED,
)
TRAFFIC_HIGH = Rule(
    "traffic-high",
    "if.in_bytes",
    (Level(Severity.WARNING, above=1e6, for_ms=8_000),),
    says="{interface} of {device} receives {value} B/s",
)
RULES = (UNREACHABLE, DISK_FULL, INTERFACE_DOWN, TRAFFIC_HIGH)
QUIET_BYTES_PER_S, BUSY_BYTES_PER_S = 2e5, 5e6


@dataclass
class Signal:
    """One series and the values it would show: `values[n]` from `starts_ms[n]` on."""

    lane: str
    series: Series
    rule: Rule
    device: str
    starts_ms: list[int] = field(default_factory=lambda: [0])
    values: list[float] = field(default_factory=lambda: [0.0])
    faults: list[tuple[int, int]] = field(default_factory=list)  # (from, to), true time

    @property
    def key(self) -> str:
        return "/".join((self.rule.id, self.device, *(f"{name}={value}" for name, value in self.series.labels)))

    def at(self, now_ms: int) -> float:
        return self.values[bisect_right(self.starts_ms, now_ms) - 1]

    def counted(self, now_ms: int) -> int:
        """A counter's reading: what its rate has added up to."""
        total = 0.0
        for number, rate in enumerate(self.values):
            start = max(START_MS, self.starts_ms[number])
            end = min(now_ms, self.starts_ms[number + 1] if number + 1 < len(self.starts_ms) else now_ms)
            total += max(0, end - start) * rate / 1000
        return int(total)

    def script(
        self, rng: random.Random, stretches: list[tuple[int, int]], quiet: list[float], bad: list[float]
    ) -> None:
        """Quiet values outside the stretches, bad ones inside; both may change while they last."""
        self.faults = stretches
        self.starts_ms, self.values = [0], [quiet[0]]
        for start, end in stretches:
            at = start
            while at < end:
                self._say(at, rng.choice(bad))
                at += rng.choice((4_000, 9_000, 30_000))
            self._say(end, rng.choice(quiet))

    def _say(self, at_ms: int, value: float) -> None:
        self.starts_ms.append(at_ms)
        self.values.append(value)


@dataclass
class Plant:
    """One agent's part of the world."""

    agent: str
    switch: str
    children: tuple[str, ...]
    signals: list[Signal]

    def reachability(self, device: str) -> Signal:
        return next(one for one in self.signals if one.rule is UNREACHABLE and one.device == device)


def plant(rng: random.Random, number: int, faults_end_ms: int) -> Plant:
    agent, switch = f"agent-{number}", f"switch-{number}"
    children = tuple(f"device-{number}-{d}" for d in range(rng.randint(1, 3)))
    signals = []

    def signal(lane: str, rule: Rule, device: str, kind: SeriesKind, *labels: tuple[str, str]) -> Signal:
        resource = "" if device == agent else device
        one = Signal(lane, Series(resource, rule.metric, "1", kind, labels, SAMPLE_MS), rule, device)
        signals.append(one)
        return one

    def stretches(most: int, longest_ms: int) -> list[tuple[int, int]]:
        return _stretches(rng, rng.randint(0, most), longest_ms, faults_end_ms)

    for mount in ("/", "/data"):
        one = signal("host", DISK_FULL, agent, SeriesKind.GAUGE, ("mount", mount))
        one.script(rng, stretches(3, 60_000), [0.5, 0.6, 0.75], [0.82, 0.88, 0.95, 0.97])
        one.values[-1] = min(one.values[-1], 0.6)  # below every clear level: nothing may stay raised for ever
    one = signal("host", INTERFACE_DOWN, agent, SeriesKind.STATE, ("interface", "eth0"))
    one.script(rng, stretches(2, 40_000), [1.0], [2.0])
    one = signal("host", TRAFFIC_HIGH, agent, SeriesKind.COUNTER64, ("interface", "eth0"))
    one.script(rng, stretches(1, 60_000), [QUIET_BYTES_PER_S], [BUSY_BYTES_PER_S])
    below = stretches(2, 90_000)
    one = signal("poll", UNREACHABLE, switch, SeriesKind.STATE)
    one.script(rng, below, [1.0], [0.0])
    one = signal("poll", INTERFACE_DOWN, switch, SeriesKind.STATE, ("interface", "1"))
    one.script(rng, stretches(2, 40_000), [1.0], [2.0])
    for child in children:
        own = stretches(1, 60_000)
        one = signal("poll", UNREACHABLE, child, SeriesKind.STATE)
        one.script(rng, _joined([*below, *own]), [1.0], [0.0])
    return Plant(agent, switch, children, signals)


def config(plants: list[Plant]) -> Config:
    poll = SnmpAccess(interval_ms=SAMPLE_MS)
    devices = []
    for one in plants:
        devices.append(Device(one.agent, "plant", is_agent=True))
        devices.append(Device(one.switch, "plant", watched_by=one.agent, address="192.0.2.1", snmp=poll))
        devices += [
            Device(child, "plant", watched_by=one.agent, address="192.0.2.2", snmp=poll, parents=(one.switch,))
            for child in one.children
        ]
    return Config(Registry(1, (Site("plant"),), tuple(devices)), RULES, SETTINGS)


def _stretches(rng: random.Random, count: int, longest_ms: int, end_ms: int) -> list[tuple[int, int]]:
    found = []
    for _ in range(count):
        start = rng.randint(START_MS + 20_000, end_ms)
        found.append((start, start + rng.randint(2_000, longest_ms)))
    return _joined(found)


def _joined(stretches: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """In order, those that touch as one."""
    out: list[tuple[int, int]] = []
    for start, end in sorted(stretches):
        if out and start <= out[-1][1] + 1_000:
            out[-1] = (out[-1][0], max(end, out[-1][1]))
        else:
            out.append((start, end))
    return out
