"""All incidents, newest first, by state: the open ones, the quiet ones, the past ones. Paged by cursor."""

from starlette.responses import Response

from tocsin_collector.core.model import IncidentState
from tocsin_collector.web.source import CursorError
from tocsin_collector.web.view import View

LIMIT = 50
VIEWS = {
    "open": (IncidentState.OPEN, IncidentState.ACKNOWLEDGED),
    "quiet": (IncidentState.HELD, IncidentState.SUPPRESSED),
    "past": (IncidentState.RESOLVED, IncidentState.CLOSED),
    "all": (),
}


async def incidents(view: View) -> Response:
    query = view.request.query_params
    chosen = query.get("view", "")
    chosen = chosen if chosen in VIEWS else "open"
    view.in_zone_of(await view.web.source.config())
    try:
        page = await view.web.source.incidents(states=VIEWS[chosen], cursor=query.get("after", ""), limit=LIMIT)
    except CursorError:
        return view.missing(view.language.t("This place in the list is not known any more."))
    return view.page("incidents.html", items=page.items, next=page.next, chosen=chosen, views=list(VIEWS))
