"""The engine's and the store's records in the API's form. Pure."""

import math

from tocsin_collector import wording
from tocsin_collector.core import model
from tocsin_collector.i18n import Language
from tocsin_collector.web.api import records
from tocsin_collector.web.picture import Host
from tocsin_collector.web.source import Delivery, Value


def host(shown: Host) -> records.Host:
    device, now = shown.device, shown.now
    return records.Host(
        id=device.id,
        name=device.name,
        site=device.site,
        line=device.line,
        kind=device.kind,
        address=device.address,
        state=now.state,
        since_ms=now.since_ms,
        cause=now.cause,
        open_incidents=shown.incidents,
        parents=list(device.parents),
        watched_by=device.watched_by,
        owner=device.owner,
        tags=device.tags,
    )


def value(one: Value, language: Language) -> records.Value:
    return records.Value(
        series=one.series.id,
        metric=one.series.metric,
        labels=dict(one.series.labels),
        unit=one.unit,
        value=_finite(one.value),
        time_ms=one.time_ms,
        text=one.shown(language),
    )


def step(one: model.Step, incident: model.Incident, language: Language) -> records.Step:
    return records.Step(one.at_ms, one.kind, one.facts, wording.steps(language, one, incident))


def incident(one: model.Incident, language: Language) -> records.Incident:
    return records.Incident(
        id=one.id,
        key=one.key,
        rule=one.rule,
        device=one.device,
        site=one.site,
        severity=one.severity.value,
        state=one.state.value,
        says=wording.says(language, one),
        opened_ms=one.opened_ms,
        detected_ms=one.detected_ms,
        last_ms=one.last_ms,
        resolved_ms=one.resolved_ms,
        closed_ms=one.closed_ms,
        occurrences=one.occurrences,
        suppressed_by=one.suppressed_by,
        acknowledged_by=one.acknowledged_by,
        impact=one.impact.value,
        metric=one.metric,
        facts=one.facts,
    )


def samples(one: model.Incident, language: Language) -> list[records.Sample]:
    return [
        records.Sample(at_ms, _finite(value), wording.value_of(language, one, value)) for at_ms, value in one.evidence
    ]


def delivery(one: Delivery) -> records.Delivery:
    return records.Delivery(
        one.channel,
        one.ordinal,
        one.kind,
        one.state,
        one.attempts,
        one.created_ms,
        one.next_ms,
        one.delivered_ms,
        one.last_error,
    )


def _finite(value: float) -> float | None:
    """JSON has neither NaN nor infinities."""
    return value if math.isfinite(value) else None
