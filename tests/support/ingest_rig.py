"""A collector's ingest with everything real behind it: SQLite, engine, pipeline, TLS on loopback. And clients, good and bad."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from grpc import aio

from tocsin_collector.core.model import Device
from tocsin_collector.ingest import roster, tokens
from tocsin_collector.ingest.authority import Authority
from tocsin_collector.ingest.enrolment import EnrolmentServer
from tocsin_collector.ingest.roster import Agent
from tocsin_collector.ingest.server import IngestConfig, IngestServer
from tocsin_collector.pipeline import Pipeline
from tocsin_collector.store.sqlite import SqliteStore
from tocsin_proto import records
from tocsin_proto.codec import decode_collector, encode_agent, layout_id, pack_floats

STREAM = "/tocsin.v1.Ingest/Stream"
RENEW = "/tocsin.v1.Enrolment/Renew"
ENROL = "/tocsin.v1.Enrolment/Enrol"
PATIENCE_S = 10.0  # for what happens at once or never
SERIES = (records.Series("", "load.per_cpu", "1", records.SeriesKind.GAUGE, (("minutes", "1"),), 10_000),)
LAYOUT = records.Layout(layout_id(SERIES), SERIES)


def now_ms() -> int:
    return int(time.time() * 1000)


def clock_record() -> records.Clock:
    return records.Clock(now_ms(), 1_000, 7)


def hello(spool: bytes = b"s" * 16, **changes: Any) -> records.Hello:
    facts: dict[str, Any] = {
        "protocol_min": 1,
        "protocol_max": 1,
        "version": "0.1",
        "spool_id": spool,
        "first_unacked": 1,
        "last_seq": 0,
        "clock": clock_record(),
    }
    return records.Hello(**(facts | changes))


def frame(seq: int, follows: int | None = None, value: float = 0.5) -> records.Frame:
    section = records.Section(LAYOUT.id, now_ms(), values=pack_floats([value]))
    return records.Frame(seq, seq - 1 if follows is None else follows, clock_record(), (LAYOUT,), (section,))


# ------------------------------------------------------------------------------------------------------ certificates


@dataclass(frozen=True)
class Credentials:
    key_pem: bytes | None
    certificate_pem: bytes | None
    ca_pem: bytes

    def channel(self, port: int) -> aio.Channel:
        credentials = grpc.ssl_channel_credentials(self.ca_pem, self.key_pem, self.certificate_pem)
        return aio.secure_channel(f"localhost:{port}", credentials)


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def pem_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def csr_of(key: Any, subject: str = "") -> bytes:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, subject)] if subject else [])
    digest = None if "ed25519" in type(key).__module__ else hashes.SHA256()
    return x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, digest).public_bytes(Encoding.DER)


def forged(
    authority: Authority,
    folder: Path,
    uri: str,
    *,
    usage: x509.ObjectIdentifier = x509.ExtendedKeyUsageOID.CLIENT_AUTH,
    starts_days: int = -1,
    ends_days: int = 10,
    is_ca: bool = False,
    extra_uri: str = "",
    signed_by: ec.EllipticCurvePrivateKey | None = None,
) -> Credentials:
    """A certificate as an attacker or a mistake might have it, signed with the CA's key, or by `signed_by`."""
    key = new_key()
    ca = x509.load_pem_x509_certificate(authority.ca_pem)
    ca_key: Any = signed_by or load_pem_private_key((folder / "ca.key").read_bytes(), None)
    now = datetime.now(UTC)
    uris = [x509.UniformResourceIdentifier(one) for one in (uri, extra_uri) if one]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "agent")]))
        .issuer_name(ca.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + timedelta(days=starts_days))
        .not_valid_after(now + timedelta(days=ends_days))
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=True)
        .add_extension(x509.SubjectAlternativeName(uris or [x509.DNSName("agent.example")]), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    return Credentials(pem_of(key), certificate.public_bytes(Encoding.PEM), authority.ca_pem)


# ------------------------------------------------------------------------------------------------------------ clients


class Client:
    """One stream, in bytes."""

    def __init__(self, channel: aio.Channel) -> None:
        self.call: Any = channel.stream_stream(STREAM, None, None)(None)

    async def send(self, *messages: records.AgentMessage | bytes) -> None:
        for message in messages:
            await self.call.write(message if isinstance(message, bytes) else encode_agent(message))

    async def next(self) -> records.CollectorMessage | None:
        async with asyncio.timeout(PATIENCE_S):
            raw = await self.call.read()
        return None if raw is aio.EOF else decode_collector(raw)

    async def until(self, wanted: type | records.CollectorMessage) -> Any:
        """The next message of this kind, or this very one; others are passed over."""
        while True:
            message = await self.next()
            assert message is not None, f"stream ended before {wanted}: {await self.call.code()}"
            if message == wanted or (isinstance(wanted, type) and isinstance(message, wanted)):
                return message

    async def end(self) -> tuple[grpc.StatusCode, str]:
        """How the collector ended it; what it said before is passed over."""
        with contextlib.suppress(aio.AioRpcError, asyncio.InvalidStateError):
            while await self.next() is not None:
                pass
        async with asyncio.timeout(PATIENCE_S):
            return await self.call.code(), await self.call.details()


async def refusal_of(channel: aio.Channel) -> tuple[grpc.StatusCode, str]:
    """What a Hello on a new stream is answered with, when it is not let in."""
    client = Client(channel)
    with contextlib.suppress(aio.AioRpcError, asyncio.InvalidStateError):
        await client.send(hello())
    return await client.end()


# ---------------------------------------------------------------------------------------------------------------- rig


@dataclass
class Rig:
    folder: Path
    authority: Authority
    pipeline: Pipeline
    ingest: IngestServer
    enrolment: EnrolmentServer
    ahead_ms: int = 0  # of the real clock, which TLS goes by
    port: int = 0
    enrol_port: int = 0
    enrolled: list[tuple[str, str, str]] = field(default_factory=list)
    held: dict[str, Device] = field(default_factory=dict)  # what the registry's files say, by name
    channels: list[aio.Channel] = field(default_factory=list)

    def clock(self) -> int:
        return now_ms() + self.ahead_ms

    def client(self, credentials: Credentials) -> Client:
        return Client(self.channel(credentials))

    def channel(self, credentials: Credentials, port: int = 0) -> aio.Channel:
        channel = credentials.channel(port or self.port)
        self.channels.append(channel)
        return channel

    async def add_agent(self, name: str, issued_ms: int = 0) -> Credentials:
        """An enrolled agent, by the operations but without the enrolment listener."""
        key, uuid = new_key(), str(uuid4())
        issued = self.authority.issue_agent(csr_of(key), uuid, issued_ms or now_ms())
        agent = Agent(name, uuid, name, "", "", issued.serial, issued.expires_ms, now_ms())
        await self.pipeline.administer(lambda connection: roster.write(connection, agent))
        await self.ingest.refresh()
        return Credentials(pem_of(key), issued.certificate_pem, self.authority.ca_pem)

    async def token(self, secret: bytes = b"k" * 32, **choices: Any) -> str:
        await self.pipeline.administer(
            lambda connection: tokens.create(connection, secret=secret, actor="admin", now_ms=self.clock(), **choices)
        )
        address = f"localhost:{self.enrol_port}"
        return tokens.text(address, self.authority.pin, self.authority.ca_pem, secret)

    async def rows(self, sql: str, *parameters: Any) -> list[Any]:
        return list(await self.pipeline.administer(lambda connection: connection.execute_fetchall(sql, parameters)))

    async def audit(self) -> list[str]:
        return [
            f"{action} {detail}" for action, detail in await self.rows("SELECT action, detail FROM audit ORDER BY id")
        ]


@contextlib.asynccontextmanager
async def rig(
    folder: Path, *, names: Sequence[str] = ("localhost",), config: IngestConfig | None = None
) -> AsyncIterator[Rig]:
    authority = Authority.create(folder / "ca", names, now_ms())
    store = await SqliteStore.open(folder / "tocsin.db")
    pipeline = await Pipeline.start(store, None, now_ms)
    running = asyncio.create_task(pipeline.run())
    made: list[Rig] = []

    async def on_enrolled(name: str, site: str, hostname: str) -> None:
        made[0].enrolled.append((name, site, hostname))
        await made[0].ingest.refresh()

    def clock() -> int:
        return made[0].clock() if made else now_ms()

    ingest = IngestServer(config or IngestConfig(listen="localhost:0"), pipeline, authority, clock=clock)
    enrolment = EnrolmentServer(
        "localhost:0",
        "collector.example:7443",
        pipeline,
        authority,
        clock=clock,
        new_uuid=lambda: str(uuid4()),
        connected=ingest.connected,
        held=lambda name: made[0].held.get(name),
        on_enrolled=on_enrolled,
    )
    one = Rig(folder, authority, pipeline, ingest, enrolment)
    made.append(one)
    one.port, one.enrol_port = await ingest.start(), await enrolment.start()
    try:
        yield one
    finally:
        for channel in one.channels:
            await channel.close()
        await enrolment.stop()
        await one.ingest.stop()
        pipeline.stop()
        await running
        await store.close()
