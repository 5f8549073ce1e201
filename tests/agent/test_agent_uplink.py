"""The uplink against a real gRPC server with mutual TLS on loopback. Only the waiting between attempts is fake."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from tests.support.edge_rig import Rig
from tests.support.tls import Authority, Pair

from tocsin_agent.identity import Identity
from tocsin_agent.uplink import END, METHOD, REFUSED_RETRY_S_MIN, Hooks, Uplink
from tocsin_proto import records as r
from tocsin_proto.codec import encode_collector, unbundle

URI = "spiffe://tocsin/agent/7"
Behaviour = Callable[["Peer"], Awaitable[None]]
AUTHORITY = Authority()
SERVER = AUTHORITY.server("127.0.0.1")
CLIENT = AUTHORITY.client(URI)


class Peer:
    """One stream, as the collector sees it."""

    def __init__(self, context: Any, number: int, rig: Rig) -> None:
        self.context = context
        self.number = number  # of the stream, from 1
        self.collector = rig.collector
        self.names = context.auth_context().get("x509_subject_alternative_name", [])
        self._unbundled: list[bytes] = []

    async def read(self) -> Any:
        """The next message, out of its bundle if it came in one."""
        if not self._unbundled:
            raw = await self.context.read()
            if raw is END:
                return raw
            self._unbundled = unbundle(raw) or [raw]
        return self._unbundled.pop(0)

    async def serve(self, frames_max: int = 1 << 30, *, commit: bool = True) -> None:
        """As a good collector would, until so many frames have come."""
        seen = 0
        while seen < frames_max:
            raw = await self.read()
            if raw is END:
                return
            before = len(self.collector.admitted)
            for message in self.collector.receive(raw):
                await self.say(message)
            if len(self.collector.admitted) > before:
                seen += 1
                for message in self.collector.commit() if commit else []:
                    await self.say(message)

    async def say(self, message: r.CollectorMessage) -> None:
        await self.context.write(encode_collector(message))


@asynccontextmanager
async def served(
    rig: Rig, behaviour: Behaviour, *, server: Pair = SERVER, rpcs_max: int | None = None
) -> AsyncIterator[str]:
    """A listener that does as told with each stream; its address."""
    streams = 0

    async def stream(_: Any, context: Any) -> None:
        nonlocal streams
        streams += 1
        await behaviour(Peer(context, streams, rig))

    class Handler(grpc.GenericRpcHandler):
        def service(self, details: Any) -> Any:
            return grpc.stream_stream_rpc_method_handler(stream) if details.method == METHOD else None

    listener = grpc.aio.server(maximum_concurrent_rpcs=rpcs_max)
    listener.add_generic_rpc_handlers((Handler(),))
    credentials = grpc.ssl_server_credentials(
        [(server.key_pem, server.certificate_pem)], AUTHORITY.pem, require_client_auth=True
    )
    port = listener.add_secure_port("127.0.0.1:0", credentials)
    await listener.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await listener.stop(None)


class Waits:
    """Instead of sleeping: notes how long, and hands over to the loop. Ends the test after so many."""

    def __init__(self, most: int = 1000) -> None:
        self.seconds: list[float] = []
        self._most = most

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)
        if len(self.seconds) >= self._most:
            raise asyncio.CancelledError
        await asyncio.sleep(0)


def uplink_of(
    rig: Rig,
    address: str,
    waits: Waits,
    *,
    client: Pair = CLIENT,
    uniform: Callable[[float, float], float] | None = None,
    hooks: Hooks | None = None,
) -> Uplink:
    identity = Identity("edge-1", address, 0, client.key_pem, client.certificate_pem, AUTHORITY.pem)
    return Uplink(
        rig.link,
        identity,
        address=address,
        clock=rig.clock,
        uniform=uniform or random.Random(1).uniform,
        hooks=hooks or Hooks(lambda _: None, lambda _: None),
        sleep=waits,
    )


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - the condition is the code under test, it has no event
            await asyncio.sleep(0.005)


@asynccontextmanager
async def running(uplink: Uplink) -> AsyncIterator["asyncio.Task[str]"]:
    task = asyncio.create_task(uplink.run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path / "spool")


def test_frames_arrive_over_mutual_tls_and_leave_the_spool_when_acked(rig: Rig) -> None:
    names: list[bytes] = []

    async def good(peer: Peer) -> None:
        names.extend(peer.names)
        await peer.serve()

    async def scenario() -> None:
        for _ in range(100):
            rig.append(event=True, filler=1000)
        async with served(rig, good) as address:
            uplink = uplink_of(rig, address, Waits())
            async with running(uplink):
                await until(lambda: rig.spool.active.drained)
                rig.append()
                uplink.wake()
                await until(lambda: rig.spool.active.drained)
                assert uplink.state == "connected"

    asyncio.run(scenario())
    assert rig.missing() == []
    assert names == [URI.encode()]


def test_after_a_broken_stream_it_resumes_where_the_collector_is(rig: Rig) -> None:
    async def breaks_twice(peer: Peer) -> None:
        if peer.number <= 2:
            await peer.serve(frames_max=3, commit=peer.number == 1)
            peer.collector.crash()
            await peer.context.abort(grpc.StatusCode.UNAVAILABLE, "going down")
        await peer.serve()

    waits = Waits()

    async def scenario() -> None:
        for _ in range(20):
            rig.append()
        async with served(rig, breaks_twice) as address, running(uplink_of(rig, address, waits)):
            await until(lambda: rig.spool.active.drained)

    asyncio.run(scenario())
    assert rig.missing() == []
    assert len(waits.seconds) == 2
    assert rig.link.counters.poisoned == 0


def test_a_fleet_is_spread_by_full_jitter_and_the_back_off_ends_at_its_bound(rig: Rig) -> None:
    asked: list[tuple[float, float]] = []

    def uniform(least: float, most: float) -> float:
        asked.append((least, most))
        return most

    async def scenario() -> None:
        with pytest.raises(asyncio.CancelledError):
            await uplink_of(rig, "127.0.0.1:1", Waits(most=9), uniform=uniform).run()

    asyncio.run(scenario())
    assert asked == [(0, most) for most in (10.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0, 60.0)]


def test_the_back_off_starts_anew_only_after_an_ack(rig: Rig) -> None:
    asked: list[float] = []

    def uniform(_: float, most: float) -> float:
        asked.append(most)
        return 0.0

    async def acks_the_third(peer: Peer) -> None:
        await peer.serve(frames_max=1, commit=peer.number == 3)
        peer.collector.crash()
        await peer.context.abort(grpc.StatusCode.UNAVAILABLE, "going down")

    async def scenario() -> None:
        rig.append()
        rig.append()
        async with served(rig, acks_the_third) as address:
            with pytest.raises(asyncio.CancelledError):
                await uplink_of(rig, address, Waits(most=4), uniform=uniform).run()

    asyncio.run(scenario())
    assert asked == [10.0, 4.0, 10.0, 4.0]


def test_a_revoked_agent_stops_with_the_reason_and_keeps_its_frames(rig: Rig) -> None:
    async def revokes(peer: Peer) -> None:
        await peer.serve(frames_max=1, commit=False)
        await peer.say(r.Revoked("certificate 7 was revoked"))
        await peer.serve()

    async def scenario() -> str:
        rig.append()
        async with served(rig, revokes) as address, asyncio.timeout(20):
            return await uplink_of(rig, address, Waits()).run()

    assert asyncio.run(scenario()) == "certificate 7 was revoked"
    assert rig.spool.first_unacked == 1


def test_a_refused_certificate_is_not_tried_every_second(rig: Rig) -> None:
    async def refuses(peer: Peer) -> None:
        await peer.context.abort(grpc.StatusCode.PERMISSION_DENIED, "agent is not known")

    waits = Waits(most=2)

    async def scenario() -> None:
        async with served(rig, refuses) as address:
            with pytest.raises(asyncio.CancelledError):
                await uplink_of(rig, address, waits).run()

    asyncio.run(scenario())
    assert min(waits.seconds) >= REFUSED_RETRY_S_MIN


def test_nothing_is_said_to_a_server_of_another_authority(rig: Rig) -> None:
    async def good(peer: Peer) -> None:
        await peer.serve()

    waits = Waits(most=2)

    async def scenario() -> None:
        rig.append()
        async with served(rig, good, server=Authority().server("127.0.0.1")) as address:
            uplink = uplink_of(rig, address, waits)
            with pytest.raises(asyncio.CancelledError):
                await uplink.run()

    asyncio.run(scenario())
    assert rig.collector.hello is None


def test_nothing_is_said_to_a_server_of_another_address(rig: Rig) -> None:
    async def good(peer: Peer) -> None:
        await peer.serve()

    async def scenario() -> None:
        async with served(rig, good, server=AUTHORITY.server("192.0.2.1")) as address:
            with pytest.raises(asyncio.CancelledError):
                await uplink_of(rig, address, Waits(most=2)).run()

    asyncio.run(scenario())
    assert rig.collector.hello is None


def test_drain_is_obeyed_and_spread(rig: Rig) -> None:
    async def drains_once(peer: Peer) -> None:
        if peer.number == 1:
            await peer.serve(frames_max=1)
            await peer.say(r.Drain(30_000))
        await peer.serve()

    waits = Waits()

    async def scenario() -> None:
        rig.append()
        async with served(rig, drains_once) as address, running(uplink_of(rig, address, waits)):
            await until(lambda: len(waits.seconds) == 1)
            rig.append()
            await until(lambda: rig.spool.active.drained)

    asyncio.run(scenario())
    assert 30.0 <= waits.seconds[0] <= 40.0


def test_old_generations_are_delivered_without_waiting(rig: Rig) -> None:
    async def good(peer: Peer) -> None:
        await peer.serve()

    for _ in range(3):
        rig.append()
        rig.crash()
        rig.open()
    rig.append()
    waits = Waits()

    async def scenario() -> None:
        async with served(rig, good) as address, running(uplink_of(rig, address, waits)):
            await until(lambda: rig.spool.oldest is rig.spool.active and rig.spool.active.drained)

    asyncio.run(scenario())
    assert rig.missing() == []
    assert len({spool_id for spool_id, _ in rig.collector.admitted}) == 4
    assert waits.seconds == []


def test_assignments_reach_their_hook_and_reports_the_collector(rig: Rig) -> None:
    assignment = r.Assignment("e1", (r.AssignedDevice("sw-1", "192.0.2.1", "snmp", b"{}"),))
    taken: list[r.Assignment] = []
    asked: list[r.ProbeRequest] = []

    async def assigns(peer: Peer) -> None:
        raw = await peer.context.read()
        for message in peer.collector.receive(raw):
            await peer.say(message)
        await peer.say(assignment)
        await peer.say(r.ProbeRequest(1, "sw-1"))
        await peer.serve()

    def fails(request: r.ProbeRequest) -> None:
        asked.append(request)
        raise ValueError("what a hook makes of it is not the stream's business")

    async def scenario() -> None:
        async with served(rig, assigns) as address:
            uplink = uplink_of(rig, address, Waits(), hooks=Hooks(taken.append, fails))
            async with running(uplink):
                await until(lambda: bool(taken and asked))
                uplink.say(r.AssignmentReport("e1"))
                await until(lambda: bool(rig.collector.reports))

    asyncio.run(scenario())
    assert taken == [assignment]


def test_a_server_with_no_room_for_the_stream_is_tried_again(rig: Rig) -> None:
    waits = Waits(most=2)

    async def scenario() -> None:
        rig.append()
        taken = asyncio.Event()

        async def stays(peer: Peer) -> None:
            taken.set()
            await peer.context.read()

        async with served(rig, stays, rpcs_max=1) as address:
            other = grpc.ssl_channel_credentials(AUTHORITY.pem, CLIENT.key_pem, CLIENT.certificate_pem)
            async with grpc.aio.secure_channel(address, other) as channel:
                call: Any = channel.stream_stream(METHOD, None, None)(None)
                await taken.wait()
                async with asyncio.timeout(20):
                    with pytest.raises(asyncio.CancelledError):
                        await uplink_of(rig, address, waits).run()
                call.cancel()

    asyncio.run(scenario())
    assert len(waits.seconds) == 2
    assert rig.collector.hello is None


def test_garbage_from_the_collector_ends_the_stream_not_the_agent(rig: Rig) -> None:
    async def talks_garbage(peer: Peer) -> None:
        if peer.number == 1:
            await peer.context.write(b"\xff\xff\xff\xff")
        await peer.serve()

    async def scenario() -> None:
        rig.append()
        async with served(rig, talks_garbage) as address, running(uplink_of(rig, address, Waits())):
            await until(lambda: rig.spool.active.drained)

    asyncio.run(scenario())
    assert rig.missing() == []


def test_a_frame_that_breaks_the_collector_is_set_aside_and_the_rest_arrives(rig: Rig) -> None:
    async def chokes_on_three(peer: Peer) -> None:
        while True:
            raw = await peer.read()
            if raw is END:
                return
            before = len(peer.collector.admitted)
            answers = peer.collector.receive(raw)
            if len(peer.collector.admitted) > before:
                if peer.collector.admitted[-1][1].seq == 3:
                    peer.collector.admitted.pop()
                    await peer.context.abort(grpc.StatusCode.INTERNAL, "the collector failed on this message")
                answers = peer.collector.commit()
            for message in answers:
                await peer.say(message)

    waits = Waits()

    async def scenario() -> None:
        for _ in range(6):
            rig.append()
        async with served(rig, chokes_on_three) as address, running(uplink_of(rig, address, waits)):
            await until(lambda: rig.spool.active.drained)

    asyncio.run(scenario())
    assert rig.link.counters.poisoned == 1
    assert [frame.seq for frame in rig.collector.frames()] == [1, 2, 4, 5, 6]
    assert rig.missing() == []
