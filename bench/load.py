"""The loader: many simulated agents in one process, each with its own certificate, connection and stream.

Not a test of the agent: it sends what an agent sends, through gRPC as an agent does, and measures what comes back. Its
figures count what was acknowledged while the measurement ran.

`python -m bench.load` reads one Order as JSON from stdin and writes one Outcome as the last line of stdout.
"""

import asyncio
import contextlib
import os
import sys
import time
from array import array
from collections import deque
from typing import Any

import grpc
import msgspec
from grpc import aio

from bench.frames import BOOT, FIRST_SEQ, MONO_FROM_MS, Source, Workload
from bench.machine import cpu_s, rss_mib, talk
from bench.plant import Credentials
from tocsin_proto.codec import decode_collector, encode_agent
from tocsin_proto.records import PROTOCOL_MAX, PROTOCOL_MIN, Ack, Assignment, Clock, Credit, Hello, Welcome

METHOD = "/tocsin.v1.Ingest/Stream"
OPTIONS = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0), ("grpc.enable_http_proxy", 0))
DRAIN_S_MAX = 10.0


class Order(msgspec.Struct, frozen=True):
    """window: frames that an agent has in flight at most, within the collector's credit; 0: the credit alone bounds it."""

    port: int
    collector_pid: int
    agents: tuple[Credentials, ...]
    samples: int
    active: float
    window: int
    warm_s: float
    measure_s: float


class Outcome(msgspec.Struct, frozen=True):
    """What was acknowledged in `seconds`; latencies from the write of a frame to its Ack; marks: last Ack of each agent."""

    seconds: float
    frames: int
    latencies_ms: list[float]
    collector_cpu_s: float
    loader_cpu_s: float
    collector_rss_mib: float
    sent: dict[str, int]
    marks: dict[str, int]
    spools: dict[str, str]


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class Measure:
    """What all agents share: is it time to send, to count, to stop?"""

    def __init__(self) -> None:
        self.is_counting = False
        self.is_over = False
        self.frames = 0
        self.latencies_ms = array("d")


class Agent:
    def __init__(self, order: Order, credentials: Credentials, measure: Measure) -> None:
        self.name = credentials.agent
        self.spool_id = os.urandom(16)
        self.source = Source(Workload(order.samples, order.active), now_ms())
        self.acked = FIRST_SEQ - 1
        self._order = order
        self._credentials = credentials
        self._measure = measure
        self._credit_bytes = 0
        self._flights: deque[tuple[int, float, int]] = deque()  # seq, when it was sent, bytes
        self._flight_bytes = 0
        self._room = asyncio.Event()

    async def run(self, go: asyncio.Event, ready: asyncio.Semaphore) -> None:
        """One stream from Hello to the last Ack. RuntimeError when the collector says anything but Welcome and Ack."""
        one = self._credentials
        credentials = grpc.ssl_channel_credentials(
            one.ca_pem.encode(), one.key_pem.encode(), one.certificate_pem.encode()
        )
        async with aio.secure_channel(f"localhost:{self._order.port}", credentials, options=OPTIONS) as channel:
            call: Any = channel.stream_stream(METHOD, None, None)(None)
            await call.write(encode_agent(self._hello()))
            welcome = decode_collector(await call.read())
            assert isinstance(welcome, Welcome), welcome
            self._credit_bytes = welcome.credit_bytes
            reader = asyncio.create_task(self._read(call))
            await self._send(call, self.source.first())
            while self.acked < self.source.seq:
                await self._wait()
            ready.release()
            await go.wait()
            await self._stream(call)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DRAIN_S_MAX):
                    while self.acked < self.source.seq:
                        await self._wait()
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
            call.cancel()

    def _hello(self) -> Hello:
        clock = Clock(now_ms(), MONO_FROM_MS, BOOT)
        return Hello(PROTOCOL_MIN, PROTOCOL_MAX, "bench", self.spool_id, FIRST_SEQ, FIRST_SEQ - 1, clock)

    async def _stream(self, call: Any) -> None:
        measure, source, flights = self._measure, self.source, self._flights
        window = self._order.window or sys.maxsize
        while not measure.is_over:
            frame = source.next(now_ms())
            while flights and (len(flights) >= window or self._flight_bytes + len(frame) > self._credit_bytes):
                await self._wait()
            await self._send(call, frame)
        source.check()

    async def _send(self, call: Any, frame: bytes) -> None:
        self._flights.append((self.source.seq, time.perf_counter(), len(frame)))
        self._flight_bytes += len(frame)
        await call.write(frame)

    async def _wait(self) -> None:
        self._room.clear()
        await self._room.wait()

    async def _read(self, call: Any) -> None:
        while True:
            raw = await call.read()
            if raw is aio.EOF:  # type: ignore[attr-defined]
                raise RuntimeError(f"{self.name}: the collector ended the stream: {await call.details()}")
            message = decode_collector(raw)
            if isinstance(message, Ack):
                self._acked(message.seq)
            elif isinstance(message, Credit):
                self._credit_bytes = message.bytes
            elif not isinstance(message, Assignment):  # of nothing: these agents are in no registry
                talk(f"{self.name}: {message}")
            self._room.set()

    def _acked(self, seq: int) -> None:
        now, measure, flights = time.perf_counter(), self._measure, self._flights
        self.acked = seq
        while flights and flights[0][0] <= seq:
            _, sent, size = flights.popleft()
            self._flight_bytes -= size
            if measure.is_counting:
                measure.frames += 1
                measure.latencies_ms.append((now - sent) * 1000)


async def load(order: Order) -> Outcome:
    measure, go, ready = Measure(), asyncio.Event(), asyncio.Semaphore(0)
    agents = [Agent(order, one, measure) for one in order.agents]
    async with asyncio.TaskGroup() as tasks:
        for agent in agents:
            tasks.create_task(agent.run(go, ready), name=agent.name)
        for _ in agents:
            await ready.acquire()
        go.set()
        await asyncio.sleep(order.warm_s)
        pid, began = order.collector_pid, time.perf_counter()
        collector_s, loader_s = cpu_s(pid), time.process_time()
        measure.is_counting = True
        await asyncio.sleep(order.measure_s)
        measure.is_counting = False
        seconds = time.perf_counter() - began
        collector_s, loader_s = cpu_s(pid) - collector_s, time.process_time() - loader_s
        rss = rss_mib(pid)
        measure.is_over = True
    return Outcome(
        seconds=seconds,
        frames=measure.frames,
        latencies_ms=measure.latencies_ms.tolist(),
        collector_cpu_s=collector_s,
        loader_cpu_s=loader_s,
        collector_rss_mib=rss,
        sent={agent.name: agent.source.seq for agent in agents},
        marks={agent.name: agent.acked for agent in agents},
        spools={agent.name: agent.spool_id.hex() for agent in agents},
    )


def main() -> None:
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=Order)
    sys.stdout.buffer.write(msgspec.json.encode(asyncio.run(load(order))) + b"\n")


if __name__ == "__main__":
    main()
