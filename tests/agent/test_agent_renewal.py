"""A certificate that comes of age: renewed against the real listener, stored whole, used from the next quiet moment on."""

import asyncio
import stat
from collections.abc import Awaitable, Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from tests.collector.test_ingest_uplink import agent_of, fill, kept, opened, until
from tests.support.ingest_rig import Credentials, Rig, now_ms, refusal_of, rig
from tests.support.tls import Authority, Pair

from tocsin_agent import identity
from tocsin_agent.identity import Identity
from tocsin_agent.renewal import METHOD, Outcome, RenewalError, renew
from tocsin_agent.renewer import CHECK_S, RETRY_S_MAX, RETRY_S_MIN, Renewer
from tocsin_agent.spool import Spool
from tocsin_agent.uplink import Uplink
from tocsin_proto.v1 import tocsin_pb2 as pb

DAY_MS = 86_400_000
LIFE_MS = 30 * DAY_MS


async def soon(_: float) -> None:
    await asyncio.sleep(0.01)


def aged(one: Rig, credentials: Credentials, issued_ms: int) -> Identity:
    assert credentials.key_pem is not None
    assert credentials.certificate_pem is not None
    return Identity(
        "edge-1",
        f"localhost:{one.port}",
        issued_ms + LIFE_MS,
        credentials.key_pem,
        credentials.certificate_pem,
        credentials.ca_pem,
        issued_ms,
    )


Scene = Callable[[Rig, Uplink, Spool, Credentials], Awaitable[None]]


def play(folder: Path, age_days: int, scene: Scene, **renewer: Any) -> Renewer:
    """An enrolled agent with a certificate of that age, streaming, with a renewer beside it."""
    made: list[Renewer] = []

    async def scenes() -> None:
        async with rig(folder) as one:
            issued_ms = now_ms() - age_days * DAY_MS
            credentials = await one.add_agent("edge-1", issued_ms)
            spool = opened(folder / "spool")
            uplink = agent_of(one, credentials, spool, [])
            uplink.identity = aged(one, credentials, issued_ms)
            identity.store(uplink.identity, folder / "identity")
            choices = {"now_ms": now_ms, "uniform": lambda low, high: low, "sleep": soon} | renewer
            made.append(Renewer(uplink, folder / "identity", **choices))
            running = [asyncio.create_task(uplink.run()), asyncio.create_task(made[0].run())]
            try:
                await scene(one, uplink, spool, credentials)
            finally:
                for task in running:
                    task.cancel()
                await asyncio.gather(*running, return_exceptions=True)
                spool.close()

    asyncio.run(scenes())
    return made[0]


def test_at_two_thirds_of_its_life_a_certificate_is_renewed_and_nothing_is_lost_or_sent_twice(tmp_path: Path) -> None:
    async def scene(one: Rig, uplink: Uplink, spool: Spool, old: Credentials) -> None:
        fill(spool, 200)
        uplink.wake()
        before = uplink.identity
        await until(lambda: uplink.identity is not before)
        fill(spool, 200)
        uplink.wake()
        await until(lambda: spool.first_unacked == 401)
        fresh = identity.load(tmp_path / "identity")
        assert fresh == uplink.identity
        assert fresh.key_pem != before.key_pem
        assert fresh.not_after_ms > before.not_after_ms + 20 * DAY_MS
        assert fresh.not_after_ms - fresh.not_before_ms == pytest.approx(LIFE_MS, abs=DAY_MS)
        (key,) = (tmp_path / "identity").glob(f"*/{identity.KEY}")
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
        assert key.read_bytes() == fresh.key_pem
        await until(lambda: [one.certificate_expires_ms for one in one.ingest.sessions()] == [fresh.not_after_ms])
        assert await kept(one) == [(400, 400)]
        assert any(line.startswith("certificate renewed") for line in await one.audit())
        # The new one is in use: whoever has stolen the old one comes too late.
        code, why = await refusal_of(one.channel(old))
        assert code is grpc.StatusCode.PERMISSION_DENIED
        assert "newer" in why

    assert play(tmp_path, 21, scene).problem == ""


def test_a_young_certificate_is_left_alone(tmp_path: Path) -> None:
    looked: list[float] = []

    async def look(seconds: float) -> None:
        looked.append(seconds)
        await asyncio.sleep(0)

    async def never(_folder: Path, _address: str) -> Outcome:
        raise AssertionError("asked for a new certificate before two thirds of the present one's life were over")

    async def scene(one: Rig, uplink: Uplink, spool: Spool, old: Credentials) -> None:
        await until(lambda: uplink.link.is_open and len(looked) > 100)

    play(tmp_path, 19, scene, sleep=look, ask=never)
    assert set(looked) == {CHECK_S}


def test_a_refused_renewal_is_tried_again_more_and_more_slowly_and_the_stream_goes_on(tmp_path: Path) -> None:
    slept: list[float] = []
    asked: list[str] = []

    async def sleep(seconds: float) -> None:
        if seconds != CHECK_S:
            slept.append(seconds)
        await asyncio.sleep(0.001)

    async def ask(_folder: Path, address: str) -> Outcome:
        asked.append(address)
        return Outcome("resource exhausted: more than 10 renewals within an hour")

    async def scene(one: Rig, uplink: Uplink, spool: Spool, old: Credentials) -> None:
        before = uplink.identity
        await until(lambda: len(asked) > 10)
        fill(spool, 5)
        uplink.wake()
        await until(lambda: spool.first_unacked == 6)
        assert uplink.identity is before

    renewer = play(tmp_path, 25, scene, sleep=sleep, ask=ask, uniform=lambda low, high: high if high < 1e6 else low)
    assert slept[:3] == [RETRY_S_MIN, 2 * RETRY_S_MIN, 4 * RETRY_S_MIN]
    assert max(slept) == RETRY_S_MAX
    # The collector lets an agent ask ten times an hour.
    assert sum(sum(slept[:n]) < 3600 for n in range(len(slept))) < 10
    assert "10 renewals" in renewer.problem


def test_an_agent_without_a_stream_does_not_ask(tmp_path: Path) -> None:
    asked: list[str] = []

    async def ask(_folder: Path, address: str) -> Outcome:
        asked.append(address)
        return Outcome("x")

    looked: list[float] = []

    async def look(seconds: float) -> None:
        looked.append(seconds)
        await asyncio.sleep(0.001)

    async def main() -> None:
        spool = opened(tmp_path / "spool")
        nowhere = Identity("edge-1", "127.0.0.1:9", 5, b"", b"", b"", 1)
        async with rig(tmp_path) as one:
            uplink = agent_of(one, await one.add_agent("edge-1"), spool, [])  # never started
            uplink.identity = nowhere
            renewer = Renewer(uplink, tmp_path, now_ms=now_ms, uniform=lambda low, high: low, sleep=look, ask=ask)
            running = asyncio.create_task(renewer.run())
            await until(lambda: len(looked) > 20)
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        spool.close()

    asyncio.run(main())
    assert asked == []


# -------------------------------------------------------------------------------------------------- what is answered

AUTHORITY = Authority()
URI = "spiffe://tocsin/agent/7"


@contextmanager
def listener(answer: Callable[[Any], Any]) -> Iterator[str]:
    class Handler(grpc.GenericRpcHandler):
        def service(self, details: Any) -> Any:
            assert details.method == METHOD
            return grpc.unary_unary_rpc_method_handler(
                lambda request, _: answer(request), pb.RenewRequest.FromString, pb.RenewResponse.SerializeToString
            )

    with futures.ThreadPoolExecutor(1) as pool:
        served = grpc.server(pool, handlers=(Handler(),))
        pair = AUTHORITY.server("127.0.0.1")
        credentials = grpc.ssl_server_credentials([(pair.key_pem, pair.certificate_pem)], AUTHORITY.pem, True)
        port = served.add_secure_port("127.0.0.1:0", credentials)
        served.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            served.stop(0).wait()


def enrolled(folder: Path, pair: Pair, **changes: Any) -> Identity:
    certificate = x509.load_pem_x509_certificate(pair.certificate_pem)
    ends_ms = int(certificate.not_valid_after_utc.timestamp() * 1000)
    present = Identity("edge-1", "127.0.0.1:9", ends_ms, pair.key_pem, pair.certificate_pem, AUTHORITY.pem)
    present = msgspec.structs.replace(present, **changes)
    identity.store(present, folder)
    return present


def answered(request: Any, authority: Authority, uri: str) -> Any:
    key: Any = x509.load_der_x509_csr(request.csr_der).public_key()
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri)]
    return pb.RenewResponse(
        certificate_pem=authority.sign(key, names, ExtendedKeyUsageOID.CLIENT_AUTH), ca_pem=authority.pem
    )


OTHER = Authority("other")


@pytest.mark.parametrize(
    ("answer", "ends_later_ms", "says"),
    [
        (lambda request: answered(request, AUTHORITY, "spiffe://tocsin/agent/8"), 0, "another agent"),
        (lambda request: answered(request, OTHER, URI), 0, "none was trusted before"),
        (lambda request: answered(request, AUTHORITY, URI), DAY_MS, "ends before the present one"),
        (lambda request: pb.RenewResponse(certificate_pem=b"x", ca_pem=AUTHORITY.pem), 0, "no usable certificate"),
        (
            lambda request: pb.RenewResponse(
                certificate_pem=AUTHORITY.client(URI).certificate_pem, ca_pem=AUTHORITY.pem
            ),
            0,
            "another key",
        ),
    ],
    ids=["another agent", "unknown authority", "ends earlier", "garbage", "another key"],
)
def test_an_answer_that_would_cost_the_agent_its_identity_changes_nothing(
    tmp_path: Path, answer: Callable[[Any], Any], ends_later_ms: int, says: str
) -> None:
    pair = AUTHORITY.client(URI)
    present = enrolled(tmp_path, pair)
    if ends_later_ms:
        present = enrolled(tmp_path, pair, not_after_ms=present.not_after_ms + ends_later_ms)
    with listener(answer) as address, pytest.raises(RenewalError, match=says):
        renew(tmp_path, address)
    assert identity.load(tmp_path) == present


def test_a_change_of_authority_arrives_by_a_bundle_of_both(tmp_path: Path) -> None:
    enrolled(tmp_path, AUTHORITY.client(URI))

    def answer(request: Any) -> Any:
        reply = answered(request, OTHER, URI)
        reply.ca_pem += AUTHORITY.pem
        return reply

    with listener(answer) as address:
        fresh = renew(tmp_path, address)
    assert identity.load(tmp_path) == fresh
    assert fresh.ca_pem == OTHER.pem + AUTHORITY.pem


def test_an_unreachable_collector_and_a_missing_identity_are_named(tmp_path: Path) -> None:
    with pytest.raises(RenewalError, match="no identity to renew"):
        renew(tmp_path, "127.0.0.1:9")
    enrolled(tmp_path, AUTHORITY.client(URI))
    with pytest.raises(RenewalError, match=r"127\.0\.0\.1:9: unavailable"):
        renew(tmp_path, "127.0.0.1:9")
