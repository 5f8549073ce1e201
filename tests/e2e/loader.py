"""Agents that do not give up: numbered frames over mutual TLS into a collector that dies and comes back.

`python -m tests.e2e.loader` reads one Order as JSON from stdin, streams until its stdin closes, then waits for every ack, and
writes one Outcome to stdout. Each frame stays here, byte for byte, until it is acknowledged, as in a spool; what was
acknowledged can never be sent again, so that a collector that forgot it is found out.
"""

import asyncio
import os
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

import grpc
import msgspec
from bench.frames import FIRST_SEQ, Source, Workload
from bench.plant import Credentials
from grpc import aio

from tocsin_proto.codec import decode_collector, encode_agent
from tocsin_proto.records import PROTOCOL_MAX, PROTOCOL_MIN, Ack, Assignment, Clock, Hello, Welcome

METHOD = "/tocsin.v1.Ingest/Stream"
OPTIONS = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0), ("grpc.enable_http_proxy", 0))
RETRY_S = 0.05
WELCOME_S_MAX = 10.0


class Order(msgspec.Struct, frozen=True):
    """ports: the file in which a collector says where it listens. window: frames in flight per agent."""

    ports: str
    first_acks: str
    agents: tuple[Credentials, ...]
    samples: int
    active: float
    window: int


class Outcome(msgspec.Struct, frozen=True):
    """sent, acked: last number of each agent. broken: what no collector may do."""

    sent: dict[str, int]
    acked: dict[str, int]
    spools: dict[str, str]
    resent: int
    broken: list[str]


class Agent:
    def __init__(self, order: Order, credentials: Credentials, over: asyncio.Event) -> None:
        self.name = credentials.agent
        self.spool_id = os.urandom(16)
        self.source = Source(Workload(order.samples, order.active), _now_ms())
        self.acked = FIRST_SEQ - 1
        self.resent = 0
        self.broken: list[str] = []
        self._order = order
        self._over = over
        self._credentials = grpc.ssl_channel_credentials(
            credentials.ca_pem.encode(), credentials.key_pem.encode(), credentials.certificate_pem.encode()
        )
        self._held: deque[tuple[int, bytes]] = deque()  # not acknowledged yet
        self._unsent: deque[tuple[int, bytes]] = deque()
        self._room = asyncio.Event()
        self._is_first = True

    @property
    def is_done(self) -> bool:
        return self._over.is_set() and not self._held

    async def run(self) -> None:
        while not self.is_done:
            try:
                port = msgspec.json.decode(Path(self._order.ports).read_bytes(), type=dict[str, int])["ingest"]
                async with aio.secure_channel(f"localhost:{port}", self._credentials, options=OPTIONS) as channel:
                    await self._stream(channel.stream_stream(METHOD, None, None)(None))
            except (OSError, msgspec.MsgspecError, aio.AioRpcError, asyncio.InvalidStateError, TimeoutError):
                pass  # the collector is away: that is what this is about
            await asyncio.sleep(RETRY_S)

    async def _stream(self, call: Any) -> None:
        clock = Clock(_now_ms(), 1 << 22, 77)
        last = self.source.seq
        await call.write(
            encode_agent(Hello(PROTOCOL_MIN, PROTOCOL_MAX, "loader", self.spool_id, self.acked + 1, last, clock))
        )
        async with asyncio.timeout(WELCOME_S_MAX):
            welcome = decode_collector(await call.read())
        assert isinstance(welcome, Welcome), welcome
        if not self.acked < welcome.resume_from <= last + 1:
            self.broken.append(f"{self.name}: acked {self.acked}, sent {last}, asked for {welcome.resume_from}")
        self._drop(welcome.resume_from - 1)
        self._unsent = deque(self._held)
        self.resent += len(self._unsent)
        self._is_first = True
        reader = asyncio.create_task(self._read(call))
        try:
            while not (self.is_done or reader.done()):
                if frame := self._next():
                    await call.write(frame)
                else:
                    self._room.clear()
                    await asyncio.wait(
                        (reader, asyncio.ensure_future(self._room.wait())), timeout=1.0, return_when="FIRST_COMPLETED"
                    )
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
            call.cancel()

    def _next(self) -> bytes:
        if self._unsent:
            return self._unsent.popleft()[1]
        if self._over.is_set() or len(self._held) >= self._order.window:
            return b""
        frame = self.source.first() if self.source.seq < FIRST_SEQ else self.source.next(_now_ms())
        self._held.append((self.source.seq, frame))
        return frame

    async def _read(self, call: Any) -> None:
        while True:
            raw = await call.read()
            if raw is aio.EOF:  # type: ignore[attr-defined]
                return
            message = decode_collector(raw)
            if isinstance(message, Ack):
                if message.seq > self.source.seq:
                    self.broken.append(f"{self.name}: ack of {message.seq}, sent {self.source.seq}")
                if self._is_first and message.seq > self.acked:
                    self._is_first = False
                    self._note(time.time())
                self._drop(message.seq)
            elif not isinstance(message, Assignment):
                self.broken.append(f"{self.name}: {message}")

    def _drop(self, seq: int) -> None:
        self.acked = max(self.acked, seq)
        while self._held and self._held[0][0] <= seq:
            self._held.popleft()
        while self._unsent and self._unsent[0][0] <= seq:
            self._unsent.popleft()
        self._room.set()

    def _note(self, at_s: float) -> None:
        with Path(self._order.first_acks).open("a") as file:
            file.write(f"{at_s:.3f} {self.name}\n")


async def load(order: Order) -> Outcome:
    over = asyncio.Event()
    agents = [Agent(order, one, over) for one in order.agents]
    loop = asyncio.get_running_loop()
    ended = loop.run_in_executor(None, sys.stdin.buffer.read)
    ended.add_done_callback(lambda _: over.set())
    async with asyncio.TaskGroup() as tasks:
        for agent in agents:
            tasks.create_task(agent.run(), name=agent.name)
    return Outcome(
        sent={agent.name: agent.source.seq for agent in agents},
        acked={agent.name: agent.acked for agent in agents},
        spools={agent.name: agent.spool_id.hex() for agent in agents},
        resent=sum(agent.resent for agent in agents),
        broken=[problem for agent in agents for problem in agent.broken],
    )


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def main() -> None:
    order = msgspec.json.decode(sys.stdin.buffer.readline(), type=Order)
    sys.stdout.buffer.write(msgspec.json.encode(asyncio.run(load(order))) + b"\n")


if __name__ == "__main__":
    main()
