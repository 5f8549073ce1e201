"""A notice as a CloudEvents 1.0 event in JSON (structured mode).

Not how it is sent. The invariant: the same notice always gives the same bytes, so that a repeated delivery is a repetition
in every respect; `source` and `id` together name it for ever.
"""

from datetime import UTC, datetime
from typing import Any

import msgspec

from tocsin_collector import wording
from tocsin_collector.core.model import Incident, Notice
from tocsin_collector.desk.base import Delivery
from tocsin_collector.i18n import Language

CONTENT_TYPE = "application/cloudevents+json; charset=utf-8"
TYPE = "io.tocsin.incident."  # opened, updated, resolved
LAST_MS = 253_402_300_799_999  # the last moment that RFC 3339 can write

_JSON = msgspec.json.Encoder()


def encode(delivery: Delivery, *, source: str, link: str, language: Language) -> bytes:
    """https://github.com/cloudevents/spec, v1.0.2. link: start of the pages' addresses, "" for none."""
    notice = delivery.notice
    event: dict[str, Any] = {
        "specversion": "1.0",
        "id": delivery.idempotency_key,
        "source": source,
        "type": TYPE + notice.kind,
        "subject": notice.incident,
        "time": moment(notice.at_ms),
        "datacontenttype": "application/json",
        "data": data(notice, link, language),
    }
    return _JSON.encode(event)


def data(notice: Notice, link: str, language: Language) -> dict[str, Any]:
    """The incident as it was when this was to be told. Times are RFC 3339 in UTC, null for what has not happened."""
    incident = notice.snapshot
    return {
        "incident": incident.id,
        "ordinal": notice.ordinal,
        "kind": notice.kind,
        "key": incident.key,
        "state": incident.state.value,
        "severity": incident.severity.value,
        "impact": incident.impact.value,
        "text": wording.says(language, incident),
        "lang": language.tag,
        "link": f"{link.rstrip('/')}/incidents/{incident.id}" if link else None,
        "rule": incident.rule,
        "site": incident.site,
        "device": incident.device,
        "metric": incident.metric,
        "value": _newest_value(incident),
        "facts": incident.facts,
        "occurrences": incident.occurrences,
        "acknowledged_by": incident.acknowledged_by or None,
        "opened_at": moment(incident.opened_ms),
        "detected_at": moment(incident.detected_ms),
        "last_seen_at": moment(incident.last_ms),
        "resolved_at": moment(incident.resolved_ms),
    }


def moment(ms: int) -> str | None:
    if ms <= 0:
        return None
    then = datetime.fromtimestamp(min(ms, LAST_MS) // 1000, UTC)
    return f"{then:%Y-%m-%dT%H:%M:%S}.{min(ms, LAST_MS) % 1000:03}Z"


def _newest_value(incident: Incident) -> float | None:
    return incident.evidence[-1][1] if incident.evidence else None
