"""The engine: `step(entry) -> effects` over one ordered journal, `snapshot()` and `restore()`.

It composes the rooms of the core and holds no semantics of its own beyond the order of things within an entry: clocks,
layouts, samples, timers, evidence, findings. The invariant (law 3): the same entries give the same effects, from any snapshot.
"""

import msgspec
import numpy as np

from tocsin_collector.core import snapshot
from tocsin_collector.core.agents import Agent, AgentView
from tocsin_collector.core.book import Book
from tocsin_collector.core.detector import Change, Detector
from tocsin_collector.core.findings import AGENT_SILENT, agent_silent, finding_of, key_of
from tocsin_collector.core.layouts import REACHABLE, Layouts
from tocsin_collector.core.ledger import Tracker
from tocsin_collector.core.model import (
    Command,
    Config,
    Device,
    Effect,
    Entry,
    FrameIn,
    GapSeen,
    PulseIn,
    Refused,
    Registry,
    SeriesAdded,
    Splice,
    Step,
    Tick,
    Truth,
)
from tocsin_collector.core.registry import may_speak_for
from tocsin_collector.core.rules import RuleSet
from tocsin_collector.core.series import WATCHED, Catalogue, Floats, Ints
from tocsin_collector.core.topology import Topology

TICK_HOLE_MS = 5000  # ticks further apart than this: the collector was stopped in between
STALE_EVERY_MS = 5000


class Engine:
    """All state of one partition. Nothing outside changes it but `step`."""

    def __init__(self) -> None:
        self.offset = -1
        self.samples = 0
        self.config = Config(Registry(), ())
        self.catalogue = Catalogue()
        self.detector = Detector(self.catalogue)
        self.layouts = Layouts(self.catalogue, self.detector, self._watch)
        self.layouts.on_new = self._on_new_series
        self.layouts.on_gap = self._on_gap
        self.topology = Topology()
        self.book = Book(self.topology, self._last_evidence, self._patience)
        self.book.catching_up = self._is_catching_up
        self.book.defer = self._defer
        self.devices: dict[str, Device] = {}
        self.trackers: dict[str, Tracker] = {}
        self.reach: dict[int, Tracker] = {}  # series id of device.reachable -> the device's tracker
        self.no_data: dict[int, int] = {}  # series id -> milliseconds without data that its rules allow
        self.known: dict[str, Agent] = {}
        self._allowed: dict[str, frozenset[str]] = {}
        self.last_tick_ms = 0
        self.resumed_ms = 0
        self.stale_checked_ms = 0

    # ------------------------------------------------------------------------------------------------------- entries

    def step(self, entry: Entry) -> list[Effect]:
        """Apply one journal entry and say what follows from it."""
        out: list[Effect] = []
        now_ms = entry.received_ms
        self.offset = entry.offset
        self.book.begin(entry.offset, now_ms, out)
        what = entry.input
        if type(what) is FrameIn:
            self._frame(what, now_ms, out)
        elif type(what) is Tick:
            self._tick(now_ms, out)
        elif type(what) is PulseIn:
            agent = self._hear(what.agent, now_ms)
            agent.anchor(what.pulse.clock, now_ms)
        elif type(what) is Command:
            self.book.command(what)
        else:
            assert type(what) is Config
            self._configure(what, now_ms, out)
        return out

    def _frame(self, what: FrameIn, now_ms: int, out: list[Effect]) -> None:
        frame = what.frame
        agent = self._hear(what.agent, now_ms)
        shift_ms = agent.correct(frame.clock)
        made_ms = self._plausible(frame.clock.wall_ms + shift_ms, now_ms)
        shift_ms = made_ms - frame.clock.wall_ms
        catching_up = now_ms - made_ms > self.config.settings.silent_after_ms
        caught_up, agent.catching_up = agent.catching_up and not catching_up, catching_up
        for layout in frame.layouts:
            self.layouts.declare(agent, layout, out)
        for section in frame.sections:
            self.samples += self.layouts.apply(agent, section, shift_ms, out)
        if frame.events:
            detail = f"{frame.events[0].source} {frame.events[0].name}"
            out.append(Refused(agent.name, "event without rule", detail, len(frame.events)))
        for gap in frame.gaps:
            out.append(GapSeen(agent.name, gap.from_ms, gap.to_ms, gap.reason, gap.frames))
        if made_ms > agent.watermark_ms:
            agent.watermark_ms = made_ms
            self.detector.advance(agent.name, made_ms)
        if agent.tracker is not None:
            out += self._stamped(agent.tracker.evidence(made_ms, now_ms))
        if self.detector.changes or self.detector.watched_samples:
            self._settle(now_ms, out)
        if caught_up:
            deferred, agent.deferred = agent.deferred, {}
            self.book.tell_deferred(deferred, agent.name)

    def _plausible(self, at_ms: int, now_ms: int) -> int:
        """A stamp of 1970 or 2106 takes the time of receipt."""
        settings = self.config.settings
        return at_ms if now_ms - settings.past_ms_max <= at_ms <= now_ms + settings.future_ms_max else now_ms

    def _settle(self, now_ms: int, out: list[Effect]) -> None:
        """Evidence and changed findings of this entry, in the order of their event time."""
        changes, self.detector.changes = self.detector.changes, []
        samples, self.detector.watched_samples = self.detector.watched_samples, []
        events: list[tuple[int, int, int, int, int | Change]] = [(at, 0, sid, 0, sid) for sid, at in samples]
        events += [(change.at_ms, 1, change.sid, change.rule, change) for change in changes]
        events.sort(key=lambda event: event[:4])  # stable, and the same whatever order timers are kept in
        for at_ms, _, _, _, what in events:
            if isinstance(what, int):
                self._evidence(what, at_ms, now_ms, out)
            else:
                self._changed(what, out)

    def _evidence(self, sid: int, at_ms: int, now_ms: int, out: list[Effect]) -> None:
        tracker = self.reach.get(sid)
        flags = self.catalogue.m_flags
        if tracker is not None:
            out += self._stamped(tracker.evidence(at_ms, now_ms))
        if tracker is None or not (tracker.known_from_ms or tracker.is_silent):
            flags[sid] = flags[sid] & ~WATCHED & 0xFF

    def _changed(self, change: Change, out: list[Effect]) -> None:
        info = self.catalogue.info[change.sid]
        rule = self.detector.set.rules[change.rule]
        key = key_of(rule, info)
        tracker = self._synced(info.device)
        if tracker is not None and not change.is_crossing:
            impact, is_raised = rule.impact, change.severity is not None
            out += self._stamped(tracker.change(change.at_ms, key, impact, is_raised))
        device = self.devices.get(info.device)
        finding = finding_of(change, rule, info, device, self.catalogue.agent[change.sid])
        if change.severity is None:
            self.book.clear(key, change.at_ms, *finding.steps)
        else:
            self.book.raise_(finding)

    # --------------------------------------------------------------------------------------------------------- ticks

    def _tick(self, now_ms: int, out: list[Effect]) -> None:
        if self.last_tick_ms and now_ms - self.last_tick_ms > TICK_HOLE_MS:
            self.resumed_ms = now_ms  # silence during our own absence is nobody's fault
        self.last_tick_ms = now_ms
        silent_after = self.config.settings.silent_after_ms
        for agent in self.known.values():
            heard_ms = max(agent.last_received_ms, self.resumed_ms)
            if not agent.is_silent and agent.last_received_ms and now_ms - heard_ms > silent_after:
                self._silence(agent, out)
        if now_ms - self.stale_checked_ms >= STALE_EVERY_MS:
            self.stale_checked_ms = now_ms
            self._check_stale(out)
        if self.no_data:
            self._check_no_data(now_ms, out)
        self.book.tick()

    def _silence(self, agent: Agent, out: list[Effect]) -> None:
        agent.is_silent = True
        agent.catching_up, deferred, agent.deferred = False, agent.deferred, {}
        self.book.tell_deferred(deferred, agent.name)
        for tracker in self._trackers_of(agent.name):
            out += self._stamped(tracker.silence())
        device = self.devices.get(agent.name)
        self.book.raise_(agent_silent(agent.name, device, agent.last_received_ms, self.book.now_ms))

    def _check_stale(self, out: list[Effect]) -> None:
        """Devices whose agent lives but no longer speaks of them."""
        for sid, tracker in self.reach.items():
            agent = self.known.get(self.catalogue.agent[sid])
            if agent is None or agent.is_silent or agent.catching_up or tracker.is_silent:
                continue
            if agent.watermark_ms - self.catalogue.m_last_ms[sid] > tracker.window_ms:
                self._synced(tracker.component)
                out += self._stamped(tracker.silence())
                self.catalogue.m_flags[sid] |= WATCHED

    def _check_no_data(self, now_ms: int, out: list[Effect]) -> None:
        c = self.catalogue
        for sid, gap_ms in self.no_data.items():
            agent = self.known.get(c.agent[sid])
            if agent is None or agent.is_silent or not c.m_last_ms[sid]:
                continue
            if agent.watermark_ms - c.m_last_ms[sid] >= gap_ms:
                self.detector.no_data(sid, agent.watermark_ms)
        if self.detector.changes:
            self._settle(now_ms, out)

    # -------------------------------------------------------------------------------------------------------- agents

    def _hear(self, name: str, now_ms: int) -> Agent:
        """Something came from this agent: it lives."""
        agent = self.known.get(name)
        if agent is None:
            agent = self.known[name] = Agent(name)
            agent.allowed = self._allowed.get(name, frozenset((name,)))
            agent.tracker = self.trackers.get(name)
        agent.last_received_ms = now_ms
        if agent.is_silent:
            agent.is_silent = False
            self.book.clear(f"{AGENT_SILENT.id}/{name}", now_ms, Step(now_ms, "agent_heard", {"device": name}))
        return agent

    def _is_catching_up(self, name: str) -> bool:
        agent = self.known.get(name)
        return agent is not None and agent.catching_up

    def _defer(self, name: str, incident: str) -> None:
        self.known[name].deferred[incident] = None

    # -------------------------------------------------------------------------------------------------- configuration

    def _configure(self, config: Config, now_ms: int, out: list[Effect]) -> None:
        rules, before = RuleSet(config.rules), self.detector.set
        devices = {device.id: device for device in config.registry.devices}
        self.config = config
        self.book.settings = config.settings
        self.topology.configure(config.registry)
        self._recompile(before, rules, devices, now_ms)
        self._settle_removed(before, now_ms, out)
        self.devices = self.layouts.devices = devices
        self._allowed = may_speak_for(config.registry)
        for device in config.registry.devices:
            tracker = self.trackers.get(device.id)
            if tracker is None:
                tracker = self.trackers[device.id] = Tracker(device.id, 0)
                out += self._stamped([tracker.begin(now_ms)])
            tracker.window_ms = self.window(device)
        for name in [name for name in self.trackers if name not in devices]:
            out += self._stamped(self.trackers.pop(name).silence())
        self._bind()
        for agent in self.known.values():
            agent.tracker = self.trackers.get(agent.name)
            allowed = self._allowed.get(agent.name, frozenset((agent.name,)))
            agent.allowed = allowed
            for layout, where in list(agent.layouts.items()):
                self.layouts.adopt(agent, layout, where.declared)

    def _recompile(self, before: RuleSet, rules: RuleSet, devices: dict[str, Device], now_ms: int) -> None:
        """Give every series its rules under the new set; what it no longer has ends what it had raised."""
        index_of = {rule.id: index for index, rule in enumerate(rules.rules)}
        kept = {
            old: index_of[rule.id]
            for old, rule in enumerate(before.rules)
            if rule.id in index_of and len(rule.levels) == len(rules.rules[index_of[rule.id]].levels)
        }
        if before.rules == rules.rules and devices == self.devices:
            return
        compiled = [rules.compile(info, devices.get(info.device)) for info in self.catalogue.info]
        for sid, index in list(self.detector.slots):
            if kept.get(index, -1) not in compiled[sid].rules:
                self.detector.forget(sid, index, now_ms)
        self.detector.adopt(rules, kept)
        for sid, one in enumerate(compiled):
            self.catalogue.compile(sid, one)

    def _settle_removed(self, before: RuleSet, now_ms: int, out: list[Effect]) -> None:
        changes, self.detector.changes = self.detector.changes, []
        for change in changes:
            info = self.catalogue.info[change.sid]
            rule = before.rules[change.rule]
            key = key_of(rule, info)
            tracker = self._synced(info.device)
            if tracker is not None:
                out += self._stamped(tracker.change(now_ms, key, rule.impact, False))
            self.book.clear(key, now_ms, Step(now_ms, "rule_gone", {"rule": rule.id}))

    def window(self, device: Device) -> int:
        """How long evidence holds: three polls, and never less than an agent may be silent."""
        polls = 3 * device.snmp.interval_ms if device.snmp else 0
        return max(self.config.settings.silent_after_ms, polls)

    def _bind(self) -> None:
        """Work out again which series are evidence of which device, and which have a no-data rule."""
        self.reach, self.no_data = {}, {}
        for info in self.catalogue.info:
            self._on_new_series(info)

    def _on_new_series(self, info: SeriesAdded) -> None:
        tracker = self.trackers.get(info.device)
        if info.metric == REACHABLE and tracker is not None and info.device != info.agent:
            self.reach[info.id] = tracker
            if not tracker.last_ms or tracker.known_from_ms or tracker.is_silent:
                self.catalogue.m_flags[info.id] |= WATCHED
        gaps = [
            level.no_data_ms
            for index in self.catalogue.rules[info.id]
            for level in self.detector.set.rules[index].levels
            if level.no_data_ms
        ]
        if gaps:
            self.no_data[info.id] = min(gaps)

    def _on_gap(self, sid: int) -> None:
        """A hole in a series' event time begins where its last sample was: remember that before the next one comes."""
        self._synced(self.catalogue.info[sid].device)

    def _watch(self, sid: int) -> int:
        tracker = self.reach.get(sid)
        return min([gap for gap in (tracker.window_ms if tracker else 0, self.no_data.get(sid, 0)) if gap], default=0)

    # --------------------------------------------------------------------------------------------------------- leaves

    def _stamped(self, splices: list[Splice]) -> list[Splice]:
        return [msgspec.structs.replace(splice, revision=self.offset) for splice in splices] if splices else []

    def _synced(self, device: str) -> Tracker | None:
        """The device's tracker, told of the quiet evidence that only moved a column."""
        tracker = self.trackers.get(device)
        if tracker is None or tracker.is_silent or tracker.known_from_ms:
            return tracker
        sid = self.catalogue.ids.get((device, REACHABLE, ()))
        if sid is not None and sid in self.reach and tracker.last_ms:
            tracker.last_ms = max(tracker.last_ms, self.catalogue.m_last_ms[sid])
        return tracker

    def _trackers_of(self, agent: str) -> list[Tracker]:
        mine = [tracker for tracker in (self.trackers.get(agent),) if tracker is not None]
        for sid, tracker in self.reach.items():
            if self.catalogue.agent[sid] == agent:
                self._synced(tracker.component)
                self.catalogue.m_flags[sid] |= WATCHED
                mine.append(tracker)
        return mine

    def _last_evidence(self, device: str) -> int:
        tracker = self._synced(device)
        return tracker.last_ms if tracker is not None and not tracker.is_silent else 0

    def _patience(self, device: str) -> int:
        """How long to wait until news of this device must have come: two polls."""
        known = self.devices.get(device)
        return 2 * known.snmp.interval_ms if known is not None and known.snmp else 0

    # --------------------------------------------------------------------------------------------------------- views

    def agents(self) -> list[AgentView]:
        return [agent.view() for agent in self.known.values()]

    def latest(self, agent: str) -> tuple[Ints, Ints, Floats]:
        """Ids (n,), event times (n,) and newest values (n,) of what the agent reports; a counter's value is its rate."""
        known = self.known.get(agent)
        parts = [where.ids[where.ids >= 0] for where in known.layouts.values()] if known else []
        ids = np.unique(np.concatenate(parts)) if parts else np.empty(0, np.int64)
        ids = ids[self.catalogue.last_ms[ids] > 0]
        return ids, self.catalogue.last_ms[ids], self.catalogue.value[ids]

    # ------------------------------------------------------------------------------------------------------- snapshot

    def snapshot(self) -> bytes:
        """All state, stamped with the engine's version; rules and registry are part of it."""
        return snapshot.freeze(self)

    @classmethod
    def restore(cls, data: bytes) -> "Engine":
        """Go on from a snapshot. SnapshotError: it is not whole, or another engine's."""
        return snapshot.thaw(cls(), data)

    @classmethod
    def from_truth(cls, truth: Truth) -> "Engine":
        """Start from what the store has committed: incidents and ledger go on, series state warms up."""
        return snapshot.recall(cls(), truth)

    def load(self, config: Config, series: tuple[SeriesAdded, ...], agents: tuple[str, ...]) -> None:
        """Registry, rules and catalogue as they were; part of every start."""
        self.config = config
        self.book.settings = config.settings
        self.devices = self.layouts.devices = {device.id: device for device in config.registry.devices}
        self.topology.configure(config.registry)
        self._allowed = may_speak_for(config.registry)
        self.detector.set = RuleSet(config.rules)
        for info in series:
            self.catalogue.add(info, self.detector.set.compile(info, self.devices.get(info.device)))
        self.catalogue.agent = list(agents)

    def rejoin(self, layouts: tuple[tuple[str, int, tuple[int, ...]], ...]) -> None:
        """Tie agents, trackers and layouts together again."""
        self._bind()
        for agent in self.known.values():
            agent.allowed = self._allowed.get(agent.name, frozenset((agent.name,)))
            agent.tracker = self.trackers.get(agent.name)
        for name, layout, declared in layouts:
            self.layouts.adopt(self.known[name], layout, declared)
