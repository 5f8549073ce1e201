"""What gRPC alone costs on this machine now: the collector's own listener, and behind it nothing but reading and Acks.

Not durable, not a collector: the same loader, certificates, listener options and pace of Acks as `e2e`, so that both, run one
after the other, say how much of a frame's time is the wire's and how much is ours.
"""

import asyncio
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import grpc
from grpc import aio

from bench.e2e import ACTIVE, AGENTS, SMALL_WINDOW, WINDOW, load
from bench.frames import FIRST_SEQ
from bench.load import Order
from bench.machine import talk
from bench.plant import enrol, lay
from tocsin_collector.ingest.authority import Authority
from tocsin_collector.ingest.listener import Listener
from tocsin_collector.ingest.server import IngestConfig
from tocsin_proto.codec import encode_collector, unbundle
from tocsin_proto.records import CREDIT_BYTES, FRAME_BYTES_MAX, Ack, Welcome

ACK_EVERY_S = IngestConfig().ack_interval_ms / 1000


def run(*, quick: bool) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="tocsin-bench-") as folder:
        state = lay(Path(folder) / "c")
        agents = tuple(enrol(state, [f"host-{n}" for n in range(AGENTS)]))
        with subprocess.Popen([sys.executable, "-m", "bench.floor", str(state)], stdout=subprocess.PIPE) as server:
            assert server.stdout is not None
            port = int(server.stdout.readline())
            try:
                for name, samples, window in (("frames", 200, WINDOW), ("small_frames", 20, SMALL_WINDOW)):
                    order = Order(port, server.pid, agents, samples, ACTIVE, window, 2.0, 8.0 if quick else 30.0)
                    outcome = load(order)
                    figures[f"{name}_per_s"] = round(outcome.frames / outcome.seconds)
                    figures[f"{name}_cpu_us"] = round(outcome.collector_cpu_s * 1e6 / outcome.frames, 1)
            finally:
                server.kill()
    talk(f"floor: {figures}")
    return figures


class _Handler(grpc.GenericRpcHandler):  # type: ignore[type-arg]
    def service(self, handler_call_details: Any) -> Any:
        return grpc.stream_stream_rpc_method_handler(_stream)


async def _stream(_: Any, context: Any) -> None:
    """Count the frames, and acknowledge them now and then."""
    seq = acked = FIRST_SEQ - 1

    async def acknowledge() -> None:
        nonlocal acked
        while True:
            await asyncio.sleep(ACK_EVERY_S)
            if acked < seq:
                acked = seq
                await context.write(encode_collector(Ack(acked)))

    await context.read()  # Hello
    welcome = Welcome(1, FIRST_SEQ, CREDIT_BYTES, FRAME_BYTES_MAX, time.time_ns() // 1_000_000, "", "bench")
    await context.write(encode_collector(welcome))
    pace = asyncio.create_task(acknowledge())
    try:
        while (raw := await context.read()) is not aio.EOF:  # type: ignore[attr-defined]
            seq += len(unbundle(raw) or [raw])
    finally:
        pace.cancel()


async def _serve(state: Path) -> None:
    def clock() -> int:
        return time.time_ns() // 1_000_000

    authority = Authority.load(state / "ca", clock())
    listener = Listener(
        "127.0.0.1:0", authority, clock, require_client_certificate=True, message_bytes_max=2 * FRAME_BYTES_MAX
    )
    print(await listener.start(_Handler(), rpcs_max=2 * AGENTS), flush=True)
    await asyncio.Event().wait()  # until killed


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1])))
