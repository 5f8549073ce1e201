"""A real agent process on a real stream: frames are acked, an assignment is applied, a check on demand is answered."""

import asyncio
import os
import sys
import time
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import psutil
from tests.agent.test_agent_framer import measured
from tests.support.tls import Authority

from tocsin_agent import status
from tocsin_agent.identity import Identity, store
from tocsin_agent.uplink import END, METHOD
from tocsin_proto import records as r
from tocsin_proto.codec import decode_agent, encode_collector

SILENT = b'{"credential": "plant", "port": 9, "interval": "1s", "timeout": "200ms", "retries": 0}'
DEVICES = (
    r.AssignedDevice("sw-1", "127.0.0.1", "snmp", SILENT),
    r.AssignedDevice("plc-1", "127.0.0.1", "modbus", b"{}"),
)


class Collector:
    """Welcomes, assigns, asks, and acks what comes; keeps all it was told."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.news = asyncio.Condition()

    async def stream(self, _: Any, context: Any) -> None:
        while (raw := await context.read()) is not END:
            message = decode_agent(raw)
            for answer in self.answers(message):
                await context.write(encode_collector(answer))
            async with self.news:
                self.told.append(message)
                self.news.notify_all()

    def answers(self, message: r.AgentMessage) -> list[r.CollectorMessage]:
        match message:
            case r.Hello():
                now_ms = time.time_ns() // 1_000_000
                welcome = r.Welcome(1, message.first_unacked, r.CREDIT_BYTES, r.FRAME_BYTES_MAX, now_ms, "e1", "edge-1")
                return [welcome, r.Assignment("e1", DEVICES)]
            case r.AssignmentReport():
                return [r.ProbeRequest(5, "sw-1"), r.ProbeRequest(6, "nobody")]
            case r.Frame():
                return [r.Ack(message.seq)]
        return []

    def of(self, type_: type) -> list[Any]:
        return [message for message in self.told if isinstance(message, type_)]

    async def until(self, condition: Any) -> Any:
        async with asyncio.timeout(15), self.news:
            return await self.news.wait_for(condition)


def test_an_agent_on_a_real_stream_reports_applies_and_answers(tmp_path: Path) -> None:
    authority = Authority()
    server, client = authority.server("127.0.0.1"), authority.client("spiffe://tocsin/agent/7")
    (tmp_path / "credentials").mkdir()
    (tmp_path / "credentials" / "plant").write_text("public")
    path = tmp_path / "agent.toml"

    async def main() -> list[Any]:
        collector = Collector()

        class Handler(grpc.GenericRpcHandler):
            def service(self, details: Any) -> Any:
                return grpc.stream_stream_rpc_method_handler(collector.stream) if details.method == METHOD else None

        listener = grpc.aio.server()
        listener.add_generic_rpc_handlers((Handler(),))
        secrets = [(server.key_pem, server.certificate_pem)]
        port = listener.add_secure_port(
            "127.0.0.1:0", grpc.ssl_server_credentials(secrets, authority.pem, require_client_auth=True)
        )
        await listener.start()
        address = f"127.0.0.1:{port}"
        store(
            Identity("edge-1", address, 0, client.key_pem, client.certificate_pem, authority.pem), tmp_path / "identity"
        )
        path.write_text(f'collector = "{address}"\n[host]\ninterval = "1s"\n')
        started_s = time.monotonic()
        agent = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tocsin_agent", "run", "--config", str(path), "--state", str(tmp_path)),
            stderr=asyncio.subprocess.PIPE,
            env={name: value for name, value in os.environ.items() if not name.startswith("TOCSIN_")},
        )
        try:
            await collector.until(lambda: collector.of(r.Frame))
            first_frame_s = time.monotonic() - started_s
            assert first_frame_s < 10, first_frame_s
            await collector.until(lambda: len(collector.of(r.ProbeAnswer)) == 2)
            await collector.until(lambda: len(collector.of(r.Frame)) >= 5)
            now = await asyncio.to_thread(status.ask, tmp_path)
            assert now is not None
            assert now.connected
            assert now.last_ack_ms
            assert now.assignment_etag == "e1"
            rss_mib = psutil.Process(agent.pid).memory_info().rss / 2**20
            assert rss_mib < 64, rss_mib  # with a device; the bench holds the figure for hosts alone
        finally:
            agent.terminate()
            asked_s = time.monotonic()
            _, log = await agent.communicate()
            await listener.stop(0)
        assert time.monotonic() - asked_s < 2
        assert agent.returncode == 0, log.decode()
        return collector.told

    told = asyncio.run(main())
    assert isinstance(told[0], r.Hello)
    (report, *_) = [one for one in told if isinstance(one, r.AssignmentReport)]
    assert report == r.AssignmentReport("e1", ("device plc-1: modbus is not known to this agent's version",))
    answers = {one.request: one for one in told if isinstance(one, r.ProbeAnswer)}
    assert not answers[5].reachable
    assert answers[6].detail == "nobody is not polled by this agent"
    found = measured([one for one in told if isinstance(one, r.Frame)])
    reachable = {
        value for series, value, _ in found if series.metric == "device.reachable" and series.resource == "sw-1"
    }
    assert reachable == {0}
    assert {"cpu.used_ratio", "if.oper_status", "probe.duration_seconds"} <= {series.metric for series, _, _ in found}
