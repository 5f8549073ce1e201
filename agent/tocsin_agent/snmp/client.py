"""One device's SNMP session: what to ask, how often to try, and which datagram is the answer.

Not what the values mean. The `SnmpClient` protocol is the seam for other backends (SNMPv3, a native one). Invariants:
at most one request is outstanding per device; it has no method that writes (law 8).
"""

import asyncio
import errno
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

from tocsin_agent.snmp.codec import Request, Response, UndecodableError, Version, decode_response, encode_request
from tocsin_agent.snmp.errors import (
    SnmpAddress,
    SnmpError,
    SnmpGarbage,
    SnmpNoHost,
    SnmpRefused,
    SnmpTimeout,
    error_status,
)
from tocsin_agent.snmp.values import Missing, Oid, Value, dotted
from tocsin_agent.snmp.walk import NO_SUCH_NAME, TOO_BIG, Pace, Rows, WalkLimits, walk_columns

GET_OIDS_MAX = 24  # in one request; more are asked for in turn
REQUEST_IDS = 0x7FFF_FFFF
RESOLVE_S_MAX = 5.0
LIMITS = WalkLimits()


class SnmpClient(Protocol):
    """Reads only. All methods raise `SnmpError` kinds; missing objects are values (`Missing`)."""

    async def get(self, oids: Sequence[Oid], *, tries: int | None = None) -> dict[Oid, Value]:
        """Every asked OID is a key of the answer."""

    async def walk(self, root: Oid, *, limits: WalkLimits = LIMITS) -> Rows:
        """One subtree: what follows the root -> value."""

    async def columns(self, columns: Sequence[Oid], *, limits: WalkLimits = LIMITS) -> dict[Oid, Rows]:
        """Several columns of one table at once, each as `walk` gives it."""

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Target:
    host: str
    port: int
    version: Version
    community: bytes
    timeout_s: float = 2.0
    tries: int = 2

    def __repr__(self) -> str:
        return f"Target({self.host}:{self.port}, {self.version.name})"  # never the community (law 9)


class UdpSnmpClient:
    """SNMP v1 and v2c over one connected UDP socket: the kernel drops what comes from another address or port."""

    def __init__(self, target: Target, *, new_id: Callable[[], int] = lambda: secrets.randbelow(REQUEST_IDS)) -> None:
        self._target = target
        self._new_id = new_id
        self._one_at_a_time = asyncio.Lock()
        self._socket: _Socket | None = None
        self._pace = Pace(0) if target.version is Version.V1 else Pace()
        self.strays = 0  # datagrams that answered nothing we asked: late, duplicate, forged

    async def get(self, oids: Sequence[Oid], *, tries: int | None = None) -> dict[Oid, Value]:
        values: dict[Oid, Value] = {}
        pending = [list(oids[start : start + GET_OIDS_MAX]) for start in range(0, len(oids), GET_OIDS_MAX)]
        while pending:
            group = pending.pop(0)
            response = await self._ask(Request.GET, group, tries=tries)
            if response.error_status == TOO_BIG and len(group) > 1:
                pending[:0] = [group[: len(group) // 2], group[len(group) // 2 :]]
            elif response.error_status == NO_SUCH_NAME and 0 < response.error_index <= len(group):
                values[group.pop(response.error_index - 1)] = Missing.INSTANCE  # v1's word for it
                if group:
                    pending.insert(0, group)
            elif response.error_status:
                index = response.error_index
                at = dotted(group[index - 1]) if 0 < index <= len(group) else dotted(group[0])
                raise error_status(response.error_status, index, at)
            else:
                answered = dict(response.varbinds)
                # An agent may leave some out; asking again for ever would not help.
                values.update((name, answered.get(name, Missing.INSTANCE)) for name in group)
        return values

    async def walk(self, root: Oid, *, limits: WalkLimits = LIMITS) -> Rows:
        return (await self.columns([root], limits=limits))[root]

    async def columns(self, columns: Sequence[Oid], *, limits: WalkLimits = LIMITS) -> dict[Oid, Rows]:
        return await walk_columns(self._ask, columns, limits, self._pace, asyncio.get_running_loop().time)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    async def _ask(
        self, kind: Request, oids: Sequence[Oid], repetitions: int = 0, *, tries: int | None = None
    ) -> Response:
        """Every try has a new request-id; an answer to any of this request's tries is the answer."""
        tries = tries or self._target.tries
        async with self._one_at_a_time:
            link = await self._connected()
            self.strays += link.drain()
            ids: set[int] = set()
            troubles: list[str] = []
            for _ in range(tries):
                request_id = self._new_id()
                ids.add(request_id)
                target = self._target
                link.send(encode_request(target.version, target.community, kind, request_id, oids, repetitions))
                response = await self._answer(link, ids, troubles)
                if response is not None:
                    return response
            self.close()  # the next request resolves the address again
            raise self._no_answer(tries, troubles, link.error)

    async def _connected(self) -> "_Socket":
        if self._socket is not None and not self._socket.closed:
            return self._socket
        target = self._target
        try:
            async with asyncio.timeout(RESOLVE_S_MAX):
                _, self._socket = await asyncio.get_running_loop().create_datagram_endpoint(
                    _Socket, remote_addr=(target.host, target.port)
                )
        except TimeoutError as error:
            raise SnmpAddress(f"{target.host}: the name did not resolve within {RESOLVE_S_MAX:g} s") from error
        except (OSError, UnicodeError) as error:
            raise SnmpAddress(f"{target.host}:{target.port}: {error}") from error
        return self._socket

    async def _answer(self, link: "_Socket", ids: set[int], troubles: list[str]) -> Response | None:
        """Waits one timeout for a valid answer; what else comes is noted, not believed."""
        try:
            async with asyncio.timeout(self._target.timeout_s):
                while True:
                    datagram = await link.receive()
                    try:
                        response = decode_response(self._target.version, self._target.community, datagram)
                    except UndecodableError as error:
                        if len(troubles) < 8:
                            troubles.append(str(error))
                        continue
                    if response.request_id in ids:
                        return response
                    self.strays += 1
        except TimeoutError:
            return None

    def _no_answer(self, tries: int, troubles: list[str], error: OSError | None) -> SnmpError:
        where = f"{self._target.host}:{self._target.port}"
        if troubles:
            return SnmpGarbage(f"{where} sent no valid answer: {troubles[0]}")
        if isinstance(error, ConnectionRefusedError):
            return SnmpRefused(f"{where} is reachable and nothing answers SNMP on that port (connection refused)")
        if error is not None and error.errno == errno.EHOSTUNREACH:
            return SnmpNoHost(f"{where}: no such host on its network (host unreachable)")
        if error is not None:
            return SnmpAddress(f"{where}: {error.strerror or error}")
        return SnmpTimeout(tries, self._target.timeout_s * tries)


class _Socket(asyncio.DatagramProtocol):
    """A connected datagram socket with a bounded inbox."""

    INBOX_MAX = 64  # one outstanding request: more than a few datagrams are noise, the newest noise is dropped

    def __init__(self) -> None:
        self._inbox: asyncio.Queue[bytes] = asyncio.Queue(self.INBOX_MAX)
        self._transport: asyncio.DatagramTransport | None = None
        self.error: OSError | None = None
        self.closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)  # asyncio's own class does not say so itself

    def datagram_received(self, data: bytes, addr: object) -> None:
        if not self._inbox.full():
            self._inbox.put_nowait(data)

    def error_received(self, exc: Exception) -> None:
        # ICMP: the try still waits out its time, because a daemon that restarts is back within it.
        if isinstance(exc, OSError):
            self.error = exc

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True

    def send(self, datagram: bytes) -> None:
        assert self._transport is not None
        self._transport.sendto(datagram)

    async def receive(self) -> bytes:
        return await self._inbox.get()

    def drain(self) -> int:
        """Forget what came between requests; returns how much that was."""
        self.error = None
        count = self._inbox.qsize()
        for _ in range(count):
            self._inbox.get_nowait()
        return count

    def close(self) -> None:
        self.closed = True
        if self._transport is not None:
            self._transport.close()
