"""How an engine takes on another registry, other rules, other settings: while devices are down and rules are raised.

Only what changed is worked out again: adding one host to a large plant costs what that host costs. The invariants: what a
rule that is still there had raised stays raised; what lost its rule or its device ends.
"""

from typing import TYPE_CHECKING

import msgspec

from tocsin_collector.core.findings import key_of, silent_key
from tocsin_collector.core.ledger import Tracker
from tocsin_collector.core.model import Config, Effect, Impact, Step
from tocsin_collector.core.registry import may_speak_for
from tocsin_collector.core.rules import RuleSet

if TYPE_CHECKING:
    from tocsin_collector.core.engine import Engine


def configure(engine: "Engine", config: Config, now_ms: int, out: list[Effect]) -> None:
    """Put `config` in force."""
    devices = {device.id: device for device in config.registry.devices}
    before = engine.devices
    changed = {name for name in before.keys() | devices.keys() if before.get(name) != devices.get(name)}
    has_new_rules = engine.config.rules != config.rules
    engine.config = config
    engine.book.settings = config.settings
    engine.topology.configure(config.registry)
    _recompile(engine, config, changed, has_new_rules, now_ms, out)
    _track(engine, now_ms, out)
    if has_new_rules:
        _weigh(engine, now_ms, out)
    _assign(engine, config, changed, has_new_rules, out)
    engine.book.reconsider()


def _recompile(
    engine: "Engine", config: Config, changed: set[str], has_new_rules: bool, now_ms: int, out: list[Effect]
) -> None:
    """Give series their rules under the new set, and end what those they lost had raised."""
    engine.devices = engine.layouts.devices = {device.id: device for device in config.registry.devices}
    if not (changed or has_new_rules):
        return
    detector, catalogue = engine.detector, engine.catalogue
    old = detector.set
    rules = RuleSet(config.rules) if has_new_rules else old
    index_of = {rule.id: index for index, rule in enumerate(rules.rules)}
    kept = {index: index_of[rule.id] for index, rule in enumerate(old.rules) if rule.id in index_of}
    compiled = {
        info.id: rules.compile(info, engine.devices.get(info.device))
        for info in catalogue.info
        if has_new_rules or info.device in changed
    }
    for sid, index in list(detector.slots):
        if sid in compiled and kept.get(index, -1) not in compiled[sid].rules:
            detector.forget(sid, index, now_ms)
    _end(engine, now_ms, out)
    if has_new_rules:
        detector.adopt(rules, kept)
    for sid, one in compiled.items():
        if catalogue.is_current(sid):
            catalogue.compile(sid, one)


def _end(engine: "Engine", now_ms: int, out: list[Effect]) -> None:
    """What has lost its rule or its device is no finding any more."""
    changes, engine.detector.changes = engine.detector.changes, []
    for change in changes:
        info = engine.catalogue.info[change.sid]
        rule = engine.detector.set.rules[change.rule]
        key = key_of(rule, info)
        tracker = engine.synced(info.device)
        if tracker is not None:
            out += engine.stamped(tracker.change(now_ms, key, rule.impact, False))
        facts: dict[str, str | int | float] = {"rule": rule.id, "device": info.device}
        is_known = info.device in engine.devices
        engine.book.clear(key, now_ms, Step(now_ms, "rule_gone" if is_known else "device_gone", facts))


def _track(engine: "Engine", now_ms: int, out: list[Effect]) -> None:
    """A component enters the ledger with its device, and is unknown once its device has left."""
    for device in engine.devices.values():
        tracker = engine.trackers.get(device.id)
        if tracker is None:
            tracker = engine.trackers[device.id] = Tracker(device.id, 0)
            out += engine.stamped([tracker.begin(now_ms)])
        tracker.window_ms = engine.window(device)
    for name in [name for name in engine.trackers if name not in engine.devices]:
        out += engine.stamped(engine.trackers.pop(name).silence())


def _weigh(engine: "Engine", now_ms: int, out: list[Effect]) -> None:
    """An edited impact counts from now on for what is raised already."""
    impact_of = {rule.id: rule.impact for rule in engine.detector.set.rules}
    for incident in list(engine.book.incidents.values()):
        if incident.key not in engine.book.raised or engine.book.by_key.get(incident.key) != incident.id:
            continue
        impact = impact_of.get(incident.rule, Impact.NONE)
        if impact is not incident.impact:
            engine.book.incidents[incident.id] = msgspec.structs.replace(incident, impact=impact)
            tracker = engine.synced(incident.device)
            if tracker is not None:
                out += engine.stamped(tracker.change(now_ms, incident.key, impact, True))


def _assign(engine: "Engine", config: Config, changed: set[str], has_new_rules: bool, out: list[Effect]) -> None:
    """Who may speak for what; agents that have left the registry are forgotten, and so is their silence."""
    allowed_before, engine.allowed = engine.allowed, may_speak_for(config.registry)
    for name in [name for name in engine.known if name in allowed_before and name not in engine.allowed]:
        engine.book.clear(
            silent_key(name), engine.book.now_ms, Step(engine.book.now_ms, "device_gone", {"device": name})
        )
        del engine.known[name]
    if not (changed or has_new_rules):
        return
    engine.bind()
    for agent in engine.known.values():
        agent.tracker = engine.trackers.get(agent.name)
        allowed = engine.allowed.get(agent.name, frozenset((agent.name,)))
        if has_new_rules or allowed != agent.allowed or not changed.isdisjoint(allowed):
            agent.allowed = allowed
            for layout, where in list(agent.layouts.items()):
                engine.layouts.adopt(agent, layout, where.declared, out)
