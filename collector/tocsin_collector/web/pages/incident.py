"""One incident: what, since when, why it was opened or held back, who was told, and what people may do about it."""

from starlette.responses import Response

from tocsin_collector.control import ControlError
from tocsin_collector.core.model import LIVE_STATES, TOLD_STATES, IncidentState
from tocsin_collector.web.auth import ENGINE_AWAY
from tocsin_collector.web.view import View, back_to

# What may be done in which state, in the order of the buttons.
ACTIONS: dict[str, tuple[IncidentState, ...]] = {
    "acknowledge": (IncidentState.OPEN,),
    "resolve": TOLD_STATES,
    "close": (IncidentState.RESOLVED,),
    "comment": tuple(state for state in IncidentState if state is not IncidentState.CLOSED),
}
TEXT_CHARS_MAX = 2000


async def incident(view: View) -> Response:
    if view.request.method == "POST":
        return await act(view)
    return await show(view)


async def show(view: View, trouble: str = "", status: int = 200) -> Response:
    source, name = view.web.source, view.request.path_params["incident"]
    found = await source.incident(name)
    if found is None:
        return view.missing(view.language.t("There is no incident {name}.", name=name))
    view.in_zone_of(await source.config(), found.site)
    return view.page(
        "incident.html",
        status,
        incident=found,
        parent=await source.incident(found.suppressed_by) if found.suppressed_by else None,
        children=await source.children(name),
        timeline=await source.timeline(name),
        deliveries=await source.deliveries(name),
        actions=[kind for kind, states in ACTIONS.items() if found.state in states],
        is_live=found.state in LIVE_STATES,
        text_max=TEXT_CHARS_MAX,
        trouble=trouble,
    )


async def act(view: View) -> Response:
    form = await view.form()
    name, kind = view.request.path_params["incident"], form.get("kind", "")
    text = form.get("text", "").strip()
    if kind not in ACTIONS:
        return await show(view, view.language.t("There is no such action."), 400)
    if len(text) > TEXT_CHARS_MAX:
        return await show(
            view, view.language.t("The comment is too long: at most {n} characters.", n=TEXT_CHARS_MAX), 400
        )
    try:
        await view.web.control.call("command", kind=kind, incident=name, actor=view.who.account, text=text)
    except ControlError as error:
        gone = error.code in ENGINE_AWAY
        return await show(view, view.language.t("Not done: {reason}.", reason=error.message), 503 if gone else 409)
    return back_to(view.request.url.path)
