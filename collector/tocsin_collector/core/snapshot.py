"""How an engine's state is kept and found again: as a snapshot, or from what the store has committed.

A snapshot is everything, so that going on from it is exact. Committed truth is less: incidents and ledger are as they were,
series warm up. Neither emits anything.
"""

from typing import TYPE_CHECKING

import msgspec
import numpy as np

from tocsin_collector.core.agents import Agent, AgentState
from tocsin_collector.core.book import BookState
from tocsin_collector.core.findings import AGENT_SILENT
from tocsin_collector.core.layouts import REACHABLE
from tocsin_collector.core.ledger import NOT_SEEN, Tracker, TrackerState
from tocsin_collector.core.model import (
    LIVE_STATES,
    TOLD_STATES,
    ComponentState,
    Config,
    IncidentState,
    Record,
    SeriesAdded,
    Truth,
)
from tocsin_collector.core.series import COLUMNS, WATCHED
from tocsin_collector.core.slots import SlotState

if TYPE_CHECKING:
    from tocsin_collector.core.engine import Engine

ENGINE_VERSION = 2


class SnapshotError(Exception):
    """This snapshot is not one that this engine can go on from."""


class Snapshot(Record, frozen=True):
    version: int
    offset: int
    config: Config
    series: tuple[SeriesAdded, ...]
    series_agents: tuple[str, ...]
    columns: dict[str, bytes]
    slots: tuple[SlotState, ...]
    agents: tuple[AgentState, ...]
    layouts: tuple[tuple[str, int, tuple[int, ...]], ...]
    trackers: tuple[TrackerState, ...]
    book: BookState
    last_tick_ms: int
    resumed_ms: int
    flushed_ms: int
    stale_checked_ms: int


def freeze(engine: "Engine") -> bytes:
    c = engine.catalogue
    return msgspec.msgpack.encode(
        Snapshot(
            version=ENGINE_VERSION,
            offset=engine.offset,
            config=engine.config,
            series=tuple(c.info),
            series_agents=tuple(c.agent),
            columns={name: getattr(c, name)[: c.count].tobytes() for name in COLUMNS},
            slots=engine.detector.freeze(),
            agents=tuple(agent.freeze() for agent in engine.known.values()),
            layouts=tuple(
                (agent.name, layout, where.declared)
                for agent in engine.known.values()
                for layout, where in agent.layouts.items()
            ),
            trackers=tuple(tracker.freeze() for tracker in engine.trackers.values()),
            book=engine.book.freeze(),
            last_tick_ms=engine.last_tick_ms,
            resumed_ms=engine.resumed_ms,
            flushed_ms=engine.book.flushed_ms,
            stale_checked_ms=engine.stale_checked_ms,
        )
    )


def thaw(engine: "Engine", data: bytes) -> "Engine":
    """Fill a new engine from a snapshot."""
    try:
        snapshot = msgspec.msgpack.decode(data, type=Snapshot)
    except (msgspec.MsgspecError, ValueError) as error:
        raise SnapshotError(f"snapshot cannot be read: {error}") from error
    if snapshot.version != ENGINE_VERSION:
        raise SnapshotError(f"snapshot of engine version {snapshot.version}, this is {ENGINE_VERSION}")
    engine.load(snapshot.config, snapshot.series, snapshot.series_agents)
    _columns(engine, snapshot)
    engine.detector.thaw(snapshot.slots)
    engine.trackers = {state.component: Tracker.thaw(state) for state in snapshot.trackers}
    engine.known = {state.name: Agent.thaw(state) for state in snapshot.agents}
    engine.book.thaw(snapshot.book)
    engine.book.flushed_ms = snapshot.flushed_ms
    engine.rejoin(snapshot.layouts)
    _columns(engine, snapshot)  # joining sets flags anew; they are as they were
    engine.offset = snapshot.offset
    engine.last_tick_ms, engine.resumed_ms = snapshot.last_tick_ms, snapshot.resumed_ms
    engine.stale_checked_ms = snapshot.stale_checked_ms
    return engine


def _columns(engine: "Engine", snapshot: Snapshot) -> None:
    c = engine.catalogue
    for name, raw in snapshot.columns.items():
        column = getattr(c, name)
        column[: c.count] = np.frombuffer(raw, column.dtype)


def recall(engine: "Engine", truth: Truth) -> "Engine":
    """Fill a new engine from committed truth."""
    engine.offset = truth.offset
    engine.load(truth.config or engine.config, truth.series, tuple(info.agent for info in truth.series))
    window_ms = {device.id: engine.window(device) for device in engine.config.registry.devices}
    seen_ms = _evidence(truth)
    for tail in truth.tails:
        tracker = Tracker(tail.component, window_ms.get(tail.component, engine.config.settings.silent_after_ms))
        tracker.written, tracker.written_cause = tail.state, tail.cause
        tracker.changed_ms = tail.start_ms
        was_seen = tail.cause != NOT_SEEN
        tracker.is_silent = was_seen and tail.state is ComponentState.UNKNOWN
        tracker.last_ms = tail.start_ms if was_seen else 0
        if was_seen and not tracker.is_silent:
            tracker.last_ms = min(truth.at_ms, max(tail.start_ms, seen_ms.get(tail.component, 0)))
        engine.trackers[tail.component] = tracker
    for name in {layout.agent for layout in truth.layouts}:
        agent = engine.known[name] = Agent(name)
        agent.last_received_ms = agent.last_frame_ms = truth.at_ms
    engine.last_tick_ms = truth.at_ms
    _raise_again(engine, truth)
    engine.rejoin(tuple((layout.agent, layout.layout, layout.series) for layout in truth.layouts))
    for sid in engine.reach:  # the columns are empty: the first sample has to be held against what was seen before
        engine.catalogue.m_flags[sid] |= WATCHED
    return engine


def _evidence(truth: Truth) -> dict[str, int]:
    """Component -> event time at which it was seen, for certain; perhaps again shortly afterwards. Never later than it was."""
    series = {info.id: info for info in truth.series}
    seen_ms: dict[str, int] = {}
    for sid, at_ms in truth.seen:
        info = series.get(sid)
        if info is not None and (info.metric == REACHABLE or info.device == info.agent):
            seen_ms[info.device] = max(at_ms, seen_ms.get(info.device, 0))
    return seen_ms


def _raise_again(engine: "Engine", truth: Truth) -> None:
    """Findings of incidents that are not over are raised still, until a sample says otherwise."""
    rules = engine.detector.set.rules
    indices = {rule.id: index for index, rule in enumerate(rules)}
    slots: list[SlotState] = []
    raised: list[tuple[str, str, bool, str]] = []
    for incident in truth.incidents:
        if incident.state not in LIVE_STATES:
            continue
        index = indices.get(incident.rule, -1)
        if incident.rule == AGENT_SILENT.id:
            raised.append((incident.key, incident.device, True, ""))
            agent = engine.known.get(incident.device) or Agent(incident.device)  # one that never sent a frame
            agent.is_silent, agent.last_received_ms, agent.last_frame_ms = True, truth.at_ms, truth.at_ms
            engine.known[incident.device] = agent
        elif index >= 0 and 0 <= incident.series < engine.catalogue.count:
            rule = rules[index]
            raised.append(
                (incident.key, incident.device, rule.is_reachability, engine.catalogue.agent[incident.series])
            )
            phase = tuple(2 * (level.severity.rank <= incident.severity.rank) for level in rule.levels)
            since = (incident.opened_ms,) * len(phase)
            slots.append(SlotState(incident.series, index, phase, since, True, float("nan")))
            tracker = engine.trackers.get(incident.device)
            if tracker is not None:
                tracker.recall(incident.key, rule.impact)
    engine.detector.thaw(tuple(slots))
    held = {  # the first tick gives them their time anew
        incident.id: truth.at_ms + engine.config.settings.hold_ms
        for incident in truth.incidents
        if incident.state is IncidentState.HELD
    }
    for incident in truth.incidents:
        if incident.state in TOLD_STATES and not incident.was_told and 0 <= incident.series < engine.catalogue.count:
            owner = engine.known.get(engine.catalogue.agent[incident.series])
            if owner is not None:  # it was catching up, and what is still there when it has caught up is told then
                owner.catching_up = True
                owner.deferred[incident.id] = None
    engine.book.thaw(BookState(truth.incidents, tuple(raised), held, ()))
