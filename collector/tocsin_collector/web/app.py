"""The web process's composition root: options in, an ASGI application out, and a server that ends with its parent.

Invariant: nothing in here writes to the store, and the process ends when its stdin does, so that a
killed engine leaves nobody on the port.
"""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from tocsin_collector.control import ControlClient
from tocsin_collector.web.api.openapi import PREFIX
from tocsin_collector.web.api.problem import Failure, problem
from tocsin_collector.web.headers import Guard
from tocsin_collector.web.options import Options
from tocsin_collector.web.routes import routes
from tocsin_collector.web.source import Source
from tocsin_collector.web.view import View, Web

STATIC = Path(__file__).parent / "static"
REQUESTS_MAX = 200  # at once; beyond: 503
GOODBYE_S = 1  # for requests under way when we are told to end


def unix_ms() -> int:
    return time.time_ns() // 1_000_000


def make(options: Options) -> Web:
    """What the process shares. Nothing is opened yet."""
    try:
        mine = version("tocsin")
    except PackageNotFoundError:
        mine = "0"
    return Web(options, Source(options.database), ControlClient(options.control, timeout_s=15.0), unix_ms, mine)


def application(web: Web) -> ASGIApp:
    """The ASGI application around `web`; its lifespan opens and closes the store."""

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await web.source.close()

    async def not_found(request: Request, _: Exception) -> Response:
        if request.url.path.startswith(PREFIX):
            return problem(
                Failure(404, "not-found", "there is nothing here", f"see {PREFIX}/openapi.json"), request.url.path
            )
        view = View(request, web, None)
        return view.missing(view.language.t("There is no page {path}.", path=request.url.path))

    async def wrong_method(request: Request, error: Exception) -> Response:
        allowed = dict(getattr(error, "headers", None) or {})
        failure = Failure(
            405, "method", f"{request.method} is not answered here", f"allowed: {allowed.get('Allow', '')}"
        )
        return problem(failure, request.url.path, allowed)

    return Starlette(
        routes=[*routes(web), Mount("/static", StaticFiles(directory=STATIC))],
        middleware=[Middleware(Guard, is_secure=web.options.is_secure)],
        exception_handlers={404: not_found, 405: wrong_method},
        lifespan=lifespan,
    )


def listen(options: Options) -> socket.socket:
    """A listening socket; OSError says why not."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # named: asyncio sets NODELAY only then
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((options.host, options.port))
        made.listen(128)
    except OSError:
        made.close()
        raise
    return made


async def serve(options: Options) -> None:
    """Serves until SIGTERM, SIGINT or the end of stdin."""
    web = make(options)
    bound = listen(options)
    server = start(application(web), options)
    loop = asyncio.get_running_loop()
    orphaned = loop.create_task(_parent_gone(), name="parent")
    orphaned.add_done_callback(lambda _: _end(server))
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _end, server)
    sys.stdout.write(f'{{"port": {bound.getsockname()[1]}}}\n')
    sys.stdout.flush()
    try:
        await server.serve([bound])
    finally:
        orphaned.cancel()
        bound.close()


def start(app: ASGIApp, options: Options) -> "Server":
    """The server for `app`, every bound named; `serve` is still to be called."""
    return Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=REQUESTS_MAX,
            timeout_keep_alive=10,
            timeout_graceful_shutdown=GOODBYE_S,
            ssl_certfile=options.certificate or None,
            ssl_keyfile=options.key or None,
            http="h11",
            ws="none",
        )
    )


class Server(uvicorn.Server):
    """uvicorn without its signal handlers: they would raise the signal once more after a clean end."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _end(server: uvicorn.Server) -> None:
    server.should_exit = True


async def _parent_gone() -> None:
    """Returns when stdin ends: the engine holds the other end and never writes."""
    loop = asyncio.get_running_loop()
    gone = asyncio.Event()
    descriptor = sys.stdin.fileno()

    def readable() -> None:
        try:
            ended = not os.read(descriptor, 4096)
        except OSError:
            ended = True
        if ended:
            loop.remove_reader(descriptor)
            gone.set()

    try:
        loop.add_reader(descriptor, readable)
    except OSError:
        # stdin is a plain file or /dev/null, which no selector watches: nobody to outlive
        await asyncio.Event().wait()
    await gone.wait()
