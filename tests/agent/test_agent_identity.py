"""Enrolment against a real listener on loopback, and what lies on disk afterwards."""

import base64
import io
import itertools
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from tests.support.tls import Authority, Pair

from tocsin_agent.identity import (
    CERTIFICATE,
    KEY,
    METHOD,
    EnrolError,
    Identity,
    enrol,
    load,
    parse_token,
    read_token,
    store,
)
from tocsin_proto.v1 import tocsin_pb2 as pb

AUTHORITY = Authority()
SECRET = "c2VjcmV0"


def token(address: str, authority: Authority = AUTHORITY, pin: str = "") -> str:
    body = {"a": address, "p": pin or authority.pin, "s": SECRET, "c": authority.pem.decode()}
    return "tocsin1." + base64.urlsafe_b64encode(json.dumps(body).encode()).decode().rstrip("=")


def file_of(folder: Path, name: str) -> Path:
    (found,) = folder.glob(f"*/{name}")
    return found


def signed(request: Any) -> Any:
    csr = x509.load_der_x509_csr(request.csr_der)
    key = csr.public_key()
    assert csr.is_signature_valid
    assert isinstance(key, ec.EllipticCurvePublicKey)
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier("spiffe://tocsin/agent/7")]
    certificate = AUTHORITY.sign(key, names, ExtendedKeyUsageOID.CLIENT_AUTH)
    return pb.EnrolResponse(
        certificate_pem=certificate, ca_pem=AUTHORITY.pem, agent="edge-1", collector="127.0.0.1:7443"
    )


@contextmanager
def listener(answer: Callable[[Any, Any], Any], server: Pair | None = None) -> Iterator[str]:
    class Handler(grpc.GenericRpcHandler):
        def service(self, details: Any) -> Any:
            if details.method != METHOD:
                return None
            return grpc.unary_unary_rpc_method_handler(
                answer, pb.EnrolRequest.FromString, pb.EnrolResponse.SerializeToString
            )

    with futures.ThreadPoolExecutor(1) as pool:
        served = grpc.server(pool, handlers=(Handler(),))
        pair = server or AUTHORITY.server("127.0.0.1")
        credentials = grpc.ssl_server_credentials([(pair.key_pem, pair.certificate_pem)])
        port = served.add_secure_port("127.0.0.1:0", credentials)
        served.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            served.stop(None).wait()


def test_a_token_becomes_an_identity_whose_key_never_left(tmp_path: Path) -> None:
    asked: list[Any] = []

    def answer(request: Any, _: Any) -> Any:
        asked.append(request)
        return signed(request)

    with listener(answer) as address:
        identity = enrol(token(address), tmp_path / "state", "press-7", machine="m1")
    assert (identity.agent, identity.collector) == ("edge-1", "127.0.0.1:7443")
    assert (asked[0].token, asked[0].hostname, asked[0].machine) == (SECRET, "press-7", "m1")
    assert load(tmp_path / "state") == identity
    assert stat.S_IMODE(file_of(tmp_path / "state", KEY).stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700
    assert b"PRIVATE" not in asked[0].SerializeToString()
    assert "PRIVATE" not in repr(identity)
    assert SECRET not in repr(parse_token(token(address)))


def test_a_machine_that_was_never_enrolled_has_no_identity(tmp_path: Path) -> None:
    assert load(tmp_path) is None


def test_enrolling_again_replaces_the_identity(tmp_path: Path) -> None:
    with listener(lambda request, _: signed(request)) as address:
        first = enrol(token(address), tmp_path, "press-7")
        second = enrol(token(address), tmp_path, "press-7")
    assert first.key_pem != second.key_pem
    assert load(tmp_path) == second
    assert file_of(tmp_path, KEY).read_bytes() == second.key_pem


def test_an_identity_is_replaced_as_a_whole_wherever_it_breaks_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (
        Identity("edge-1", "127.0.0.1:7443", 0, pair.key_pem, pair.certificate_pem, AUTHORITY.pem)
        for pair in (AUTHORITY.client("spiffe://tocsin/agent/7"), AUTHORITY.client("spiffe://tocsin/agent/7"))
    )
    real, seen = os.open, []
    for breaks_at in range(1, 20):
        folder, opened = tmp_path / str(breaks_at), itertools.count(1)
        store(first, folder)

        def broken(*argv: Any, at: int = breaks_at, count: Iterator[int] = opened) -> int:
            if next(count) == at:
                raise OSError(28, "no space left on device")
            return real(*argv)

        monkeypatch.setattr(os, "open", broken)  # the disk's part
        try:
            store(second, folder)
        except OSError:
            seen.append("broken")
        monkeypatch.setattr(os, "open", real)
        found = load(folder)
        assert found in (first, second)
        seen.append("new" if found == second else "old")
    assert seen[:2] == ["broken", "old"]
    assert seen[-1] == "new"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty"),
        ("hello", 'begins with "tocsin1."'),
        ("tocsin1.", "damaged or cut short"),
        ("tocsin1.!!!!", "damaged or cut short"),
        (token("127.0.0.1:1")[:-40], "damaged or cut short"),
        ("tocsin1." + "A" * 10_000, "begins with"),
        (token("127.0.0.1:1", pin="00" * 32), "contradicts itself"),
        (token("", pin=AUTHORITY.pin), "contradicts itself"),
    ],
)
def test_a_bad_token_is_refused_before_anything_is_sent(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(EnrolError, match=says):
        enrol(text, tmp_path / "state", "press-7")
    assert not (tmp_path / "state").exists()


def test_a_server_of_another_authority_gets_no_secret(tmp_path: Path) -> None:
    asked: list[Any] = []
    with (
        listener(lambda request, _: asked.append(request), Authority().server("127.0.0.1")) as address,
        pytest.raises(EnrolError, match=r"did not sign|not reached"),
    ):
        enrol(token(address), tmp_path, "press-7")
    assert asked == []


def test_a_used_token_says_to_ask_for_a_new_one(tmp_path: Path) -> None:
    def refuse(_: Any, context: Any) -> Any:
        context.abort(grpc.StatusCode.PERMISSION_DENIED, "the token cannot be used")

    with listener(refuse) as address, pytest.raises(EnrolError, match="ask for a new one") as refused:
        enrol(token(address), tmp_path, "press-7")
    assert refused.value.refused
    assert SECRET not in str(refused.value)
    assert load(tmp_path) is None


def test_an_unreachable_collector_is_named(tmp_path: Path) -> None:
    with pytest.raises(EnrolError, match=r"127\.0\.0\.1:1: not reached") as missed:
        enrol(token("127.0.0.1:1"), tmp_path, "press-7")
    assert not missed.value.refused


@pytest.mark.parametrize("wrong", ["garbage", "other key", "other authority"])
def test_an_answer_that_is_not_ours_is_not_stored(tmp_path: Path, wrong: str) -> None:
    other = Authority("other")

    def answer(request: Any, _: Any) -> Any:
        reply = signed(request)
        if wrong == "garbage":
            reply.certificate_pem = b"garbage"
        elif wrong == "other key":
            reply.certificate_pem = AUTHORITY.client("spiffe://tocsin/agent/8").certificate_pem
        else:
            reply.certificate_pem = other.client("spiffe://tocsin/agent/8").certificate_pem
            reply.ca_pem = other.pem
        return reply

    with listener(answer) as address, pytest.raises(EnrolError, match=r"certificate|CA"):
        enrol(token(address), tmp_path, "press-7")
    assert load(tmp_path) is None


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    with listener(lambda request, _: signed(request)) as address:
        enrol(token(address), tmp_path, "press-7")
    file_of(tmp_path, KEY).chmod(0o644)
    with pytest.raises(EnrolError, match="chmod 600"):
        load(tmp_path)


def test_files_of_two_identities_are_not_taken_for_one(tmp_path: Path) -> None:
    with listener(lambda request, _: signed(request)) as address:
        enrol(token(address), tmp_path, "press-7")
    file_of(tmp_path, CERTIFICATE).write_bytes(AUTHORITY.client("spiffe://tocsin/agent/8").certificate_pem)
    with pytest.raises(EnrolError, match="enrol again"):
        load(tmp_path)
    file_of(tmp_path, CERTIFICATE).unlink()
    with pytest.raises(EnrolError, match="missing"):
        load(tmp_path)


def test_a_token_is_read_whole_and_bounded() -> None:
    assert read_token(io.StringIO(" tocsin1.abc\n")) == "tocsin1.abc"
    assert len(read_token(io.StringIO("x" * 100_000))) < 10_000


def test_a_running_agent_does_without_cryptography() -> None:
    program = (
        "import sys, tocsin_agent.app, tocsin_agent.identity, tocsin_agent.renewer\n"
        "print(sorted({'cryptography', 'pysnmp', 'numpy'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
