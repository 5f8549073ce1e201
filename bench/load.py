"""The loader: many simulated agents in one process, each with its own certificate, connection and stream.

Not a test of the agent: it sends what an agent sends, on the wire that gRPC speaks (`http2`), within window and credit, and
measures what comes back. Its figures count what was acknowledged while the measurement ran.

`python -m bench.load` reads one Order as JSON from stdin and writes one Outcome as the last line of stdout.
"""

import asyncio
import os
import ssl
import sys
import tempfile
import time
from array import array
from collections import deque
from collections.abc import Awaitable
from typing import Any

import msgspec

from bench.frames import BOOT, FIRST_SEQ, MONO_FROM_MS, Source, Workload
from bench.http2 import Http2Error, Stream, connect
from bench.machine import cpu_s, rss_mib, talk
from bench.plant import Credentials
from tocsin_proto.codec import BUNDLE_FRAMES_MAX, bundle, decode_collector, encode_agent
from tocsin_proto.records import PROTOCOL_MAX, PROTOCOL_MIN, Ack, Assignment, Clock, Credit, Hello, Welcome

METHOD = "/tocsin.v1.Ingest/Stream"
DRAIN_S_MAX = 10.0
BUNDLE_BYTES = 15_000  # within one frame of HTTP/2


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
        self.is_running = False
        self.is_counting = False
        self.is_over = False
        self.frames = 0
        self.latencies_ms = array("d")


class Agent:
    """One agent: a stream, and what is in flight on it. `ready` is set when its layout is acknowledged."""

    def __init__(self, order: Order, credentials: Credentials, measure: Measure) -> None:
        self.name = credentials.agent
        self.spool_id = os.urandom(16)
        self.source = Source(Workload(order.samples, order.active), now_ms())
        self.acked = FIRST_SEQ - 1
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()  # an error when it broke
        self.ready = asyncio.Event()
        self.drained = asyncio.Event()
        self._order = order
        self._credentials = credentials
        self._measure = measure
        self._credit_bytes = 0
        self._flights: deque[tuple[int, float, int]] = deque()  # seq, when it was sent, bytes
        self._flight_bytes = 0
        self._next = b""
        self._stream = Stream(METHOD, self._told, self.pump, self._broke)

    async def connect(self) -> None:
        await connect("localhost", self._order.port, _context(self._credentials), self._stream)
        clock = Clock(now_ms(), MONO_FROM_MS, BOOT)
        hello = Hello(PROTOCOL_MIN, PROTOCOL_MAX, "bench", self.spool_id, FIRST_SEQ, FIRST_SEQ - 1, clock)
        self._stream.put(encode_agent(hello))
        self._stream.flush()

    def pump(self) -> None:
        """Send as much as window, credit and flow control allow."""
        measure, source, flights, stream = self._measure, self.source, self._flights, self._stream
        if not measure.is_running:
            return
        window = self._order.window or sys.maxsize
        made_ms = now_ms()
        together: list[bytes] = []  # what waits together goes together, as the agent's link does it
        together_bytes = 0
        while len(flights) < window:
            frame = self._next = self._next or source.next(made_ms)
            size = len(frame) + 4
            if together_bytes + size + 8 > stream.room_bytes or (
                flights and self._flight_bytes + size > self._credit_bytes
            ):
                break
            if together and (together_bytes + size > BUNDLE_BYTES or len(together) == BUNDLE_FRAMES_MAX):
                self._send(together)
                together, together_bytes = [], 0
                continue
            self._fly(frame)
            together.append(frame)
            together_bytes += size
            self._next = b""
        if together:
            self._send(together)
        stream.flush()

    @property
    def sent(self) -> int:
        """The newest sequence number that went out; one more may have been made."""
        return self.source.seq - bool(self._next)

    def close(self) -> None:
        self._stream.close()

    def _fly(self, frame: bytes) -> None:
        self._flights.append((self.source.seq, time.perf_counter(), len(frame)))
        self._flight_bytes += len(frame)

    def _send(self, frames: list[bytes]) -> None:
        self._stream.put(frames[0] if len(frames) == 1 else bundle(frames))

    def _told(self, raw: bytes) -> None:
        message = decode_collector(raw)
        if isinstance(message, Ack):
            self._acked(message.seq)
            self.pump()
        elif isinstance(message, Welcome):
            self._credit_bytes = message.credit_bytes
            first = self.source.first()
            self._fly(first)
            self._send([first])
            self._stream.flush()
        elif isinstance(message, Credit):
            self._credit_bytes = message.bytes
        elif not isinstance(message, Assignment):  # of nothing: these agents watch no devices
            talk(f"{self.name}: {message}")

    def _acked(self, seq: int) -> None:
        now, measure, flights = time.perf_counter(), self._measure, self._flights
        self.acked = seq
        while flights and flights[0][0] <= seq:
            _, sent, size = flights.popleft()
            self._flight_bytes -= size
            if measure.is_counting:
                measure.frames += 1
                measure.latencies_ms.append((now - sent) * 1000)
        if not flights:
            self.ready.set()
            if measure.is_over:
                self.drained.set()

    def _broke(self, error: Http2Error) -> None:
        if not self.ended.done():
            self.ended.set_exception(RuntimeError(f"{self.name}: {error}"))


def _context(credentials: Credentials) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=credentials.ca_pem)
    with tempfile.NamedTemporaryFile("w") as file:  # OpenSSL reads certificates from files only
        file.write(credentials.certificate_pem + credentials.key_pem)
        file.flush()
        context.load_cert_chain(file.name)
    return context


async def load(order: Order) -> Outcome:
    measure = Measure()
    agents = [Agent(order, one, measure) for one in order.agents]
    broken = asyncio.gather(*(agent.ended for agent in agents))
    for agent in agents:
        await agent.connect()
        await _unless(broken, agent.ready.wait())
    measure.is_running = True
    for agent in agents:
        agent.pump()
    await _unless(broken, asyncio.sleep(order.warm_s))
    pid, began = order.collector_pid, time.perf_counter()
    collector_s, loader_s = cpu_s(pid), time.process_time()
    measure.is_counting = True
    await _unless(broken, asyncio.sleep(order.measure_s))
    measure.is_counting = measure.is_running = False
    seconds = time.perf_counter() - began
    collector_s, loader_s = cpu_s(pid) - collector_s, time.process_time() - loader_s
    rss = rss_mib(pid)
    measure.is_over = True
    for agent in agents:
        if agent.acked < agent.sent:
            await _unless(broken, agent.drained.wait(), DRAIN_S_MAX)
        agent.source.check()
    broken.cancel()
    await asyncio.gather(broken, return_exceptions=True)
    for agent in agents:
        agent.close()
    return Outcome(
        seconds=seconds,
        frames=measure.frames,
        latencies_ms=measure.latencies_ms.tolist(),
        collector_cpu_s=collector_s,
        loader_cpu_s=loader_s,
        collector_rss_mib=rss,
        sent={agent.name: agent.sent for agent in agents},
        marks={agent.name: agent.acked for agent in agents},
        spools={agent.name: agent.spool_id.hex() for agent in agents},
    )


async def _unless(broken: "asyncio.Future[Any]", work: Awaitable[Any], seconds_max: float | None = None) -> None:
    """Wait for `work`, unless an agent breaks first: then RuntimeError, also when it takes too long."""
    task = asyncio.ensure_future(work)
    await asyncio.wait({broken, task}, timeout=seconds_max, return_when=asyncio.FIRST_COMPLETED)
    if broken.done():
        broken.result()
    if not task.done():
        task.cancel()
        raise RuntimeError(f"not acknowledged within {seconds_max} s")


def main() -> None:
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=Order)
    sys.stdout.buffer.write(msgspec.json.encode(asyncio.run(load(order))) + b"\n")


if __name__ == "__main__":
    main()
