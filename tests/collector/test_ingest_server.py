"""The Ingest listener over real TLS: who is let in, what is acknowledged, how a stream ends."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio
from tests.support.ingest_rig import (
    PATIENCE_S,
    RENEW,
    STREAM,
    Client,
    Credentials,
    Rig,
    csr_of,
    forged,
    frame,
    hello,
    new_key,
    now_ms,
    pem_of,
    refusal_of,
    rig,
)

from tocsin_collector.ingest.seats import FENCES_MAX
from tocsin_collector.ingest.server import IngestConfig
from tocsin_collector.ingest.session import Limits
from tocsin_proto import records
from tocsin_proto.codec import encode_agent
from tocsin_proto.v1 import tocsin_pb2 as pb

Code = grpc.StatusCode


def play(folder: Path, scene: Callable[[Rig], Awaitable[None]], config: IngestConfig | None = None) -> None:
    async def scenes() -> None:
        async with rig(folder, config=config) as one:
            await scene(one)

    asyncio.run(scenes())


# ------------------------------------------------------------------------------------------------- the path of a frame


def test_frames_are_acknowledged_when_they_are_in_the_database(tmp_path: Path) -> None:
    async def scene(one: Rig) -> None:
        client = one.client(await one.add_agent("edge-1"))
        await client.send(hello())
        welcome = await client.until(records.Welcome)
        assert (welcome.resume_from, welcome.agent, welcome.credit_bytes) == (1, "edge-1", records.CREDIT_BYTES)
        await client.send(*(frame(seq) for seq in range(1, 51)))
        await client.until(records.Ack(50))
        ((count,),) = await one.rows("SELECT count(*) FROM journal WHERE kind = 'frame' AND agent = 'edge-1'")
        ((mark,),) = await one.rows("SELECT high_water FROM spool WHERE agent = 'edge-1'")
        ((pulses,),) = await one.rows("SELECT count(*) FROM journal WHERE kind = 'pulse'")
        assert (count, mark, pulses) == (50, 50, 1)
        (facts,) = one.ingest.sessions()
        assert (facts.agent, facts.durable_seq, facts.in_flight_bytes, facts.counts["frames"]) == ("edge-1", 50, 0, 50)

    play(tmp_path, scene)


def test_an_agent_that_comes_again_goes_on_where_it_was_and_its_repeats_are_acknowledged_again(tmp_path: Path) -> None:
    async def scene(one: Rig) -> None:
        credentials = await one.add_agent("edge-1")
        first = one.client(credentials)
        await first.send(hello(), *(frame(seq) for seq in range(1, 6)))
        await first.until(records.Ack(5))
        first.call.cancel()
        again = one.client(credentials)
        await again.send(hello(last_seq=6))
        assert (await again.until(records.Welcome)).resume_from == 6
        await again.send(frame(4), frame(5))
        await again.until(records.Ack(5))
        await again.send(frame(6))
        await again.until(records.Ack(6))
        rows = await one.rows("SELECT count(*) FROM journal WHERE kind = 'frame'")
        assert rows == [(6,)]

    play(tmp_path, scene)


def test_a_hole_is_asked_for_once(tmp_path: Path) -> None:
    async def scene(one: Rig) -> None:
        client = one.client(await one.add_agent("edge-1"))
        await client.send(hello(), frame(1), frame(4), frame(5), frame(6))
        await client.until(records.Nack(2))
        await client.send(*(frame(seq) for seq in range(2, 7)))
        said: list[Any] = []
        while records.Ack(6) not in said:
            said.append(await client.next())
        assert [message for message in said if isinstance(message, records.Nack)] == []

    play(tmp_path, scene)


def test_an_unreadable_frame_is_kept_as_a_dead_letter_and_the_stream_goes_on(tmp_path: Path) -> None:
    async def scene(one: Rig) -> None:
        client = one.client(await one.add_agent("edge-1"))
        broken = pb.AgentMessage(frame=pb.Frame(seq=2, follows=1, sections=[pb.Section(layout=1, values=b"123")]))
        poison = broken.SerializeToString()
        await client.send(hello(), frame(1), poison, frame(3))
        reject = await client.until(records.Reject)
        assert (reject.seq, reject.code) == (2, "malformed")
        await client.until(records.Ack(3))
        letters = await one.rows("SELECT agent, seq, code, body FROM dead_letter")
        assert letters == [("edge-1", 2, "malformed", poison)]

    play(tmp_path, scene)


FOREIGN = {
    "random bytes": (b"\xff\xfe\xfd" * 50, Code.INVALID_ARGUMENT),
    "an empty message": (b"", Code.INVALID_ARGUMENT),
    "a text": (b"GET / HTTP/1.1\r\n\r\n", Code.INVALID_ARGUMENT),
    "a pulse first": (encode_agent(records.Pulse(records.Clock(0, 0, 0))), Code.FAILED_PRECONDITION),
    "a frame first": (encode_agent(frame(1)), Code.FAILED_PRECONDITION),
    "a newer protocol": (encode_agent(hello(protocol_min=9, protocol_max=9)), Code.FAILED_PRECONDITION),
    "a megabyte": (bytes(1 << 20), Code.RESOURCE_EXHAUSTED),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_what_does_not_belong_ends_its_stream_with_a_code_and_the_server_lives_on(tmp_path: Path, what: str) -> None:
    raw, code = FOREIGN[what]

    async def scene(one: Rig) -> None:
        credentials = await one.add_agent("edge-1")
        stranger = one.client(credentials)
        await stranger.send(raw)
        assert (await stranger.end())[0] is code
        client = one.client(credentials)
        await client.send(hello(), frame(1))
        await client.until(records.Ack(1))

    play(tmp_path, scene)


def test_a_frame_that_is_too_large_is_rejected_by_its_number(tmp_path: Path) -> None:
    async def scene(one: Rig) -> None:
        client = one.client(await one.add_agent("edge-1"))
        large = pb.AgentMessage(frame=pb.Frame(seq=1, events=[pb.Event(text="x" * records.FRAME_BYTES_MAX)]))
        await client.send(hello(), large.SerializeToString(), frame(2))
        assert (await client.until(records.Reject)).seq == 1
        await client.until(records.Ack(2))

    play(tmp_path, scene)


def test_an_agent_beyond_its_credit_is_not_read_until_some_is_committed_and_nothing_is_lost(tmp_path: Path) -> None:
    async def scene(one: Rig) -> None:
        client = one.client(await one.add_agent("edge-1"))
        await client.send(hello(), *(frame(seq) for seq in range(1, 121)))
        await client.until(records.Ack(120))
        (facts,) = one.ingest.sessions()
        assert facts.in_flight_bytes == 0

    play(tmp_path, scene, IngestConfig(listen="localhost:0", limits=Limits(credit_bytes=1_000)))


# ----------------------------------------------------------------------------------------------- one stream an agent


def test_a_newer_stream_fences_the_older_whose_late_frames_are_not_admitted(tmp_path: Path) -> None:
    async def scene(one: Rig) -> None:
        credentials = await one.add_agent("edge-1")
        older, newer = one.client(credentials), one.client(credentials)
        await older.send(hello(), frame(1))
        await older.until(records.Ack(1))
        await newer.send(hello(last_seq=1))
        await newer.until(records.Welcome)
        assert await older.end() == (Code.ABORTED, "a newer stream of this agent took over")
        await newer.send(frame(2))
        await newer.until(records.Ack(2))
        assert len(one.ingest.sessions()) == 1

    play(tmp_path, scene)


def test_two_machines_with_one_certificate_are_told_and_the_older_stream_stays(tmp_path: Path) -> None:
    async def scene(one: Rig) -> None:
        credentials = await one.add_agent("edge-1")
        for _ in range(FENCES_MAX + 1):
            last = one.client(credentials)
            await last.send(hello())
            await last.until(records.Welcome)
        clone = one.client(credentials)
        await clone.send(hello())
        code, reason = await clone.end()
        assert code is Code.ALREADY_EXISTS
        assert "two machines" in reason
        await last.send(frame(1))
        await last.until(records.Ack(1))
        one.ahead_ms += 61_000
        fresh = one.client(credentials)
        await fresh.send(hello(last_seq=1))
        await fresh.until(records.Welcome)

    play(tmp_path, scene)


def test_a_peer_that_reads_nothing_is_cut_off_when_a_newer_stream_comes(tmp_path: Path) -> None:
    large = tuple(records.AssignedDevice(f"d{n}", "", "snmp", bytes(60_000)) for n in range(40))

    def readers() -> int:
        return sum(task.get_name() == "reader edge-1" for task in asyncio.all_tasks())

    async def scene(one: Rig) -> None:
        credentials = await one.add_agent("edge-1")
        deaf, newer = one.client(credentials), one.client(credentials)
        await deaf.send(hello())
        await deaf.until(records.Welcome)
        one.ingest.assign("edge-1", records.Assignment("large", large))
        await newer.send(hello(), frame(1))
        await newer.until(records.Ack(1))
        async with asyncio.timeout(PATIENCE_S):
            while readers() > 1:  # noqa: ASYNC110 - nobody is told of the end of a stream that hears nothing
                await asyncio.sleep(0.01)
        await newer.send(frame(2))
        await newer.until(records.Ack(2))

    play(tmp_path, scene)


# -------------------------------------------------------------------------------------------------- what it watches


def test_an_assignment_is_sent_when_the_agent_has_another_and_its_report_is_shown(tmp_path: Path) -> None:
    device = records.AssignedDevice("sw-1", "192.0.2.1", "snmp", b"{}")

    async def scene(one: Rig) -> None:
        credentials = await one.add_agent("edge-1")
        one.ingest.assign("edge-1", records.Assignment("v1", (device,)))
        client = one.client(credentials)
        await client.send(hello(assignment_etag="v0"))
        assert (await client.until(records.Welcome)).assignment_etag == "v1"
        assert (await client.until(records.Assignment)).devices == (device,)
        one.ingest.assign("edge-1", records.Assignment("v2"))
        await client.until(records.Assignment("v2"))
        await client.send(records.AssignmentReport("v2", ("sw-1: not accepted here",)), frame(1))
        await client.until(records.Ack(1))
        (facts,) = one.ingest.sessions()
        assert (facts.assigned_etag, facts.applied_etag, facts.refused) == ("v2", "v2", ("sw-1: not accepted here",))
        again = one.client(credentials)
        await again.send(hello(assignment_etag="v2", last_seq=1), frame(2))
        said: list[Any] = []
        while records.Ack(2) not in said:
            said.append(await again.next())
        assert not any(isinstance(message, records.Assignment) for message in said)

    play(tmp_path, scene)


# ------------------------------------------------------------------------------------------------- how it all ends


def test_a_collector_that_stops_acknowledges_what_it_has_and_says_when_to_come_again(tmp_path: Path) -> None:
    async def scene(one: Rig) -> None:
        client = one.client(await one.add_agent("edge-1"))
        await client.send(hello(), *(frame(seq) for seq in range(1, 21)))
        await client.until(records.Ack)
        began = asyncio.get_running_loop().time()
        stopping = asyncio.create_task(one.ingest.stop())
        assert 0 < (await client.until(records.Drain)).reconnect_after_ms <= 60_000
        code, _ = await client.end()
        await stopping
        assert code is Code.UNAVAILABLE
        assert asyncio.get_running_loop().time() - began < 2

    play(tmp_path, scene)


def test_a_revoked_agent_is_told_ended_at_once_and_not_let_in_again(tmp_path: Path) -> None:
    async def scene(one: Rig) -> None:
        credentials = await one.add_agent("edge-1")
        client = one.client(credentials)
        await client.send(hello())
        await client.until(records.Welcome)
        assert await one.ingest.revoke("edge-1", actor="zm")
        await client.until(records.Revoked)
        assert (await client.end())[0] is Code.PERMISSION_DENIED
        assert (await refusal_of(one.channel(credentials)))[0] is Code.PERMISSION_DENIED
        assert not await one.ingest.revoke("nobody", actor="zm")
        actions = await one.audit()
        assert [line for line in actions if line.startswith("agent revoked")]
        assert [line for line in actions if line.startswith("peer turned away")]

    play(tmp_path, scene)


def test_a_stream_ends_when_its_certificate_expires(tmp_path: Path) -> None:
    async def scene(one: Rig) -> None:
        client = one.client(await one.add_agent("edge-1"))
        await client.send(hello())
        await client.until(records.Welcome)
        one.ingest.look_after(now_ms() + 31 * 86_400_000)
        code, reason = await client.end()
        assert (code, "expired" in reason) == (Code.UNAUTHENTICATED, True)

    play(tmp_path, scene)


# ------------------------------------------------------------------------------------------------------ certificates

Maker = Callable[[Rig, str], Credentials]


def _other_ca(one: Rig, uri: str) -> Credentials:
    return forged(one.authority, one.folder / "ca", uri, signed_by=new_key())


def _server_as_client(one: Rig, uri: str) -> Credentials:
    server = one.authority.server
    return Credentials(server.key_pem, server.certificate_pem, one.authority.ca_pem)


def _ca_as_leaf(one: Rig, uri: str) -> Credentials:
    return Credentials((one.folder / "ca" / "ca.key").read_bytes(), one.authority.ca_pem, one.authority.ca_pem)


def _signed(**changes: Any) -> Maker:
    return lambda one, uri: forged(one.authority, one.folder / "ca", **({"uri": uri} | changes))


# What the CA never signed, or signed for something else, fails in TLS; what it could have signed by mistake, at the door.
MATRIX: dict[str, tuple[Maker, Code]] = {
    "none": (lambda one, uri: Credentials(None, None, one.authority.ca_pem), Code.UNAVAILABLE),
    "of another CA with our CA's name": (_other_ca, Code.UNAVAILABLE),
    "expired": (_signed(starts_days=-9, ends_days=-1), Code.UNAVAILABLE),
    "not valid yet": (_signed(starts_days=1), Code.UNAVAILABLE),
    "for servers": (_server_as_client, Code.UNAVAILABLE),
    "the CA itself": (_ca_as_leaf, Code.UNAVAILABLE),
    "of an agent that nobody enrolled": (_signed(uri="spiffe://tocsin/agent/unknown"), Code.UNAUTHENTICATED),
    "of another trust domain": (_signed(uri="spiffe://elsewhere/agent/x"), Code.UNAUTHENTICATED),
    "with no URI": (_signed(uri=""), Code.UNAUTHENTICATED),
    "with a second URI": (_signed(extra_uri="spiffe://tocsin/agent/other"), Code.UNAUTHENTICATED),
    "with the right of a CA": (_signed(is_ca=True), Code.UNAUTHENTICATED),
    "older than the one in use": (_signed(ends_days=1), Code.PERMISSION_DENIED),
}


async def _unary_answer(channel: aio.Channel, path: str) -> tuple[grpc.StatusCode, str]:
    call = channel.unary_unary(path, None, None)(b"", timeout=10)
    return await call.code(), await call.details()


async def _stream_answer(channel: aio.Channel, path: str) -> tuple[grpc.StatusCode, str]:
    assert path == STREAM
    return await refusal_of(channel)


ANSWERS = {
    grpc.unary_unary_rpc_method_handler: _unary_answer,
    grpc.stream_stream_rpc_method_handler: _stream_answer,
}


@pytest.mark.parametrize("certificate", MATRIX)
def test_only_an_enrolled_agents_newest_certificate_is_let_in_by_any_method(tmp_path: Path, certificate: str) -> None:
    make, code = MATRIX[certificate]

    async def scene(one: Rig) -> None:
        good = await one.add_agent("edge-1")
        uri = one.authority.agent_uri(one.ingest.agents()[0].uuid)
        bad = make(one, uri)
        methods = one.ingest.methods()
        assert set(methods) == {STREAM, RENEW}
        for path, method in methods.items():
            assert (await ANSWERS[method.kind](one.channel(bad), path))[0] is code, path
        assert await one.rows("SELECT count(*) FROM journal WHERE kind <> 'tick'") == [(0,)]
        client = one.client(good)
        await client.send(hello(), frame(1))
        await client.until(records.Ack(1))

    play(tmp_path, scene)


def test_a_renewed_certificate_ends_the_older_one_when_it_is_used(tmp_path: Path) -> None:
    async def scene(one: Rig) -> None:
        old = await one.add_agent("edge-1", issued_ms=now_ms() - 3_600_000)
        key = new_key()
        renew = one.channel(old).unary_unary(RENEW, None, pb.RenewResponse.FromString)
        with pytest.raises(aio.AioRpcError, match="not a PKCS#10"):
            await renew(pb.RenewRequest(csr_der=b"nonsense").SerializeToString())
        answer = await renew(pb.RenewRequest(csr_der=csr_of(key, "somebody else")).SerializeToString())
        new = Credentials(pem_of(key), answer.certificate_pem, answer.ca_pem)
        still = one.client(old)
        await still.send(hello())
        await still.until(records.Welcome)
        client = one.client(new)
        await client.send(hello(), frame(1))
        assert (await client.until(records.Welcome)).agent == "edge-1"
        await client.until(records.Ack(1))
        assert (await refusal_of(one.channel(old)))[0] is Code.PERMISSION_DENIED
        assert [line for line in await one.audit() if line.startswith("certificate renewed")]

    play(tmp_path, scene)


def test_a_renewal_for_the_same_key_is_refused(tmp_path: Path) -> None:
    async def scene(one: Rig) -> None:
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        old = await one.add_agent("edge-1")
        assert old.key_pem is not None
        request = pb.RenewRequest(csr_der=csr_of(load_pem_private_key(old.key_pem, None))).SerializeToString()
        with pytest.raises(aio.AioRpcError, match="new key"):
            await one.channel(old).unary_unary(RENEW, None, None)(request)

    play(tmp_path, scene)


def test_a_method_that_is_not_in_the_table_is_not_served(tmp_path: Path) -> None:
    async def scene(one: Rig) -> None:
        channel = one.channel(await one.add_agent("edge-1"))
        with pytest.raises(aio.AioRpcError) as refused:
            await channel.unary_unary("/tocsin.v1.Enrolment/Enrol", None, None)(b"", timeout=10)
        assert refused.value.code() is Code.UNIMPLEMENTED

    play(tmp_path, scene)


def test_a_renewed_server_certificate_is_shown_without_a_restart(tmp_path: Path) -> None:
    async def scene(one: Rig) -> None:
        credentials = await one.add_agent("edge-1")
        before = one.authority.server
        one.authority.renew_server(now_ms(), ["127.0.0.1"])
        assert one.authority.server != before
        # Only the new certificate has this name.
        secure = grpc.ssl_channel_credentials(credentials.ca_pem, credentials.key_pem, credentials.certificate_pem)
        channel = aio.secure_channel(f"127.0.0.1:{one.port}", secure)
        one.channels.append(channel)
        client = Client(channel)
        await client.send(hello())
        await client.until(records.Welcome)

    play(tmp_path, scene)
