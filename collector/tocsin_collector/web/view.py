"""One request of one person: language, zone, session, and how a template is filled for them.

Not a page. Invariant: templates escape everything; a text reaches the browser as markup only from a template's own source.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, tzinfo
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode
from zoneinfo import ZoneInfo

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from tocsin_collector import wording
from tocsin_collector.control import ControlClient
from tocsin_collector.core.model import Config
from tocsin_collector.i18n import LANGUAGES, Language, language, negotiate
from tocsin_collector.web.auth import Brake, Session
from tocsin_collector.web.measures import Measures
from tocsin_collector.web.options import Options
from tocsin_collector.web.source import Source

LANGUAGE_COOKIE = "tocsin_lang"
THEME_COOKIE = "tocsin_theme"
THEMES = ("auto", "light", "dark")
FIELDS_MAX = 50


@dataclass(slots=True)
class Web:
    """What the whole process shares."""

    options: Options
    source: Source
    control: ControlClient
    clock: Callable[[], int]  # Unix ms
    version: str
    measures: Measures = field(default_factory=Measures)
    templates: Environment = field(default_factory=lambda: environment())
    # Per name and address, so that nobody can lock out somebody else; and for all together: a try costs 50 ms of CPU.
    brake: Brake = field(default_factory=Brake)
    brake_all: Brake = field(default_factory=lambda: Brake(tries_max=60, window_ms=60_000))


def environment() -> Environment:
    """The templates, strict: a name that is missing is an error in a test, not a hole in a page."""
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["path"] = lambda text: quote(str(text), safe="")
    return made


class View:
    """A request with everything a page asks about it."""

    def __init__(self, request: Request, web: Web, session: Session | None) -> None:
        self.request = request
        self.web = web
        self.session = session
        self.now_ms = web.clock()
        self.zone: tzinfo = UTC
        self.zone_name = "UTC"

    @cached_property
    def language(self) -> Language:
        query, cookies = self.request.query_params, self.request.cookies
        header = self.request.headers.get("accept-language")
        return language(negotiate(query.get("lang"), cookies.get(LANGUAGE_COOKIE), header, self.web.options.language))

    @property
    def theme(self) -> str:
        wish = self.request.query_params.get("theme") or self.request.cookies.get(THEME_COOKIE, "auto")
        return wish if wish in THEMES else "auto"

    @property
    def who(self) -> Session:
        assert self.session is not None  # the route requires a role
        return self.session

    def in_zone_of(self, config: Config | None, site: str = "") -> None:
        """Times are shown in the zone of that site; without one, of the only zone there is, else UTC."""
        zones = {s.zone for s in config.registry.sites if not site or s.id == site} if config else set()
        name = zones.pop() if len(zones) == 1 else "UTC"
        try:
            self.zone, self.zone_name = ZoneInfo(name), name
        except (ValueError, OSError):  # not a zone of this machine: the registry's check says so where it can be mended
            self.zone, self.zone_name = UTC, "UTC"

    # ------------------------------------------------------------------------------------------------------- words

    def since(self, ms: int) -> str:
        """How long that is ago; "" when it is not known."""
        if ms <= 0:
            return ""
        age_ms = self.now_ms - ms
        return wording.duration(self.language, age_ms) if age_ms >= 1000 else self.language.t("now")

    def at(self, ms: int) -> str:
        return wording.moment(ms, self.zone, self.now_ms)

    # ----------------------------------------------------------------------------------------------------- answers

    def page(self, template: str, status: int = 200, **facts: Any) -> Response:
        shown = self.web.templates.get_template(template).render(
            view=self,
            t=self.language.t,
            tn=self.language.tn,
            w=wording,
            languages=LANGUAGES,
            themes=THEMES,
            place="",
            back=self.address,
            **facts,
        )
        return HTMLResponse(shown, status, {"Content-Language": self.language.tag, "Vary": "Cookie, Accept-Language"})

    @property
    def address(self) -> str:
        """This page's own path and query, without the choices that `/preferences` makes."""
        kept = [
            (name, value) for name, value in self.request.query_params.multi_items() if name not in ("lang", "theme")
        ]
        return self.request.url.path + (f"?{urlencode(kept)}" if kept else "")

    def missing(self, what: str) -> Response:
        return self.page("message.html", 404, title=self.language.t("Not found"), text=what)

    async def form(self) -> dict[str, str]:
        """The fields of an urlencoded form; the body's size is bounded by `headers.Guard`."""
        body = (await self.request.body()).decode("utf-8", "replace")
        return dict(parse_qsl(body, keep_blank_values=True, max_num_fields=FIELDS_MAX))


def back_to(path: str) -> Response:
    """303 to a page of our own; anything else leads to the start."""
    is_ours = path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable()
    return RedirectResponse(path if is_ours else "/", 303)
