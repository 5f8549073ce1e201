"""Raw UDP servers on loopback for tests of protocols: a function says what to answer to each datagram."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any, cast


class UdpServer(asyncio.DatagramProtocol):
    """Records every datagram in `received`. `answer(datagram)` gives the datagrams to send back."""

    def __init__(self, answer: Callable[[bytes], Iterable[bytes]]) -> None:
        self.received: list[bytes] = []
        self.peer: Any = None
        self._answer = answer
        self.transport: asyncio.DatagramTransport | None = None

    @property
    def port(self) -> int:
        assert self.transport is not None
        port: int = self.transport.get_extra_info("sockname")[1]
        return port

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.received.append(data)
        self.peer = addr
        assert self.transport is not None
        for datagram in self._answer(data):
            self.transport.sendto(datagram, addr)


@asynccontextmanager
async def udp_server(answer: Callable[[bytes], Iterable[bytes]]) -> AsyncIterator[UdpServer]:
    server = UdpServer(answer)
    await asyncio.get_running_loop().create_datagram_endpoint(lambda: server, local_addr=("127.0.0.1", 0))
    try:
        yield server
    finally:
        assert server.transport is not None
        server.transport.close()
