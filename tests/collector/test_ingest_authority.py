"""The certificate authority: what it signs, what it refuses, and what its folder must look like."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from tests.support.ingest_rig import csr_of, new_key

from tocsin_collector.ingest.authority import CSR_BYTES_MAX, Authority, AuthorityError, RequestError, spki_pin

DAY_MS = 86_400_000
NOW_MS = 1_790_000_000_000  # 2026-09-21
NAMES = ["collector.example", "192.0.2.7", "2001:db8::7"]


def made(folder: Path, now_ms: int = NOW_MS) -> Authority:
    return Authority.create(folder, NAMES, now_ms)


def test_an_agents_certificate_says_its_uuid_and_may_do_nothing_but_be_a_client(tmp_path: Path) -> None:
    authority = made(tmp_path)
    key = new_key()
    issued = authority.issue_agent(csr_of(key, subject="CN of a liar"), "u-1", NOW_MS)
    certificate = x509.load_pem_x509_certificate(issued.certificate_pem)
    extensions = certificate.extensions
    names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(names) == [x509.UniformResourceIdentifier("spiffe://tocsin/agent/u-1")]
    assert list(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    assert "liar" not in certificate.subject.rfc4514_string()
    assert certificate.public_key() == key.public_key()
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(authority.ca_pem))
    assert certificate.not_valid_after_utc - certificate.not_valid_before_utc <= timedelta(days=30, minutes=5)
    assert issued.expires_ms == NOW_MS + 30 * DAY_MS
    assert issued.serial == f"{certificate.serial_number:x}"
    assert issued.serial != authority.issue_agent(csr_of(key), "u-1", NOW_MS).serial


def test_the_servers_certificate_stands_for_its_names_and_may_do_nothing_but_be_a_server(tmp_path: Path) -> None:
    authority = made(tmp_path)
    extensions = x509.load_pem_x509_certificate(authority.server.certificate_pem).extensions
    assert list(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.SERVER_AUTH]
    names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(name) for name in names.get_values_for_type(x509.DNSName)] == ["collector.example"]
    assert [str(name) for name in names.get_values_for_type(x509.IPAddress)] == ["192.0.2.7", "2001:db8::7"]


def test_no_certificate_outlives_its_authority(tmp_path: Path) -> None:
    authority = made(tmp_path)
    ends = x509.load_pem_x509_certificate(authority.ca_pem).not_valid_after_utc
    late_ms = int((ends - timedelta(days=2)).timestamp() * 1000)
    assert authority.issue_agent(csr_of(new_key()), "u", late_ms).expires_ms == int(ends.timestamp() * 1000)


def _tampered() -> bytes:
    der = bytearray(csr_of(new_key()))
    der[-4] ^= 1  # inside the signature
    return bytes(der)


REQUESTS: dict[str, tuple[Callable[[], bytes], str]] = {
    "not a request": (lambda: b"hello", "not a PKCS#10 request"),
    "empty": (lambda: b"", "not a PKCS#10 request"),
    "too large": (lambda: bytes(CSR_BYTES_MAX + 1), "at most"),
    "a signature that does not fit": (_tampered, "signature does not fit|not a PKCS#10"),
    "RSA with 1024 bits": (lambda: csr_of(rsa.generate_private_key(65537, 1024)), "1024 bits, accepted are 2048"),
    "an odd curve": (lambda: csr_of(ec.generate_private_key(ec.SECP521R1())), "secp521r1, accepted are P-256"),
    "Ed25519, which gRPC cannot use": (lambda: csr_of(ed25519.Ed25519PrivateKey.generate()), "use P-256"),
}


@pytest.mark.parametrize("what", REQUESTS)
def test_a_bad_request_is_refused_and_says_what_would_be_right(tmp_path: Path, what: str) -> None:
    make, problem = REQUESTS[what]
    with pytest.raises(RequestError, match=problem):
        made(tmp_path).issue_agent(make(), "u", NOW_MS)


@pytest.mark.parametrize("key", [ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65537, 2048)])
def test_other_keys_that_are_strong_enough_are_accepted(tmp_path: Path, key: Any) -> None:
    issued = made(tmp_path).issue_agent(csr_of(key), "u", NOW_MS)
    assert x509.load_pem_x509_certificate(issued.certificate_pem).public_key() == key.public_key()


# ------------------------------------------------------------------------------------------------------- the folder


def test_what_was_made_is_loaded_again_with_private_keys_for_the_owner_only(tmp_path: Path) -> None:
    folder = tmp_path / "ca"
    authority = Authority.create(folder, NAMES, NOW_MS, trust_domain="plant.example")
    again = Authority.load(folder, NOW_MS)
    assert (again.pin, again.server, again.trust_domain) == (authority.pin, authority.server, "plant.example")
    assert again.pin == spki_pin(x509.load_pem_x509_certificate(again.ca_pem))
    modes = {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}
    assert modes == {"ca.key": 0o600, "server.key": 0o600, "ca.crt": 0o644, "server.crt": 0o644}
    with pytest.raises(AuthorityError, match="not replaced"):
        Authority.create(folder, NAMES, NOW_MS)


def _loosen(folder: Path) -> None:
    (folder / "ca.key").chmod(0o640)


def _lose(folder: Path) -> None:
    (folder / "ca.crt").unlink()


def _swap(folder: Path) -> None:
    (folder / "ca.key").write_bytes((folder / "server.key").read_bytes())


def _garble(folder: Path) -> None:
    (folder / "server.crt").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")


def _mix(folder: Path) -> None:
    made(folder / "other")
    (folder / "server.crt").write_bytes((folder / "other" / "server.crt").read_bytes())


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a key that others can read": (_loosen, r"ca\.key: mode 0640 lets others read a private key; `chmod 600` it"),
    "a file that is missing": (_lose, r"ca\.crt: not there"),
    "the key of something else": (_swap, r"ca\.key: does not belong to ca\.crt"),
    "a file that is no certificate": (_garble, r"server\.crt: not a certificate in PEM"),
    "a server certificate of another authority": (_mix, r"server\.crt: not issued by ca\.crt"),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_folder_is_refused_with_the_file_and_the_remedy(tmp_path: Path, what: str) -> None:
    damage, problem = DAMAGES[what]
    made(tmp_path)
    damage(tmp_path)
    with pytest.raises(AuthorityError, match=problem):
        Authority.load(tmp_path, NOW_MS)


def test_an_expired_authority_is_refused(tmp_path: Path) -> None:
    made(tmp_path)
    with pytest.raises(AuthorityError, match="expired on 2036"):
        Authority.load(tmp_path, NOW_MS + 3651 * DAY_MS)


def test_the_server_certificate_is_due_in_its_last_third_and_renewed_for_the_same_names(tmp_path: Path) -> None:
    authority = made(tmp_path)
    assert not authority.server_is_due(NOW_MS + 200 * DAY_MS)
    later_ms = NOW_MS + 390 * DAY_MS
    assert authority.server_is_due(later_ms)
    before = authority.server
    authority.renew_server(later_ms)
    assert authority.server.names == before.names == tuple(NAMES)
    assert authority.server.key_pem != before.key_pem
    assert not authority.server_is_due(later_ms)
    assert Authority.load(tmp_path, later_ms).server == authority.server


def test_a_renewal_that_was_cut_off_between_its_files_is_mended(tmp_path: Path) -> None:
    authority = made(tmp_path)
    old = (tmp_path / "server.crt").read_bytes()
    authority.renew_server(NOW_MS)
    (tmp_path / "server.crt").write_bytes(old)
    mended = Authority.load(tmp_path, NOW_MS)
    assert mended.server.names == tuple(NAMES)
    assert Authority.load(tmp_path, NOW_MS).server == mended.server


@pytest.mark.parametrize("names", [[], ["a b"], ["host:7443"], ["*.example"], [""], ["https://x"]])
def test_a_name_that_is_neither_dns_nor_address_is_refused(tmp_path: Path, names: list[str]) -> None:
    with pytest.raises(AuthorityError, match="server names"):
        Authority.create(tmp_path / "ca", names, NOW_MS)
    assert not (tmp_path / "ca").exists()


def test_an_agents_certificate_holds_by_the_collectors_clock(tmp_path: Path) -> None:
    issued = made(tmp_path).issue_agent(csr_of(new_key()), "u", NOW_MS)
    starts = x509.load_pem_x509_certificate(issued.certificate_pem).not_valid_before_utc
    assert starts == datetime.fromtimestamp(NOW_MS / 1000, UTC) - timedelta(minutes=5)
