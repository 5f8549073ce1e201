"""How a machine becomes an agent: a token against a certificate, and an old certificate against a new one.

Not the tokens' life (`tokens`) and not the signing (`authority`). Enrol is served to anyone on a listener of its own,
Renew only behind the door of the Ingest listener.

Invariant: whoever has no usable token learns nothing, not even which kind of wrong it was; use of the token, agent row
and audit line are one transaction.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn

import grpc
import msgspec
import structlog
from google.protobuf.message import DecodeError
from grpc import aio

from tocsin_collector.core.model import Device
from tocsin_collector.ingest import roster, tokens
from tocsin_collector.ingest.attempts import Attempts, address_of
from tocsin_collector.ingest.authority import Authority, RequestError, requested_key, spki
from tocsin_collector.ingest.listener import Listener
from tocsin_collector.ingest.roster import AGENTS_MAX, Agent, Peer
from tocsin_collector.ingest.stream import Pipeline
from tocsin_collector.store.base import Statements
from tocsin_proto.v1 import tocsin_pb2 as pb

log = structlog.get_logger()

Context = aio.ServicerContext[bytes, bytes]

REQUEST_BYTES_MAX = 64 * 1024
_AT_ONCE_MAX = 8  # enrolments under way; the others wait, at most _WAITING_MAX
_WAITING_MAX = 200
_COMMIT_S_MAX = 30.0

# One text for wrong, expired, used up and revoked: the answer is no oracle.
_UNUSABLE = (
    "the token cannot be used: it is wrong, expired, used up or revoked; make a new one with `tocsin token create`"
)


class Declined(Exception):
    """Not enrolled or not renewed. `code` is the name of a gRPC status; `counts`: as a failed attempt of this peer."""

    def __init__(self, code: str, reason: str, *, counts: bool = False, audit: str = "") -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason
        self.counts = counts
        self.audit = audit or reason  # the audit may know what the peer may not


@dataclass(frozen=True, slots=True)
class Application:
    """What a machine asks with. `uuid` is the identity it gets if it is let in; `address` where it asks from."""

    secret: bytes
    csr_der: bytes
    hostname: str
    machine: str
    address: str
    uuid: str
    now_ms: int


@dataclass(frozen=True, slots=True)
class Enrolled:
    agent: Agent
    certificate_pem: bytes


Held = Callable[[str], Device | None]


def settle(
    device: str, hostname: str, machine: str, known: Sequence[Agent], connected: Collection[str], held: Held
) -> str:
    """The name under which a machine is enrolled. Raises Declined.

    device: what the token says, "" for any. known: the agents that have this name or this machine's hash.
    held(name): what the registry says of this name. A machine keeps its name, also after a re-installation; nobody takes
    the name of another machine, nor that of a device which the registry holds, unless the token was made for it.
    """
    name = _name(device, hostname, machine, known, connected)
    stanza = held(name)
    if stanza is None:
        return name
    if stanza.snmp is not None or stanza.watched_by not in ("", name):
        raise Declined(
            "PERMISSION_DENIED",
            f"{name} is in the registry as a device that {stanza.watched_by} watches, not as a host with an agent; make a "
            "token for another name, or take watched_by and snmp out of its stanza",
        )
    if device != name:
        raise Declined(
            "PERMISSION_DENIED",
            f"{name} is a name of the registry, and this token is for any host; make one for it with "
            f"`tocsin token create --device {name}`, or give this host another name",
        )
    return name


def _name(device: str, hostname: str, machine: str, known: Sequence[Agent], connected: Collection[str]) -> str:
    """The same without the registry."""
    wanted = device or name_of(hostname)
    if not wanted:
        raise Declined("INVALID_ARGUMENT", f"host name {hostname!r} makes no name; name the device in the token")
    own = [agent for agent in known if machine and agent.machine == machine]
    if any(agent.name == wanted for agent in own):
        return wanted
    if own and not device:
        newest = max(own, key=lambda agent: agent.enrolled_ms)
        if newest.name in connected:
            raise Declined(
                "ALREADY_EXISTS",
                f"this machine's id is that of {newest.name}, which is connected: a cloned machine needs a machine id of "
                "its own, or a token made for its name",
            )
        return newest.name
    holder = next((agent for agent in known if agent.name == wanted), None)
    if holder is not None and not holder.revoked_ms:
        raise Declined(
            "ALREADY_EXISTS",
            f"{wanted} is enrolled on another machine; if this one takes its place, revoke that agent first, else "
            "make a token for another name",
        )
    return wanted


def name_of(hostname: str) -> str:
    """A host name as the registry writes ids: small letters, digits, ".", "_", "-"; "" when nothing is left."""
    return re.sub(r"[^a-z0-9._-]+", "-", hostname.lower())[:_NAME_CHARS_MAX].strip("-._")


_NAME_CHARS_MAX = 63


async def admit(
    connection: Statements, application: Application, authority: Authority, connected: Collection[str], held: Held
) -> Enrolled | Declined:
    """Operation: judge the token, settle the name, sign, write. What it returns is committed, a refusal's audit too."""
    now_ms = application.now_ms
    token = await tokens.find(connection, tokens.digest(application.secret))
    try:
        # The same statements for every kind of wrong token, so that time tells nothing either.
        if token is None or not token.is_usable(now_ms) or not await tokens.consume(connection, token, now_ms):
            why = "unknown token" if token is None else f"token {token.id} expired, used up or revoked"
            raise Declined("PERMISSION_DENIED", _UNUSABLE, counts=True, audit=why)
        agent = await _enlist(connection, application, token, connected, held)
        issued = authority.issue_agent(application.csr_der, application.uuid, now_ms)
    except Declined as declined:
        if token is not None and not declined.counts:
            await tokens.give_back(connection, token)
        await _audit(connection, application, "enrolment refused", token, {"why": declined.audit})
        return declined
    agent = msgspec.structs.replace(agent, serial=issued.serial, expires_ms=issued.expires_ms)
    await roster.write(connection, agent)
    await _audit(connection, application, "enrolled", token, {"agent": agent.name, "uuid": agent.uuid})
    return Enrolled(agent, issued.certificate_pem)


async def _enlist(
    connection: Statements, application: Application, token: tokens.Token, connected: Collection[str], held: Held
) -> Agent:
    wanted = token.device or name_of(application.hostname)
    known = await roster.select(
        connection, "WHERE name = ? OR (machine <> '' AND machine = ?)", wanted, application.machine
    )
    name = settle(token.device, application.hostname, application.machine, known, connected, held)
    before = next((agent for agent in known if agent.name == name), None)
    if before is None and await roster.count(connection) >= AGENTS_MAX:
        raise Declined("RESOURCE_EXHAUSTED", f"this collector has {AGENTS_MAX} agents, which is its bound")
    return Agent(
        name=name,
        uuid=application.uuid,
        hostname=application.hostname,
        site=token.site or (before.site if before else ""),
        machine=application.machine,
        serial="",
        expires_ms=0,
        enrolled_ms=application.now_ms,
        version=before.version if before else "",
    )


async def _audit(
    connection: Statements, application: Application, action: str, token: tokens.Token | None, facts: dict[str, str]
) -> None:
    asked = {"hostname": application.hostname, "address": application.address, "token": token.id if token else ""}
    await tokens.audit(connection, application.now_ms, "enrolment", action, facts | asked)


class EnrolmentServer:
    """The listener without client certificates. Serves Enrol and nothing else.

    listen: "host:port", port 0 for any. collector: "host:port" of the Ingest listener as agents reach it.
    connected(): the names of the agents that have a stream. held(name): the registry's own stanza of this name, asked
    within the writer's transaction. on_enrolled(name, site, hostname) is awaited before the
    machine has its answer, so that the collector knows the agent when it comes.
    """

    def __init__(
        self,
        listen: str,
        collector: str,
        pipeline: Pipeline,
        authority: Authority,
        *,
        clock: Callable[[], int],
        new_uuid: Callable[[], str],
        connected: Callable[[], Collection[str]],
        held: Held,
        on_enrolled: Callable[[str, str, str], Awaitable[None]],
    ) -> None:
        self.collector = collector
        self.attempts = Attempts()
        self._pipeline = pipeline
        self._authority = authority
        self._clock = clock
        self._new_uuid = new_uuid
        self._connected = connected
        self._held = held
        self._on_enrolled = on_enrolled
        self._at_once = asyncio.Semaphore(_AT_ONCE_MAX)
        self._under_way: set[asyncio.Task[Any]] = set()
        self._listener = Listener(
            listen, authority, clock, require_client_certificate=False, message_bytes_max=REQUEST_BYTES_MAX
        )

    async def start(self) -> int:
        """The port it listens on."""
        handler = grpc.unary_unary_rpc_method_handler(self._enrol)
        return await self._listener.start(
            grpc.method_handlers_generic_handler("tocsin.v1.Enrolment", {"Enrol": handler}), rpcs_max=_WAITING_MAX
        )

    async def stop(self) -> None:
        await self._listener.stop(grace_s=1.0)
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)

    async def _enrol(self, raw: bytes, context: Context) -> bytes:
        address = address_of(context.peer())
        try:
            async with self._at_once:
                if not self.attempts.may_try(address, self._clock()):
                    raise Declined("RESOURCE_EXHAUSTED", "too many failed enrolments from this address; wait a minute")
                # In a task of its own: a machine that hangs up does not leave its enrolment half told.
                task = asyncio.create_task(self._settle(raw, address), name=f"enrolment {address}")
                self._under_way.add(task)
                task.add_done_callback(self._under_way.discard)
                return await asyncio.wait_for(asyncio.shield(task), _COMMIT_S_MAX)
        except Declined as declined:
            if declined.counts:
                self.attempts.failed(address, self._clock())
            log.warning("enrolment refused", address=address, why=declined.audit)
            await _abort(context, declined.code, declined.reason)
        except TimeoutError:
            await _abort(context, "UNAVAILABLE", "the collector cannot write just now; try again with a new token")

    async def _settle(self, raw: bytes, address: str) -> bytes:
        application = self._application(raw, address)
        operation = partial(
            admit,
            application=application,
            authority=self._authority,
            connected=frozenset(self._connected()),
            held=self._held,
        )
        outcome = await self._pipeline.administer(operation)
        if isinstance(outcome, Declined):
            raise outcome
        agent = outcome.agent
        log.info("agent enrolled", agent=agent.name, address=address, hostname=agent.hostname)
        await self._on_enrolled(agent.name, agent.site, agent.hostname)
        return pb.EnrolResponse(
            certificate_pem=outcome.certificate_pem,
            ca_pem=self._authority.ca_pem,
            agent=agent.name,
            collector=self.collector,
        ).SerializeToString()

    def _application(self, raw: bytes, address: str) -> Application:
        """Raises Declined for what no token could make right."""
        try:
            request = pb.EnrolRequest.FromString(raw)
        except DecodeError as exc:
            raise Declined("INVALID_ARGUMENT", "not an EnrolRequest", counts=True) from exc
        try:
            requested_key(request.csr_der)
        except RequestError as exc:
            raise Declined("INVALID_ARGUMENT", str(exc), counts=True) from exc
        for name, limit in (("hostname", 256), ("machine", 128)):
            if len(getattr(request, name)) > limit:
                raise Declined("INVALID_ARGUMENT", f"{name}: more than {limit} characters", counts=True)
        return Application(
            # No secret can be read from it: then it is looked up like any other wrong one.
            secret=tokens.secret_of(request.token) or b"",
            csr_der=request.csr_der,
            hostname=request.hostname,
            machine=request.machine,
            address=address,
            uuid=self._new_uuid(),
            now_ms=self._clock(),
        )


@dataclass(frozen=True, slots=True)
class Renewal:
    """Renew: a new certificate for a new key, for who shows a good old one. The old one ends when the new one is used."""

    pipeline: Pipeline
    authority: Authority
    clock: Callable[[], int]
    attempts: Attempts = field(default_factory=lambda: Attempts(most=10, window_ms=3_600_000))

    async def serve(self, peer: Peer, raw: bytes, context: Context) -> bytes:
        now_ms = self.clock()
        try:
            if not self.attempts.may_try(peer.name, now_ms):
                raise Declined("RESOURCE_EXHAUSTED", "more than 10 renewals within an hour")
            # Each counts, also the good ones: a renewal is due once in weeks.
            self.attempts.failed(peer.name, now_ms)
            csr_der = _renewal_request(raw, peer)
        except Declined as declined:
            log.warning("renewal refused", agent=peer.name, why=declined.reason)
            await _abort(context, declined.code, declined.reason)
        issued = self.authority.issue_agent(csr_der, peer.uuid, now_ms)
        facts = {"agent": peer.name, "serial": issued.serial, "address": address_of(context.peer())}
        await asyncio.shield(
            self.pipeline.administer(
                partial(tokens.audit, now_ms=now_ms, actor=peer.name, action="certificate renewed", detail=facts)
            )
        )
        log.info("certificate renewed", agent=peer.name, serial=issued.serial)
        return pb.RenewResponse(
            certificate_pem=issued.certificate_pem, ca_pem=self.authority.ca_pem
        ).SerializeToString()


def _renewal_request(raw: bytes, peer: Peer) -> bytes:
    try:
        csr_der: bytes = pb.RenewRequest.FromString(raw).csr_der
        key = requested_key(csr_der)
    except DecodeError as exc:
        raise Declined("INVALID_ARGUMENT", "not a RenewRequest") from exc
    except RequestError as exc:
        raise Declined("INVALID_ARGUMENT", str(exc)) from exc
    if spki(key) == peer.public_key:
        raise Declined("INVALID_ARGUMENT", "a renewal is for a new key; this is the key of the certificate in use")
    return csr_der


async def _abort(context: Context, code: str, reason: str) -> NoReturn:
    await context.abort(grpc.StatusCode[code], reason)
    raise AssertionError("abort returned")
