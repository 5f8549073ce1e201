"""The engine: `step(entry) -> effects` over one ordered journal, `snapshot()` and `restore()`.

It composes the rooms of the core and holds no semantics of its own beyond the order of things within an entry: clocks,
layouts, samples, timers, evidence, findings. The invariant (law 3): the same entries give the same effects, from any snapshot.
"""

import msgspec
import numpy as np

from tocsin_collector.core import snapshot
from tocsin_collector.core.agents import Agent, AgentView
from tocsin_collector.core.book import Book
from tocsin_collector.core.detector import Detector
from tocsin_collector.core.findings import agent_silent, finding_of, key_of, silent_key
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
from tocsin_collector.core.reconfigure import configure
from tocsin_collector.core.registry import may_speak_for
from tocsin_collector.core.rules import RuleSet
from tocsin_collector.core.series import WATCHED, Catalogue, Floats, Ints
from tocsin_collector.core.slots import Change
from tocsin_collector.core.topology import Topology

TICK_HOLE_MS = 5000  # ticks further apart than this: the collector was stopped in between
STALE_EVERY_MS = 5000
RETURN_MS = (
    30_000  # after our own absence: with the silence allowed, longer than an agent's longest pause between attempts
)
SWEEP_EVERY_MS = 60_000  # of an agent's event time


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
        self.layouts.on_retired = self._on_retired
        self.topology = Topology()
        self.book = Book(self.topology, self._last_answer, self._patience, self._last_sample)
        self.book.catching_up = self._is_catching_up
        self.book.defer = self._defer
        self.devices: dict[str, Device] = {}
        self.trackers: dict[str, Tracker] = {}
        self.reach: dict[int, Tracker] = {}  # series id of device.reachable -> the device's tracker
        self.no_data: dict[int, int] = {}  # series id -> milliseconds without data that its rules allow
        self.known: dict[str, Agent] = {}
        self.allowed: dict[str, frozenset[str]] = {}
        self.last_tick_ms = 0
        self.resumed_ms = 0
        self.stale_checked_ms = 0

    # ------------------------------------------------------------------------------------------------------- entries

    def step(self, entry: Entry) -> list[Effect]:
        """Apply one journal entry and say what follows from it."""
        out: list[Effect] = []
        now_ms = entry.received_ms
        self.offset = entry.offset
        has_stepped_back = now_ms < self.book.now_ms
        self.book.begin(entry.offset, now_ms, out)
        if has_stepped_back:
            self._step_back(now_ms, out)
        what = entry.input
        if type(what) is FrameIn:
            self._frame(what, now_ms, out)
        elif type(what) is Tick:
            self._tick(now_ms, out)
        elif type(what) is PulseIn:
            self._agent(what.agent, now_ms).anchor(what.pulse.clock, now_ms)
        elif type(what) is Command:
            self.book.command(what)
        else:
            assert type(what) is Config
            configure(self, what, now_ms, out)
        return out

    def _frame(self, what: FrameIn, now_ms: int, out: list[Effect]) -> None:
        frame = what.frame
        agent = self._hear(what.agent, now_ms)
        shift_ms = agent.correct(frame.clock)
        for layout in frame.layouts:
            self.layouts.declare(agent, layout, out)
        for gap in frame.gaps:
            out.append(GapSeen(agent.name, gap.from_ms, gap.to_ms, gap.reason, gap.frames))
        made_ms = frame.clock.wall_ms + shift_ms
        if not self._is_plausible(made_ms, now_ms):
            if (
                agent.is_anchored
            ):  # its clock is known: this was made too long ago, or by a clock that nothing is known of
                out.append(Refused(agent.name, "no usable time", f"made at {made_ms}, received at {now_ms}"))
                return
            made_ms = now_ms
        shift_ms = made_ms - frame.clock.wall_ms
        catching_up = now_ms - made_ms > self.config.settings.silent_after_ms
        caught_up, agent.catching_up = agent.catching_up and not catching_up, catching_up
        if made_ms - agent.swept_ms >= SWEEP_EVERY_MS:
            agent.swept_ms = made_ms
            for where in agent.layouts.values():
                self.detector.sweep(where.ids[where.ids >= 0], agent.watermark_ms)
        for section in frame.sections:
            self.samples += self.layouts.apply(agent, section, shift_ms, made_ms, out)
        if frame.events:
            detail = f"{frame.events[0].source} {frame.events[0].name}"
            out.append(Refused(agent.name, "event without rule", detail, len(frame.events)))
        if made_ms > agent.watermark_ms:
            agent.watermark_ms = made_ms
            self.detector.advance(agent.name, made_ms)
        if agent.tracker is not None:
            out += self.stamped(agent.tracker.evidence(made_ms, now_ms))
        if self.detector.changes or self.detector.watched_samples:
            self._settle(now_ms, out)
        if caught_up:
            deferred, agent.deferred = agent.deferred, {}
            self.book.tell_deferred(deferred, agent.name)

    def _is_plausible(self, at_ms: int, now_ms: int) -> bool:
        settings = self.config.settings
        return now_ms - settings.past_ms_max <= at_ms <= now_ms + settings.future_ms_max

    def _step_back(self, now_ms: int, out: list[Effect]) -> None:
        """Journal time went back: the collector's clock had been wrong. What was noted ahead of time counts as of now."""
        self.last_tick_ms = self.stale_checked_ms = self.book.flushed_ms = self.resumed_ms = now_ms
        self.detector.step_back(now_ms)
        for agent in self.known.values():
            agent.step_back(now_ms)
        for tracker in self.trackers.values():
            out += self.stamped(tracker.step_back(now_ms))
        self.book.hold_on()

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
            out += self.stamped(tracker.evidence(at_ms, now_ms))
        if tracker is None or not (tracker.known_from_ms or tracker.is_silent):
            flags[sid] = flags[sid] & ~WATCHED & 0xFF

    def _changed(self, change: Change, out: list[Effect]) -> None:
        info = self.catalogue.info[change.sid]
        rule = self.detector.set.rules[change.rule]
        key = key_of(rule, info)
        tracker = self.synced(info.device)
        if tracker is not None and not change.is_crossing:
            impact, is_raised = rule.impact, change.severity is not None
            out += self.stamped(tracker.change(change.at_ms, key, impact, is_raised))
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
            self.book.hold_on()
        self.last_tick_ms = now_ms
        silent_after = self.config.settings.silent_after_ms
        for agent in self.known.values():
            heard_ms = max(agent.last_frame_ms, self.resumed_ms + RETURN_MS if self.resumed_ms else 0)
            if not agent.is_silent and now_ms - heard_ms > silent_after:
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
            out += self.stamped(tracker.silence())
        device = self.devices.get(agent.name)
        self.book.raise_(agent_silent(agent.name, device, agent.last_frame_ms, self.book.now_ms))

    def _check_stale(self, out: list[Effect]) -> None:
        """Devices whose agent lives but no longer speaks of them."""
        for sid, tracker in self.reach.items():
            agent = self.known.get(self.catalogue.agent[sid])
            if agent is None or agent.is_silent or agent.catching_up or tracker.is_silent:
                continue
            if agent.watermark_ms - self.catalogue.m_last_ms[sid] > tracker.window_ms:
                self.synced(tracker.component)
                out += self.stamped(tracker.silence())
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

    def _agent(self, name: str, now_ms: int) -> Agent:
        """Something came from this agent. A first word starts the time in which frames are expected."""
        agent = self.known.get(name)
        if agent is None:
            agent = self.known[name] = Agent(name)
            agent.allowed = self.allowed.get(name, frozenset((name,)))
            agent.tracker = self.trackers.get(name)
            agent.last_frame_ms = now_ms
        agent.last_received_ms = now_ms
        return agent

    def _hear(self, name: str, now_ms: int) -> Agent:
        """A frame came: the agent measures. Pulses alone do not prove that (law 6)."""
        agent = self._agent(name, now_ms)
        agent.last_frame_ms = now_ms
        if agent.is_silent:
            agent.is_silent = False
            self.book.clear(silent_key(name), now_ms, Step(now_ms, "agent_heard", {"device": name}))
        return agent

    def _is_catching_up(self, name: str) -> bool:
        agent = self.known.get(name)
        return agent is not None and agent.catching_up

    def _defer(self, name: str, incident: str) -> None:
        self.known[name].deferred[incident] = None

    # -------------------------------------------------------------------------------------------------- configuration

    def window(self, device: Device) -> int:
        """How long evidence holds: three polls, and never less than an agent may be silent."""
        polls = 3 * device.snmp.interval_ms if device.snmp else 0
        return max(self.config.settings.silent_after_ms, polls)

    def bind(self) -> None:
        """Work out again which series are evidence of which device, and which have a no-data rule."""
        self.reach, self.no_data = {}, {}
        for info in self.catalogue.info:
            if self.catalogue.is_current(info.id):
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

    def _on_retired(self, sid: int) -> None:
        """A series makes room for another one under its name: what it had raised ends with it."""
        for index in self.catalogue.rules[sid]:
            self.detector.forget(sid, index, max(self.catalogue.m_last_ms[sid], 1))
        self.reach.pop(sid, None)
        self.no_data.pop(sid, None)

    def _on_gap(self, sid: int) -> None:
        """A hole in a series' event time begins where its last sample was: remember that before the next one comes."""
        self.synced(self.catalogue.info[sid].device)

    def _watch(self, sid: int) -> int:
        tracker = self.reach.get(sid)
        return min([gap for gap in (tracker.window_ms if tracker else 0, self.no_data.get(sid, 0)) if gap], default=0)

    # --------------------------------------------------------------------------------------------------------- leaves

    def stamped(self, splices: list[Splice]) -> list[Splice]:
        return [msgspec.structs.replace(splice, revision=self.offset) for splice in splices] if splices else []

    def synced(self, device: str) -> Tracker | None:
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
                self.synced(tracker.component)
                self.catalogue.m_flags[sid] |= WATCHED
                mine.append(tracker)
        return mine

    def _last_answer(self, device: str) -> int:
        """Event time at which the device last answered, 0 if its newest news is not an answer."""
        tracker = self.synced(device)
        sid = self.catalogue.ids.get((device, REACHABLE, ()), -1)
        if tracker is None or tracker.is_silent or (sid in self.reach and self.catalogue.m_value[sid] < 1):
            return 0
        return tracker.last_ms

    def _last_sample(self, sid: int) -> int:
        return self.catalogue.m_last_ms[sid] if sid < self.catalogue.count else 0

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
        ids = np.concatenate(parts) if parts else np.empty(0, np.int64)
        ids.sort()
        ids = ids[np.diff(ids, prepend=-1) > 0]  # not np.unique: its first call imports for a tenth of a second
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
        self.allowed = may_speak_for(config.registry)
        self.detector.set = RuleSet(config.rules)
        for info in series:
            self.catalogue.add(info, self.detector.set.compile(info, self.devices.get(info.device)))
        self.catalogue.agent = list(agents)

    def rejoin(self, layouts: tuple[tuple[str, int, tuple[int, ...]], ...]) -> None:
        """Tie agents, trackers and layouts together again."""
        self.bind()
        for agent in self.known.values():
            agent.allowed = self.allowed.get(agent.name, frozenset((agent.name,)))
            agent.tracker = self.trackers.get(agent.name)
        for name, layout, declared in layouts:
            self.layouts.adopt(self.known[name], layout, declared, [])
