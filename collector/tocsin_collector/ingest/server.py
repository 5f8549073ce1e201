"""The Ingest listener: agents with certificates, one seat each.

Not the protocol (`session`), not the reading and writing (`stream`), not the judgement of certificates (`roster`): this
puts them together and answers for them to the rest of the engine process.

Invariant: every agent that is served is in the roster and not revoked, from its first byte to one second after.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import grpc
import msgspec
import structlog
from grpc import aio

from tocsin_collector.ingest import roster, tokens
from tocsin_collector.ingest.attempts import Attempts
from tocsin_collector.ingest.authority import Authority
from tocsin_collector.ingest.door import Door, Method
from tocsin_collector.ingest.enrolment import Renewal
from tocsin_collector.ingest.listener import Listener
from tocsin_collector.ingest.roster import Agent, Peer, Refused, Roster
from tocsin_collector.ingest.seats import Pacer, Seat
from tocsin_collector.ingest.session import Limits, Session
from tocsin_collector.ingest.stream import Pipeline, Stream
from tocsin_proto import records
from tocsin_proto.codec import encode_collector, require_fast_protobuf

log = structlog.get_logger()

Context = aio.ServicerContext[bytes, bytes]

# Room for a frame that is a little too large to be refused by its number; what is larger ends the stream.
_MESSAGE_BYTES_MAX = 2 * records.FRAME_BYTES_MAX
_DRAIN_S = 1.0
_RECONNECT_MS = 2_000
_RECONNECT_STEP_MS = 10  # between one agent and the next: a handshake costs 1.2 ms of CPU, and there may be thousands
_RECONNECT_MS_MAX = 60_000


class IngestConfig(msgspec.Struct, frozen=True):
    """listen: "host:port", port 0 for any free one."""

    listen: str = "0.0.0.0:7443"
    streams_max: int = 20_000
    ack_interval_ms: int = 10  # how often a busy agent is acknowledged at most
    limits: Limits = Limits()


class SessionFacts(msgspec.Struct, frozen=True):
    """One connected agent, for status. `durable_seq` of `last_seq` of the spool it is sending now."""

    agent: str
    address: str
    connected_ms: int
    hostname: str
    version: str
    spool_id: str
    last_seq: int
    durable_seq: int
    in_flight_bytes: int
    certificate_expires_ms: int
    assigned_etag: str
    applied_etag: str
    refused: tuple[str, ...]
    counts: dict[str, int]


class IngestServer:
    def __init__(
        self, config: IngestConfig, pipeline: Pipeline, authority: Authority, *, clock: Callable[[], int]
    ) -> None:
        self.refused = 0  # peers turned away
        self._config = config
        self._pipeline = pipeline
        self._authority = authority
        self._clock = clock
        self._roster = Roster(authority.trust_domain)
        self._seats: dict[str, Seat] = {}
        self._counted: set[Session] = set()
        self._totals: Counter[str] = Counter()  # of the streams that have ended
        self._pacer = Pacer(config.ack_interval_ms / 1000)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._audited = Attempts(most=1, window_ms=3_600_000)
        self._is_stopping = False
        pipeline.on_lost_layouts(lambda agent: self.disconnect(agent, "a declaration of layouts was put aside"))
        self._listener = Listener(
            config.listen, authority, clock, require_client_certificate=True, message_bytes_max=_MESSAGE_BYTES_MAX
        )

    def methods(self) -> dict[str, Method]:
        """Every method of this listener, by path."""
        renewal = Renewal(self._pipeline, self._authority, self._clock)
        return {
            "/tocsin.v1.Ingest/Stream": Method(grpc.stream_stream_rpc_method_handler, self._stream),
            "/tocsin.v1.Enrolment/Renew": Method(grpc.unary_unary_rpc_method_handler, renewal.serve),
        }

    # ------------------------------------------------------------------------------------------------ its life

    async def start(self) -> int:
        """The port it listens on. Raises ListenError."""
        require_fast_protobuf()
        await self.refresh()
        door = Door(self._roster, self.methods(), self._clock, self._turned_away)
        port = await self._listener.start(door, rpcs_max=self._config.streams_max)
        self._keep(asyncio.create_task(self._look_after(), name="ingest housekeeping"))
        return port

    async def stop(self) -> None:
        """Admit nothing more, acknowledge what gets durable within a second, tell everyone when to come again; close."""
        self._is_stopping = True
        streams = [seat.stream for seat in self._seats.values() if seat.stream is not None]
        for n, stream in enumerate(streams):
            stream.drain(min(_RECONNECT_MS + n * _RECONNECT_STEP_MS, _RECONNECT_MS_MAX))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_S):
                await asyncio.gather(*(stream.settled() for stream in streams))
        for stream in streams:
            stream.end("UNAVAILABLE", "the collector is stopping")
        await self._listener.stop(grace_s=0.5)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def refresh(self) -> None:
        """Read the agents again: after an enrolment, a revocation. Streams of who is not among them end."""
        self._roster.replace(await self._pipeline.administer(roster.load))
        self.look_after(self._clock())

    def look_after(self, now_ms: int) -> None:
        """End the streams whose certificate would not be let in any more. Called each second."""
        for seat in self._seats.values():
            stream = seat.stream
            if stream is None:
                continue
            agent = self._roster.by_uuid(stream.peer.uuid)
            if agent is None:
                stream.end("UNAUTHENTICATED", "enrolled again since; this certificate is not accepted any more")
            elif agent.revoked_ms:
                stream.send(records.Revoked("revoked at the collector"))
                stream.end("PERMISSION_DENIED", "revoked; enrol with a new token")
            elif stream.peer.expires_ms <= now_ms:
                stream.end("UNAUTHENTICATED", "the certificate has expired; enrol again with a new token")

    # --------------------------------------------------------------------------------- for the rest of the engine

    def agents(self) -> tuple[Agent, ...]:
        """All enrolled agents, revoked ones too, by name."""
        return self._roster.agents()

    def connected(self) -> frozenset[str]:
        return frozenset(name for name, seat in self._seats.items() if seat.stream is not None)

    def assign(self, agent: str, assignment: records.Assignment) -> None:
        """What the agent watches from now on; sent now, or when it comes. Raises WireError when it cannot be sent."""
        encode_collector(assignment)
        self._seat(agent).assign(assignment)

    def disconnect(self, agent: str, reason: str) -> bool:
        """End the agent's stream; it may come again. False when it has none."""
        stream = self._seats[agent].stream if agent in self._seats else None
        if stream is None:
            return False
        stream.end("ABORTED", reason)
        return True

    async def revoke(self, agent: str, *, actor: str) -> bool:
        """Never again with any certificate it has. False when there is no such agent."""
        operation = partial(roster.revoke, name=agent, actor=actor, now_ms=self._clock())
        found = await self._pipeline.administer(operation)
        await self.refresh()
        return found

    def totals(self) -> dict[str, int]:
        """What all streams have seen since the start; only ever rising."""
        totals = self._totals.copy()
        for session in self._counted:
            totals.update(session.counts.as_dict())
        return totals

    def sessions(self) -> list[SessionFacts]:
        """The connected agents by name."""
        streams = [(seat, seat.stream) for _, seat in sorted(self._seats.items())]
        return [self._facts(seat, stream) for seat, stream in streams if stream is not None]

    # -------------------------------------------------------------------------------------------------- its parts

    async def _stream(self, peer: Peer, _: Any, context: Context) -> None:
        if self._is_stopping:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the collector is stopping")
        seat = self._seat(peer.name)
        session = Session(peer.name, self._pipeline, lambda: seat.assignment, self._config.limits)
        stream = Stream(peer, context.peer(), session, seat, self._pipeline, self._clock())
        self._counted.add(session)
        try:
            await stream.serve(context, self._clock)
        finally:
            self._counted.discard(session)
            self._totals.update(session.counts.as_dict())

    def _seat(self, agent: str) -> Seat:
        seat = self._seats.get(agent)
        if seat is None:
            seat = self._seats[agent] = Seat(agent, self._pacer, self._clock, self._greeted)
        return seat

    def _greeted(self, stream: Stream, hello: records.Hello) -> None:
        log.info("agent connected", agent=stream.peer.name, address=stream.address, version=hello.version)
        if self._roster.shown(stream.peer, hello.version):
            # In the background: a stream must not wait for a commit to begin.
            self._administer(partial(roster.seen, peer=stream.peer, version=hello.version))

    def _turned_away(self, refused: Refused, address: str) -> None:
        self.refused += 1
        now_ms = self._clock()
        key = f"{refused.who} {refused.reason}"
        if not self._audited.may_try(key, now_ms):
            return
        # Once an hour for each: a revoked agent knocks for ever, and neither log nor audit may grow with it.
        self._audited.failed(key, now_ms)
        log.warning("peer turned away", peer=refused.who, address=address, why=refused.reason)
        detail = {"peer": refused.who, "address": address, "why": refused.reason}
        self._administer(partial(tokens.audit, now_ms=now_ms, actor="ingest", action="peer turned away", detail=detail))

    def _administer(self, operation: Callable[..., Awaitable[None]]) -> None:
        self._keep(asyncio.create_task(self._pipeline.administer(operation), name="ingest record"))

    def _keep(self, task: asyncio.Task[Any]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("ingest task failed", task=task.get_name(), error=repr(error))

    async def _look_after(self) -> None:
        while True:
            self.look_after(self._clock())
            await self._renew(self._clock())
            await asyncio.sleep(1)

    async def _renew(self, now_ms: int) -> None:
        if not self._authority.server_is_due(now_ms):
            return
        try:
            await asyncio.to_thread(self._authority.renew_server, now_ms)
        except OSError as exc:
            # The new pair is shown all the same, from memory. A restart finds the old one due, and tries again.
            log.error("renewed server certificate not written", problem=str(exc))
        else:
            log.info("server certificate renewed", expires_ms=self._authority.server.expires_ms)

    def _facts(self, seat: Seat, stream: Stream) -> SessionFacts:
        hello = stream.session.hello
        assert hello is not None, "a stream takes the seat by its Hello"
        report = stream.report
        return SessionFacts(
            agent=seat.agent,
            address=stream.address,
            connected_ms=stream.connected_ms,
            hostname=hello.hostname,
            version=hello.version,
            spool_id=hello.spool_id.hex(),
            last_seq=hello.last_seq,
            durable_seq=self._pipeline.committed(seat.agent, hello.spool_id),
            in_flight_bytes=stream.session.in_flight_bytes,
            certificate_expires_ms=stream.peer.expires_ms,
            assigned_etag="" if seat.assignment is None else seat.assignment.etag,
            applied_etag=hello.assignment_etag if report is None else report.etag,
            refused=() if report is None else report.refused,
            counts=stream.session.counts.as_dict(),
        )
