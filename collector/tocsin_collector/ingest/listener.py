"""One gRPC listener over TLS, with every bound and keepalive that both listeners share.

Not a service. Invariant: the server's certificate is the authority's newest at every handshake, so that its renewal
needs no restart.
"""

from collections.abc import Callable
from typing import Any

import grpc
import structlog
from grpc import aio

from tocsin_collector.ingest.authority import Authority, ServerPair

log = structlog.get_logger()

_METADATA_BYTES_MAX = 8 * 1024
_OPTIONS: tuple[tuple[str, int], ...] = (
    # Without it a reader that stands still costs 4 MiB a stream instead of 60 kB.
    ("grpc.http2.bdp_probe", 0),
    # Half-open connections end within 80 s; agents may ping every 15 s and more.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 15_000),
    ("grpc.server_handshake_timeout_ms", 20_000),
    ("grpc.max_connection_idle_ms", 300_000),
    ("grpc.max_concurrent_streams", 4),
    ("grpc.max_metadata_size", _METADATA_BYTES_MAX),
    ("grpc.absolute_max_metadata_size", 2 * _METADATA_BYTES_MAX),
    # Identity only: a kilobyte of zipped zeros is a message of a megabyte.
    ("grpc.compression_enabled_algorithms_bitset", 1),
    # A second collector on the same port must fail, not take half of the agents.
    ("grpc.so_reuseport", 0),
)


class ListenError(OSError):
    """The address cannot be listened on."""


class Listener:
    """listen: "host:port"; port 0 for any free one. message_bytes_max: larger ones end their RPC, RESOURCE_EXHAUSTED."""

    def __init__(
        self,
        listen: str,
        authority: Authority,
        clock: Callable[[], int],
        *,
        require_client_certificate: bool,
        message_bytes_max: int,
    ) -> None:
        self._listen = listen
        self._authority = authority
        self._clock = clock
        self._require = require_client_certificate
        self._bytes_max = message_bytes_max
        self._shown: ServerPair | None = None
        self._server: aio.Server | None = None

    async def start(self, handler: "grpc.GenericRpcHandler[Any, Any]", *, rpcs_max: int) -> int:
        """The port. Raises ListenError."""
        options = (*_OPTIONS, ("grpc.max_receive_message_length", self._bytes_max))
        server = aio.server(options=options, maximum_concurrent_rpcs=rpcs_max)
        server.add_generic_rpc_handlers((handler,))
        credentials = grpc.dynamic_ssl_server_credentials(
            self._configuration(), self._newer, require_client_authentication=self._require
        )
        try:
            port = server.add_secure_port(self._listen, credentials)
        except RuntimeError as exc:
            raise ListenError(f"{self._listen}: cannot listen here; is another collector running?") from exc
        await server.start()
        self._server = server
        return port

    async def stop(self, grace_s: float) -> None:
        if self._server is not None:
            await self._server.stop(grace_s)
            self._server = None

    def _newer(self) -> Any:
        """Called by gRPC before each handshake, from a thread of its own. None: nothing has changed."""
        return None if self._shown is self._authority.server else self._configuration()

    def _configuration(self) -> Any:
        pair = self._shown = self._authority.server
        return grpc.ssl_server_certificate_configuration(
            [(pair.key_pem, pair.certificate_pem)], root_certificates=self._authority.ca_pem
        )
