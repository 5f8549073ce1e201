"""How the collector itself is: for operators with a role, for probes and for Prometheus without one.

/healthz: this process lives. /readyz: the engine answers, its store takes writes, its ticks are fresh.
"""

from typing import Any

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.responses import PlainTextResponse, Response

from tocsin_collector.control import ControlError
from tocsin_collector.web.api.call import Call, Operation
from tocsin_collector.web.view import View

TICK_STALE_MS = 15_000


async def status(call: Call) -> dict[str, Any]:
    answer = await call.ask("status")
    return {name: value for name, value in answer.items() if name != "ok"}


async def healthz(view: View) -> Response:
    return PlainTextResponse("ok\n")


async def readyz(view: View) -> Response:
    trouble = await _trouble(view)
    body = {"ready": not trouble, "trouble": trouble}
    return Response(msgspec.json.encode(body), 503 if trouble else 200, media_type="application/json")


async def _trouble(view: View) -> list[str]:
    try:
        answer = await view.web.control.call("status")
    except ControlError as error:
        return [error.message]
    trouble = []
    if answer.get("trouble"):
        trouble.append(f"store: {answer['trouble']}")
    last_tick_ms = answer.get("last_tick_ms")
    if isinstance(last_tick_ms, int) and view.now_ms - last_tick_ms > TICK_STALE_MS:
        trouble.append(f"no tick for {view.now_ms - last_tick_ms} ms")
    return trouble


async def metrics(view: View) -> Response:
    """The engine's figures and our own. Without the engine: our own, and tocsin_engine_up 0."""
    own: CollectorRegistry = view.web.measures.registry
    try:
        text = str((await view.web.control.call("metrics")).get("text", ""))
        view.web.measures.engine_up.set(1)
    except ControlError:
        text = ""
        view.web.measures.engine_up.set(0)
    body = text.encode() + generate_latest(own)
    return Response(body, media_type=CONTENT_TYPE_LATEST)


OPERATIONS = (
    Operation(
        "getStatus", "GET", "/status", "viewer", "The engine process, its agents and queues", status, dict[str, Any]
    ),
)
