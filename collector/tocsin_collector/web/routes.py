"""How a request passes to what answers it: session, role, form token, errors. The tables: `pages/` and OPERATIONS here."""

import time
from collections.abc import Awaitable, Callable
from urllib.parse import quote

import structlog
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from tocsin_collector.control import ControlError
from tocsin_collector.web.api import account, availability, hosts, incidents, openapi, status, tokens
from tocsin_collector.web.api.call import Operation, perform
from tocsin_collector.web.api.problem import STATUS_OF, Failure, problem
from tocsin_collector.web.auth import Session, is_form_token, is_same_origin, presented, token_hash
from tocsin_collector.web.headers import TooLarge
from tocsin_collector.web.pages import PAGES, Page, Show
from tocsin_collector.web.source import SourceError
from tocsin_collector.web.view import View, Web

log = structlog.get_logger("tocsin.web")

# For probes and Prometheus: no role, no session, nothing about the plant in them.
PLAIN: dict[str, Show] = {"/healthz": status.healthz, "/readyz": status.readyz, "/metrics": status.metrics}

OPERATIONS: tuple[Operation, ...] = (
    *hosts.OPERATIONS,
    *incidents.OPERATIONS,
    *availability.OPERATIONS,
    *tokens.OPERATIONS,
    *account.OPERATIONS,
    *status.OPERATIONS,
)


def routes(web: Web) -> list[BaseRoute]:
    described = openapi.document(OPERATIONS, web.version)

    async def describe(request: Request) -> Response:
        from starlette.responses import JSONResponse

        return JSONResponse(described)

    found: list[BaseRoute] = [
        Route(page.path, _page(web, name, page), methods=page.methods) for name, page in PAGES.items()
    ]
    found += [Route(path, _plain(web, show), methods=("GET",)) for path, show in PLAIN.items()]
    found.append(Route(f"{openapi.PREFIX}/openapi.json", describe, methods=("GET",)))
    found += [Route(openapi.PREFIX + one.path, _operation(web, one), methods=(one.method,)) for one in OPERATIONS]
    return found


# ------------------------------------------------------------------------------------------------------------- pages


def _page(web: Web, name: str, page: Page) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        with _Measured(web, name) as measured:
            measured.response = await _answer_page(web, page, request)
        return measured.response

    return endpoint


async def _answer_page(web: Web, page: Page, request: Request) -> Response:
    try:
        session = await _session(web, request)
    except SourceError as error:
        return View(request, web, None).page("message.html", 503, title="Tocsin", text=str(error))
    view = View(request, web, session)
    t = view.language.t
    role = page.act_role if request.method == "POST" else page.role
    if role and session is None:
        back = f"?next={quote(view.address)}" if request.method == "GET" and view.address != "/" else ""
        return RedirectResponse(f"/login{back}", 303)
    if role and session is not None and not session.may(role):
        return view.page("message.html", 403, title=t("Not allowed"), text=t("This takes the role {role}.", role=role))
    try:
        if request.method == "POST" and not await _is_ours(view, role):
            return view.page(
                "message.html", 403, title=t("Not allowed"), text=t("This form is too old. Load the page again.")
            )
        return await page.endpoint(view)
    except TooLarge:
        return view.page("message.html", 413, title=t("Too large"), text=t("That was more than this page takes."))
    except SourceError as error:
        return view.page("message.html", 503, title=t("Not available"), text=str(error))


async def _is_ours(view: View, role: str) -> bool:
    """A POST comes from our own page, and from this session's copy of it."""
    if not is_same_origin(view.request):
        return False
    if not role:
        return True
    return is_form_token(view.who, (await view.form()).get("form_token", ""))


# --------------------------------------------------------------------------------------------------------------- API


def _operation(web: Web, operation: Operation) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        with _Measured(web, operation.name) as measured:
            try:
                measured.response = await _answer_operation(web, operation, request)
            except Failure as failure:
                measured.response = problem(failure, request.url.path)
            except TooLarge:
                measured.response = problem(Failure(413, "too-long", "the body is too large"), request.url.path)
            except SourceError as error:
                measured.response = problem(Failure(503, "store", str(error)), request.url.path)
            except ControlError as error:
                failed = Failure(STATUS_OF.get(error.code, 409), error.code, error.message, error.hint)
                measured.response = problem(failed, request.url.path)
        if measured.response.status_code == 401:
            measured.response.headers["WWW-Authenticate"] = "Bearer"
        return measured.response

    return endpoint


async def _answer_operation(web: Web, operation: Operation, request: Request) -> Response:
    session = await _session(web, request)
    if operation.role:
        if session is None:
            raise Failure(401, "denied", "no valid token came with this request", "POST /api/v1/login gives one")
        if not session.may(operation.role):
            raise Failure(
                403, "forbidden", f"this takes the role {operation.role}", f"{session.account} is {session.role}"
            )
        if operation.method != "GET" and not session.is_bearer:
            raise Failure(403, "forbidden", "changes take a bearer token, not a cookie", "POST /api/v1/login gives one")
    return await perform(operation, View(request, web, session))


# ------------------------------------------------------------------------------------------------------------ leaves


def _plain(web: Web, show: Show) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        return await show(View(request, web, None))

    return endpoint


async def _session(web: Web, request: Request) -> Session | None:
    secret, is_bearer = presented(request)
    if not secret:
        return None
    found = await web.source.session(token_hash(secret), web.clock())
    return Session(found.account, found.role, secret, is_bearer) if found else None


class _Measured:
    """Counts one request and its time; what nobody expected is logged here, once, and answered with 500."""

    def __init__(self, web: Web, route: str) -> None:
        self.web = web
        self.route = route
        self.response: Response = PlainTextResponse("internal error\n", 500)
        self.started = time.perf_counter()

    def __enter__(self) -> "_Measured":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        self.web.measures.requests.labels(self.route, str(self.response.status_code)).inc()
        self.web.measures.seconds.labels(self.route).observe(time.perf_counter() - self.started)
        if isinstance(error, Exception):
            log.error("request failed", route=self.route, exc_info=error)
            return True
        return False
