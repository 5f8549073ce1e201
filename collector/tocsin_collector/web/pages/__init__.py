"""The pages: one file each, one line each in PAGES."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from starlette.responses import Response

from tocsin_collector.web.pages import device, incident, login, overview, preferences
from tocsin_collector.web.pages import incidents as incident_list
from tocsin_collector.web.view import View

Show = Callable[[View], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Page:
    """role "": anybody. `acts`: takes POST too, from `act_role` up, with the session's form token."""

    path: str
    endpoint: Show
    role: str = "viewer"
    methods: tuple[str, ...] = ("GET",)
    act_role: str = "operator"


# One line per page; the name is that of its file in pages/, or of its function there.
PAGES = {
    "overview": Page("/", overview.overview),
    "device": Page("/devices/{device:path}", device.device),
    "incidents": Page("/incidents", incident_list.incidents),
    "incident": Page("/incidents/{incident}", incident.incident, methods=("GET", "POST")),
    "login": Page("/login", login.login, role="", methods=("GET", "POST"), act_role=""),
    "logout": Page("/logout", login.logout, methods=("POST",), act_role="viewer"),
    "preferences": Page("/preferences", preferences.preferences, role="", methods=("POST",), act_role=""),
}
