"""The agent's one connection: gRPC and mutual TLS around the `Link`, opened again for as long as the agent runs.

Not the protocol (`link`). Invariant: whatever happens on the network, frames stay in the spool until the collector has
acknowledged them; the back-off starts anew only after an acknowledgement.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import grpc
import grpc.aio
import structlog

from tocsin_agent.identity import Identity
from tocsin_agent.link import ANSWER_WITHIN_MS, Link
from tocsin_agent.wishes import Deliver, Reconnect, Send, Stop, Wish
from tocsin_proto.codec import WireError, decode_collector
from tocsin_proto.records import Assignment, AssignmentReport, Clock, ProbeAnswer, ProbeRequest

METHOD: Final = "/tocsin.v1.Ingest/Stream"
FIRST_RETRY_S_MAX: Final = 10.0
RETRY_S_MAX: Final = 60.0
QUIET_WITHIN_S: Final = 60.0  # how long a new certificate waits for a moment with nothing in flight
REFUSED_RETRY_S_MIN: Final = 30.0  # a certificate does not become good within seconds
CHANNEL_OPTIONS: Final[Sequence[tuple[str, int]]] = (
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),  # a new channel dials at once; the back-off is ours
)
# Ends that a frame of ours may have caused: the collector refused, choked on or crashed over a message.
SUSPICIOUS: Final = frozenset(
    {
        grpc.StatusCode.DATA_LOSS,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.UNKNOWN,
    }
)
# What gRPC itself says, as INTERNAL, when a write met the end of the stream before its status came.
CORE_ERROR: Final = "Internal error from Core"
REFUSED: Final = frozenset({grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED})
END: Final[object] = grpc.aio.EOF  # type: ignore[attr-defined]  # missing in the stubs

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Hooks:
    """Where the rest of the agent listens. They run in the loop and must be quick."""

    assignment: Callable[[Assignment], None]
    probe_request: Callable[[ProbeRequest], None]


@dataclass(frozen=True, slots=True)
class _Ended:
    """How a stream ended. `wish` None: it was not our wish."""

    wish: Reconnect | Stop | None = None
    code: grpc.StatusCode | None = None
    detail: str = ""


class Uplink:
    """Start `run` as a task. `wake` after each append; `say` for what is out of sequence."""

    def __init__(
        self,
        link: Link,
        identity: Identity,
        *,
        address: str,
        clock: Callable[[], Clock],
        uniform: Callable[[float, float], float],
        hooks: Hooks,
        first_retry_s_max: float = FIRST_RETRY_S_MAX,
        retry_s_max: float = RETRY_S_MAX,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.link = link
        self.identity = identity
        self.address = address
        self.state = "not started"  # for people: "connected", "waiting: ...", "revoked: ..."
        self._clock = clock
        self._uniform = uniform
        self._hooks = hooks
        self._first_retry_s_max = first_retry_s_max
        self._retry_s_max = retry_s_max
        self._sleep = sleep
        self._awake = asyncio.Event()
        self._failures = 0
        self._acks_before = 0
        self._shown = identity  # to the collector, on the channel that is open
        self._due_s = 0.0

    def wake(self) -> None:
        """There may be something to send."""
        self._awake.set()

    def say(self, message: AssignmentReport | ProbeAnswer) -> None:
        self.link.say(message)
        self.wake()

    def present(self, identity: Identity) -> None:
        """A renewed identity, from the next quiet moment on: on a new channel, and what was in flight goes again by number."""
        self.identity = identity
        self._due_s = asyncio.get_running_loop().time() + QUIET_WITHIN_S
        self.wake()

    async def run(self) -> str:
        """Until cancelled, or until the collector has revoked this agent: then the reason."""
        while True:
            self.state = "connecting"
            ended = await self._connection()
            if isinstance(ended.wish, Stop):
                self.state = f"revoked: {ended.wish.reason}"
                log.error("agent is revoked by the collector, it sends nothing any more", reason=ended.wish.reason)
                return ended.wish.reason
            if _goes_on(ended):
                log.info("new channel for a new certificate", address=self.address)
                continue
            delay_s = self._delay_s(ended)
            self.state = f"waiting: {_why(ended)}"
            log.warning("stream ended", address=self.address, why=_why(ended), retry_s=round(delay_s, 1))
            await self._sleep(delay_s)

    async def _connection(self) -> _Ended:
        """One channel, and on it one stream after the other while the link only wants a new one."""
        identity = self._shown = self.identity
        credentials = grpc.ssl_channel_credentials(identity.ca_pem, identity.key_pem, identity.certificate_pem)
        async with grpc.aio.secure_channel(self.address, credentials, options=CHANNEL_OPTIONS) as channel:
            while True:
                ended = await self._stream(channel)
                if not _goes_on(ended) or self.identity is not identity:
                    return ended

    async def _stream(self, channel: grpc.aio.Channel) -> _Ended:
        # Bytes in, bytes out: a frame of the spool is never parsed on its way.
        call: Any = channel.stream_stream(METHOD, None, None)(None)
        self._acks_before = self.link.counters.acks
        tasks = [
            asyncio.create_task(self._read(call), name="uplink reader"),
            asyncio.create_task(self._write(call), name="uplink writer"),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            ended = [task.result() for task in tasks if task in done]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            call.cancel()
            if self.link.counters.acks > self._acks_before:
                self._failures = 0
        ended.sort(key=lambda one: one.wish is None)  # what we wanted explains better than what it led to
        self.link.disconnected(suspicious=ended[0].wish is None and ended[0].code in SUSPICIOUS)
        return ended[0]

    async def _read(self, call: Any) -> _Ended:
        while True:
            try:
                raw = await call.read()
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                return await _status(call)
            if raw is END:
                return await _status(call)
            try:
                message = decode_collector(raw)
            except WireError as exc:
                log.error("collector sends what is no message", problem=str(exc))
                return _Ended(Reconnect("message not understood", failed=True))
            for wish in self.link.received(message, self._clock()):
                if isinstance(wish, Reconnect | Stop):
                    return _Ended(wish)
                self._deliver(wish)
            self.wake()

    async def _write(self, call: Any) -> _Ended:
        try:
            for wish in self.link.connected(self._clock()):
                await self._put(call, wish)
            while True:
                self._awake.clear()
                while wishes := self.link.wake(self._clock()):
                    for wish in wishes:
                        if isinstance(wish, Reconnect | Stop):
                            return _Ended(wish)
                        await self._put(call, wish)
                self.state = "connected" if self.link.is_open else "waiting for welcome"
                if self._is_change_due():
                    return _Ended(Reconnect("new certificate"))
                await self._next(self.link.wake_in_ms(self._clock()) / 1000)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            # A call that was refused outright raises InvalidStateError here: its status says why.
            return await _status(call)
        except TimeoutError:
            return _Ended(Reconnect("the collector reads nothing", failed=True))

    def _is_change_due(self) -> bool:
        if self.identity is self._shown:
            return False
        return not self.link.flight_bytes or asyncio.get_running_loop().time() >= self._due_s

    async def _put(self, call: Any, wish: Wish) -> None:
        if isinstance(wish, Send):
            async with asyncio.timeout(ANSWER_WITHIN_MS / 1000):
                await call.write(wish.raw)

    async def _next(self, within_s: float) -> None:
        try:
            async with asyncio.timeout(within_s):
                await self._awake.wait()
        except TimeoutError:
            pass

    def _deliver(self, wish: Wish) -> None:
        if not isinstance(wish, Deliver):
            return
        try:
            if isinstance(wish.message, Assignment):
                self._hooks.assignment(wish.message)
            else:
                self._hooks.probe_request(wish.message)
        except Exception:  # what another part makes of a message must not end the stream
            log.exception("message from the collector could not be used", kind=type(wish.message).__name__)

    def _delay_s(self, ended: _Ended) -> float:
        """Full jitter: a fleet that lost its collector at one moment must not return at one moment."""
        if isinstance(ended.wish, Reconnect) and ended.wish.after_ms:
            return ended.wish.after_ms / 1000 + self._uniform(0, self._first_retry_s_max)
        self._failures += 1
        grown = min(self._retry_s_max, 2.0 ** min(self._failures, 16))
        most = self._first_retry_s_max if self._failures == 1 else grown
        least = min(REFUSED_RETRY_S_MIN, self._retry_s_max) if ended.code in REFUSED else 0.0
        return least + self._uniform(0, most)


def _goes_on(ended: _Ended) -> bool:
    """Whether all is well and the link only wants another stream."""
    return isinstance(ended.wish, Reconnect) and not ended.wish.failed and not ended.wish.after_ms


async def _status(call: Any) -> _Ended:
    code, detail = await call.code(), await call.details() or ""
    if detail.startswith(CORE_ERROR):
        return _Ended(detail="broken while writing")
    return _Ended(code=code, detail=detail)


def _why(ended: _Ended) -> str:
    if ended.wish is not None:
        return ended.wish.reason
    name = ended.code.name.lower().replace("_", " ") if ended.code is not None else "ended"
    return f"{name}: {ended.detail}" if ended.detail else name
