"""Enrolment over real TLS, with the agent's own client: token, certificate, first frame acknowledged."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc
import pytest
from grpc import aio
from tests.support.ingest_rig import ENROL, Credentials, Rig, csr_of, frame, hello, new_key, now_ms, refusal_of, rig

from tocsin_agent.identity import EnrolError, Identity, enrol, load
from tocsin_collector.ingest import tokens
from tocsin_collector.ingest.attempts import Attempts, address_of
from tocsin_proto import records
from tocsin_proto.v1 import tocsin_pb2 as pb

Code = grpc.StatusCode


def play(folder: Path, scene: Callable[[Rig], Awaitable[None]]) -> None:
    async def scenes() -> None:
        async with rig(folder) as one:
            await scene(one)

    asyncio.run(scenes())


def credentials_of(identity: Identity) -> Credentials:
    return Credentials(identity.key_pem, identity.certificate_pem, identity.ca_pem)


async def answer(one: Rig, request: bytes) -> tuple[grpc.StatusCode, str]:
    call = one.channel(Credentials(None, None, one.authority.ca_pem), one.enrol_port).unary_unary(ENROL, None, None)(
        request
    )
    return await call.code(), await call.details()


def request(token: str = "", hostname: str = "edge-1", machine: str = "m1", csr_der: bytes = b"") -> bytes:
    csr = csr_der or csr_of(new_key())
    return pb.EnrolRequest(token=token, csr_der=csr, hostname=hostname, machine=machine).SerializeToString()


def test_a_machine_enrols_by_the_agents_own_client_and_its_first_frame_is_acknowledged(tmp_path: Path) -> None:
    async def scene(one: Rig) -> None:
        text = await one.token(site="shanghai")
        home = tmp_path / "agent"
        identity = await asyncio.to_thread(enrol, text, home, "Edge-1", machine="m1")
        assert (identity.agent, identity.collector) == ("edge-1", "collector.example:7443")
        assert load(home) == identity
        assert one.enrolled == [("edge-1", "shanghai", "Edge-1")]
        client = one.client(credentials_of(identity))
        await client.send(hello(version="0.1.0"), frame(1))
        assert (await client.until(records.Welcome)).agent == "edge-1"
        await client.until(records.Ack(1))
        with pytest.raises(EnrolError, match="ask for a new one"):
            await asyncio.to_thread(enrol, text, tmp_path / "thief", "thief", machine="m2")
        assert [row.name for row in one.ingest.agents()] == ["edge-1"]
        assert await one.rows("SELECT version FROM agent") == [("0.1.0",)]

    play(tmp_path, scene)


def test_a_machine_that_enrols_again_takes_over_and_its_old_certificate_is_out(tmp_path: Path) -> None:
    async def scene(one: Rig) -> None:
        first = await asyncio.to_thread(enrol, await one.token(), tmp_path / "a", "edge-1", machine="m1")
        old = one.client(credentials_of(first))
        await old.send(hello())
        await old.until(records.Welcome)
        second = await asyncio.to_thread(enrol, await one.token(b"2" * 32), tmp_path / "b", "edge-1", machine="m1")
        assert second.agent == "edge-1"
        assert (await old.end())[0] is Code.UNAUTHENTICATED
        assert (await refusal_of(one.channel(credentials_of(first))))[0] is Code.UNAUTHENTICATED
        client = one.client(credentials_of(second))
        await client.send(hello(b"n" * 16), frame(1))
        await client.until(records.Ack(1))

    play(tmp_path, scene)


def test_of_fifty_at_once_exactly_one_gets_a_one_use_token(tmp_path: Path) -> None:
    async def scene(one: Rig) -> None:
        text = await one.token()
        # More than 40 wrong ones from one address would be stopped at the tenth: this is about the token.
        one.enrolment.attempts = Attempts(most=100)
        requests = [request(text, hostname=f"edge-{n}", machine=f"m{n}") for n in range(50)]
        codes = [code for code, _ in await asyncio.gather(*(answer(one, raw) for raw in requests))]
        assert codes.count(Code.OK) == 1
        assert codes.count(Code.PERMISSION_DENIED) == 49
        assert len(one.ingest.agents()) == len(one.enrolled) == 1
        assert await one.rows("SELECT count(*) FROM audit WHERE action = 'enrolled'") == [(1,)]

    play(tmp_path, scene)


def test_ten_wrong_tokens_a_minute_from_one_address_are_enough(tmp_path: Path) -> None:
    async def scene(one: Rig) -> None:
        good = await one.token()
        wrong = tokens.text("h:1", "p", b"c", b"w" * 32)
        assert {await answer(one, request(wrong)) for _ in range(10)} == {await_refused()}
        code, reason = await answer(one, request(good))
        assert (code, "wait a minute" in reason) == (Code.RESOURCE_EXHAUSTED, True)
        assert await one.rows("SELECT count(*) FROM audit WHERE action = 'enrolment refused'") == [(10,)]
        one.ahead_ms += 60_001
        assert (await answer(one, request(good)))[0] is Code.OK

    def await_refused() -> tuple[grpc.StatusCode, str]:
        return (
            Code.PERMISSION_DENIED,
            "the token cannot be used: it is wrong, expired, used up or revoked; make a new one with `tocsin token create`",
        )

    play(tmp_path, scene)


BAD: dict[str, tuple[bytes, Code, str]] = {
    "noise": (b"\xff" * 20, Code.INVALID_ARGUMENT, "not an EnrolRequest"),
    "no certificate request": (request(csr_der=b"no"), Code.INVALID_ARGUMENT, "PKCS#10"),
    "a host name of a thousand letters": (request(hostname="h" * 1000), Code.INVALID_ARGUMENT, "hostname"),
    "a token that is no text of ours": (request("open sesame"), Code.PERMISSION_DENIED, "cannot be used"),
    "a token of a megabyte": (request("tocsin1." + "A" * 60_000), Code.PERMISSION_DENIED, "cannot be used"),
    "a message of a megabyte": (request("A" * 1_000_000), Code.RESOURCE_EXHAUSTED, "larger than max"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_request_is_refused_with_a_code_and_the_next_good_one_is_served(tmp_path: Path, what: str) -> None:
    raw, code, reason = BAD[what]

    async def scene(one: Rig) -> None:
        said, detail = await answer(one, raw)
        assert said is code
        assert reason in detail
        assert (await answer(one, request(await one.token())))[0] is Code.OK

    play(tmp_path, scene)


def test_the_enrolment_listener_serves_nothing_but_enrol(tmp_path: Path) -> None:
    async def scene(one: Rig) -> None:
        channel = one.channel(await one.add_agent("edge-1"), one.enrol_port)
        for path in ("/tocsin.v1.Enrolment/Renew", "/tocsin.v1.Ingest/Stream"):
            with pytest.raises(aio.AioRpcError) as refused:
                await channel.unary_unary(path, None, None)(b"", timeout=10)
            assert refused.value.code() is Code.UNIMPLEMENTED

    play(tmp_path, scene)


def test_an_agent_does_not_give_its_token_to_a_collector_that_the_token_does_not_pin(tmp_path: Path) -> None:
    async def scene(one: Rig) -> None:
        from tocsin_collector.ingest.authority import Authority

        other = Authority.create(tmp_path / "other", ["localhost"], now_ms())
        text = tokens.text(f"localhost:{one.enrol_port}", other.pin, other.ca_pem, b"k" * 32)
        await one.token(b"k" * 32)
        with pytest.raises(EnrolError):
            await asyncio.to_thread(enrol, text, tmp_path / "agent", "edge-1")
        assert await one.rows("SELECT uses_left FROM enrolment_token") == [(1,)]

    play(tmp_path, scene)


# ---------------------------------------------------------------------------------------------------------- attempts


def test_failures_count_for_a_minute_and_the_oldest_address_is_forgotten_first() -> None:
    attempts = Attempts(most=2, peers_max=2)
    attempts.failed("a", 0)
    assert attempts.may_try("a", 0)
    attempts.failed("a", 10)
    assert not attempts.may_try("a", 59_999)
    assert attempts.may_try("a", 60_000)
    attempts.failed("b", 60_000)
    attempts.failed("b", 60_000)
    attempts.failed("c", 60_000)
    assert not attempts.may_try("b", 60_001)
    attempts.failed("d", 60_001)
    assert attempts.may_try("b", 60_001)


PEERS = {
    "ipv4:192.0.2.7:4711": "192.0.2.7",
    "ipv6:%5B2001:db8:1:2:3::9%5D:4711": "2001:db8:1:2::/64",
    "ipv6:[2001:db8:1:2:ffff::1]:1": "2001:db8:1:2::/64",
    "ipv6:%5B::ffff:192.0.2.7%5D:4711": "192.0.2.7",
    "ipv6:%5Bfe80::1%25eth0%5D:4711": "fe80::/64",
    "unix:": "unix:",
}


@pytest.mark.parametrize("peer", PEERS)
def test_a_peer_is_an_address_or_a_network_of_one_customer(peer: str) -> None:
    assert address_of(peer) == PEERS[peer]
