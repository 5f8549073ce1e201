"""Incidents: list, look, ask why, act."""

from functools import partial

import msgspec

from tocsin_collector.core import model
from tocsin_collector.core.model import LIVE_STATES, TOLD_STATES, IncidentState, Severity
from tocsin_collector.web.api import records, show
from tocsin_collector.web.api.call import LIMIT, Call, Operation
from tocsin_collector.web.api.problem import Failure
from tocsin_collector.web.source import CursorError

GROUPS: dict[str, tuple[IncidentState, ...]] = {
    "told": TOLD_STATES,
    "live": LIVE_STATES,
    "quiet": (IncidentState.HELD, IncidentState.SUPPRESSED),
    "all": (),
    **{state.value: (state,) for state in IncidentState},
}


class IncidentsQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """state: a state, or "told", "live", "quiet", "all". severity: this one or graver. Newest first."""

    state: str = "told"
    device: str = ""
    site: str = ""
    severity: str = ""
    after: str = ""
    limit: int = LIMIT


async def list_incidents(call: Call) -> records.Page[records.Incident]:
    query: IncidentsQuery = call.query
    if query.state not in GROUPS:
        raise Failure(400, "invalid parameter", f'there is no state "{query.state}"', f"known are: {', '.join(GROUPS)}")
    ranks = {severity.value: severity.rank for severity in Severity}
    if query.severity and query.severity not in ranks:
        known = ", ".join(ranks)
        raise Failure(400, "invalid parameter", f'there is no severity "{query.severity}"', f"known are: {known}")
    try:
        page = await call.source.incidents(
            states=GROUPS[query.state],
            device=query.device,
            site=query.site,
            rank_min=ranks.get(query.severity, 0),
            cursor=query.after,
            limit=query.limit,
        )
    except CursorError as error:
        raise Failure(400, "invalid parameter", "after is no cursor of this list", "take `next` of a page") from error
    return records.Page([show.incident(one, call.language) for one in page.items], page.next)


async def get_incident(call: Call) -> records.IncidentDetail:
    found = await _incident(call)
    return records.IncidentDetail(
        show.incident(found, call.language),
        [show.step(step, found, call.language) for step in await call.source.timeline(found.id)],
        [show.delivery(one) for one in await call.source.deliveries(found.id)],
    )


async def why(call: Call) -> records.Why:
    found, language = await _incident(call), call.language
    parent = await call.source.incident(found.suppressed_by) if found.suppressed_by else None
    return records.Why(
        incident=show.incident(found, language),
        evidence=show.samples(found, language),
        decision=[show.step(step, found, language) for step in found.decision],
        explained_by=show.incident(parent, language) if parent else None,
        explains=[show.incident(child, language) for child in await call.source.children(found.id)],
        deliveries=[show.delivery(one) for one in await call.source.deliveries(found.id)],
    )


async def act(kind: str, call: Call) -> records.Done:
    found, remark = await _incident(call), call.body
    await call.ask("command", kind=kind, incident=found.id, actor=call.view.who.account, text=remark.text[:2000])
    return records.Done(found.id)


async def _incident(call: Call) -> model.Incident:
    found = await call.source.incident(call["incident"])
    if found is None:
        raise Failure(404, "not found", f"there is no incident {call['incident']}", "GET /api/v1/incidents lists them")
    return found


OPERATIONS = (
    Operation(
        "listIncidents",
        "GET",
        "/incidents",
        "viewer",
        "Incidents, newest first",
        list_incidents,
        records.Page[records.Incident],
        IncidentsQuery,
    ),
    Operation(
        "getIncident",
        "GET",
        "/incidents/{incident}",
        "viewer",
        "One incident with timeline and deliveries",
        get_incident,
        records.IncidentDetail,
    ),
    Operation(
        "explainIncident",
        "GET",
        "/incidents/{incident}/why",
        "viewer",
        "Why it was opened, held back, told",
        why,
        records.Why,
    ),
    *(
        Operation(
            f"{kind}Incident",
            "POST",
            f"/incidents/{{incident}}/{kind}",
            "operator",
            summary,
            partial(act, kind),
            records.Done,
            body=records.Remark,
        )
        for kind, summary in (
            ("acknowledge", "Somebody is on it"),
            ("resolve", "It is over"),
            ("close", "Nothing more to say about it"),
            ("comment", "Say something about it"),
        )
    ),
)
