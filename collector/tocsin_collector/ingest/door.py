"""The one door of the Ingest listener: no method is served to a peer that was not identified.

Not the judgement itself (`roster`). Invariant: every method of the listener is in one table, and is reached only through
`Door.service`, with the Peer that the certificate proves.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

import grpc
import structlog
from grpc import aio

from tocsin_collector.ingest.roster import Peer, Refused, Roster

log = structlog.get_logger()

Context = aio.ServicerContext[bytes, bytes]


class Method(NamedTuple):
    """kind: grpc.stream_stream_rpc_method_handler or grpc.unary_unary_rpc_method_handler. Bytes in, bytes out."""

    kind: Callable[..., Any]
    serve: Callable[[Peer, Any, Context], Awaitable[Any]]


class Door(grpc.GenericRpcHandler):  # type: ignore[type-arg]
    """turned_away(refused, address): told of every refusal."""

    def __init__(
        self,
        roster: Roster,
        methods: Mapping[str, Method],
        clock: Callable[[], int],
        turned_away: Callable[[Refused, str], None],
    ) -> None:
        self._roster = roster
        self._clock = clock
        self._turned_away = turned_away
        self._handlers = {path: method.kind(self._guarded(method)) for path, method in methods.items()}

    def service(self, handler_call_details: Any) -> Any:
        return self._handlers.get(handler_call_details.method)

    def _guarded(self, method: Method) -> Callable[[Any, Context], Awaitable[Any]]:
        async def guarded(request: Any, context: Context) -> Any:
            try:
                peer = self._roster.identify(context.auth_context(), self._clock())
            except Refused as refused:
                self._turned_away(refused, context.peer())
                await context.abort(grpc.StatusCode[refused.code], refused.reason)
            return await method.serve(peer, request, context)

        return guarded
