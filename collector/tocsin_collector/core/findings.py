"""From a change in the detector to a finding with its key, its facts and the chain that explains it.

The key is what an incident is "one of": rule, device and labels; the same fault always has the same key.
"""

import math

from tocsin_collector.core.book import Finding
from tocsin_collector.core.model import Device, Level, Rule, SeriesAdded, Severity, Step
from tocsin_collector.core.slots import Change
from tocsin_proto.records import SeriesKind

AGENT_SILENT = Rule(
    id="agent-silent",
    metric="agent.silent",
    levels=(Level(Severity.MAJOR),),
    says="{device} has not reported for {seconds} s",
    is_reachability=True,
    is_built_in=True,
)


def key_of(rule: Rule, info: SeriesAdded) -> str:
    """ "filesystem-full/mes-db/mount=/data": readable, and the same after every restart."""
    return "/".join((rule.id, info.device, *(f"{name}={value}" for name, value in info.labels)))


def finding_of(change: Change, rule: Rule, info: SeriesAdded, device: Device | None, agent: str) -> Finding:
    level = rule.levels[change.level]
    facts = _facts(change, level, info)
    steps = _chain(change, rule, level, facts)
    return Finding(
        key=key_of(rule, info),
        rule=rule,
        device=info.device,
        site=device.site if device else "",
        agent=agent,
        severity=change.severity or level.severity,
        at_ms=change.at_ms,
        since_ms=change.since_ms,
        value=change.value,
        steps=steps,
        facts=facts,
        metric=info.metric,
        series=info.id,
    )


def silent_key(agent: str) -> str:
    return f"{AGENT_SILENT.id}/{agent}"


def agent_silent(name: str, device: Device | None, heard_ms: int, now_ms: int) -> Finding:
    """An agent was not heard of for too long, by the collector's clock."""
    seconds = (now_ms - heard_ms) // 1000
    return Finding(
        key=silent_key(name),
        rule=AGENT_SILENT,
        device=name,
        site=device.site if device else "",
        agent="",  # its own silence is told at once, whoever catches up
        severity=Severity.MAJOR,
        at_ms=heard_ms,
        since_ms=heard_ms,
        value=float(seconds),
        steps=(Step(heard_ms, "last_heard", {"device": name, "seconds": seconds}),),
        facts={"device": name, "seconds": seconds},
    )


def _facts(change: Change, level: Level, info: SeriesAdded) -> dict[str, str | int | float]:
    facts: dict[str, str | int | float] = dict(info.labels)
    facts |= {"device": info.device, "metric": info.metric, "unit": _unit(info)}
    if math.isfinite(change.value):  # a counter of one reading has no value yet
        facts["value"] = change.value
    limit = level.above if level.above is not None else level.below
    if limit is not None:
        facts["limit"] = limit
    if level.is_state:
        facts["state"] = dict(info.states).get(int(change.value), str(int(change.value)))
    if level.no_data_ms:
        facts["seconds"] = level.no_data_ms // 1000
    return facts


def _unit(info: SeriesAdded) -> str:
    """The unit of what rules see: a counter's rate is its unit per second."""
    return f"{info.unit}/s" if SeriesKind(info.kind).is_counter else info.unit


def _chain(change: Change, rule: Rule, level: Level, facts: dict[str, str | int | float]) -> tuple[Step, ...]:
    """Sample, rule and hold, as sentences with their figures."""
    told: dict[str, str | int | float] = {name: facts[name] for name in ("metric", "value", "unit") if name in facts}
    told |= {name: facts[name] for name in ("limit", "state", "seconds") if name in facts}
    told["rule"] = rule.id
    if change.severity is None:
        return (Step(change.at_ms, _kind(level, "cleared"), told | _clear_limit(level)),)
    told["severity"] = change.severity.value
    steps = [Step(change.since_ms, _kind(level, "raised"), told)]
    if level.for_ms:
        steps.append(Step(change.at_ms, "held_for", {"seconds": level.for_ms // 1000}))
    return tuple(steps)


def _kind(level: Level, what: str) -> str:
    if level.no_data_ms:
        return f"no_data_{what}"
    if level.is_state:
        return f"state_{what}"
    return f"above_{what}" if level.above is not None else f"below_{what}"


def _clear_limit(level: Level) -> dict[str, str | int | float]:
    if level.above is not None:
        return {"limit": level.above if level.clear_below is None else level.clear_below}
    if level.below is not None:
        return {"limit": level.below if level.clear_above is None else level.clear_above}
    return {}
