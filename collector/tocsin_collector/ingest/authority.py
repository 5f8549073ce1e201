"""The certificate authority of one collector: who may speak, proved by a signature.

It issues the server's certificate and those of the agents, and keeps both private keys in one folder. It is not a public
CA and decides nothing about tokens or revocation (`tokens`, `roster`).

Invariant: nothing of a certificate request but its public key reaches a certificate; the identity is the uuid that the
collector chose, in one URI: spiffe://<trust domain>/agent/<uuid>.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from ipaddress import ip_address
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tocsin_collector.ingest.key_files import (
    AuthorityError,
    read_certificate,
    read_key,
    write_private,
    write_public,
)

__all__ = ["Authority", "AuthorityError", "Issued", "RequestError", "ServerPair", "requested_key", "spki", "spki_pin"]

TRUST_DOMAIN = "tocsin"
CSR_BYTES_MAX = 16 * 1024

_CA_LIFE = timedelta(days=3650)
_SERVER_LIFE = timedelta(days=397)
_AGENT_LIFE = timedelta(days=30)
# Plant clocks run wrong by hours. What agents verify is dated back; what the collector verifies, by its own clock, is not.
_BACKDATE = timedelta(hours=24)
_SKEW = timedelta(minutes=5)
_RSA_BITS = range(2048, 8193)

Names = Sequence[str]
AgentKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey


class RequestError(ValueError):
    """A certificate request that is not signed by its own key, or a key that is too weak or of the wrong kind."""


@dataclass(frozen=True, slots=True)
class Issued:
    """An agent's certificate. `serial` in lower-case hex, `expires_ms` Unix milliseconds."""

    certificate_pem: bytes
    serial: str
    expires_ms: int


@dataclass(frozen=True, slots=True)
class ServerPair:
    """What both listeners show: certificate and key as PEM, the names it stands for."""

    certificate_pem: bytes
    key_pem: bytes
    names: tuple[str, ...]
    starts_ms: int
    expires_ms: int


class Authority:
    """Signs with the CA key in memory. Made by `create` or `load`. Blocking: about 1 ms to issue, more to write files."""

    def __init__(
        self, folder: Path, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate, server: ServerPair
    ):
        self._folder = folder
        self._key = key
        self._certificate = certificate
        self.server = server
        self.ca_pem = certificate.public_bytes(Encoding.PEM)
        self.pin = spki_pin(certificate)
        self.trust_domain = _trust_domain(certificate)

    @classmethod
    def create(cls, folder: Path, names: Names, now_ms: int, *, trust_domain: str = TRUST_DOMAIN) -> Self:
        """A new authority in `folder`: ca.crt, ca.key, server.crt, server.key. Refuses to replace one that is there."""
        if (folder / "ca.key").exists() or (folder / "ca.crt").exists():
            raise AuthorityError(f"{folder}: holds an authority already; every agent trusts it, so it is not replaced")
        _checked_names(names)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _ca_certificate(key, trust_domain, _at(now_ms))
        server = _server_pair(key, certificate, names, now_ms)
        write_private(folder / "ca.key", _key_pem(key))
        write_public(folder / "ca.crt", certificate.public_bytes(Encoding.PEM))
        _write_server(folder, server)
        return cls(folder, key, certificate, server)

    @classmethod
    def load(cls, folder: Path, now_ms: int) -> Self:
        """The authority that `create` left in `folder`.

        A server certificate that has expired is no error: see `server_is_due`. Raises AuthorityError.
        """
        certificate = read_certificate(folder / "ca.crt")
        key = read_key(folder / "ca.key")
        if key.public_key() != certificate.public_key():
            raise AuthorityError(f"{folder / 'ca.key'}: does not belong to ca.crt; restore both files from one backup")
        if certificate.not_valid_after_utc <= _at(now_ms):
            ended = certificate.not_valid_after_utc.date().isoformat()
            raise AuthorityError(
                f"{folder / 'ca.crt'}: expired on {ended}; check the clock, else make a new one and enrol again"
            )
        server_certificate = read_certificate(folder / "server.crt")
        try:
            server_certificate.verify_directly_issued_by(certificate)
        except (InvalidSignature, ValueError, TypeError) as exc:
            raise AuthorityError(
                f"{folder / 'server.crt'}: not issued by ca.crt beside it; restore the folder"
            ) from exc
        server_key = read_key(folder / "server.key")
        authority = cls(folder, key, certificate, _pair(server_certificate, server_key))
        if server_key.public_key() != server_certificate.public_key():
            # A renewal that was cut off between its two files. Nothing is lost: the pair is made again for the same names.
            authority.renew_server(now_ms)
        return authority

    def issue_agent(self, csr_der: bytes, uuid: str, now_ms: int) -> Issued:
        """A certificate for the key of the request, 30 days, clientAuth only. Raises RequestError."""
        public_key = requested_key(csr_der)
        now = _at(now_ms)
        ends = min(now + _AGENT_LIFE, self._certificate.not_valid_after_utc)
        builder = _builder(public_key, "tocsin agent", self._certificate.subject, now - _SKEW, ends)
        certificate = _leaf(
            builder,
            self._certificate,
            [x509.UniformResourceIdentifier(self.agent_uri(uuid))],
            ExtendedKeyUsageOID.CLIENT_AUTH,
        ).sign(self._key, SHA256())
        return Issued(certificate.public_bytes(Encoding.PEM), f"{certificate.serial_number:x}", _ms(ends))

    def agent_uri(self, uuid: str) -> str:
        return f"spiffe://{self.trust_domain}/agent/{uuid}"

    def server_is_due(self, now_ms: int) -> bool:
        """True in the last third of the server certificate's life, and after it."""
        return now_ms >= self.server.expires_ms - (self.server.expires_ms - self.server.starts_ms) // 3

    def renew_server(self, now_ms: int, names: Names | None = None) -> None:
        """A new key and certificate for the server; for other `names` if given. Agents notice nothing: they pin the CA."""
        self.server = _server_pair(self._key, self._certificate, names or self.server.names, now_ms)
        _write_server(self._folder, self.server)


def requested_key(csr_der: bytes) -> AgentKey:
    """The public key of a PKCS#10 request, after its own signature has been checked. Raises RequestError."""
    if len(csr_der) > CSR_BYTES_MAX:
        raise RequestError(f"certificate request: {len(csr_der)} bytes, at most {CSR_BYTES_MAX}")
    try:
        request = x509.load_der_x509_csr(csr_der)
        key = request.public_key()
        signed = request.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature) as exc:
        raise RequestError("certificate request: not a PKCS#10 request in DER") from exc
    # Before the signature counts: a weak key could be anyone's.
    if isinstance(key, ec.EllipticCurvePublicKey):
        if not isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1):
            raise RequestError(f"certificate request: curve {key.curve.name}, accepted are P-256 and P-384")
    elif isinstance(key, rsa.RSAPublicKey):
        if key.key_size not in _RSA_BITS:
            raise RequestError(f"certificate request: RSA with {key.key_size} bits, accepted are 2048 to 8192")
    else:
        # Ed25519 among them: the TLS of gRPC knows no such signatures, so the certificate could never be used.
        raise RequestError("certificate request: kind of key not accepted, use P-256")
    if not signed:
        raise RequestError("certificate request: its signature does not fit its key")
    return key


def spki_pin(certificate: x509.Certificate) -> str:
    """SHA-256 over the DER of the SubjectPublicKeyInfo, hex: stays the same when the certificate is issued anew."""
    return sha256(spki(certificate.public_key())).hexdigest()


def spki(key: object) -> bytes:
    public_bytes: Callable[[Encoding, PublicFormat], bytes] = key.public_bytes  # type: ignore[attr-defined]
    return public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


# ----------------------------------------------------------------------------------------------------- certificates


def _ca_certificate(key: ec.EllipticCurvePrivateKey, trust_domain: str, now: datetime) -> x509.Certificate:
    public_key = key.public_key()
    label = sha256(spki(public_key)).hexdigest()[:12]
    name = _name(f"Tocsin CA {label}")
    return (
        _builder(public_key, f"Tocsin CA {label}", name, now - _BACKDATE, now + _CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"spiffe://{trust_domain}")]), critical=False
        )
        .sign(key, SHA256())
    )


def _server_pair(ca_key: ec.EllipticCurvePrivateKey, ca: x509.Certificate, names: Names, now_ms: int) -> ServerPair:
    key = ec.generate_private_key(ec.SECP256R1())
    now = _at(now_ms)
    ends = min(now + _SERVER_LIFE, ca.not_valid_after_utc)
    builder = _builder(key.public_key(), "tocsin collector", ca.subject, now - _BACKDATE, ends)
    certificate = _leaf(builder, ca, _checked_names(names), ExtendedKeyUsageOID.SERVER_AUTH).sign(ca_key, SHA256())
    return _pair(certificate, key)


def _leaf(
    builder: x509.CertificateBuilder,
    ca: x509.Certificate,
    names: Sequence[x509.GeneralName],
    usage: x509.ObjectIdentifier,
) -> x509.CertificateBuilder:
    authority = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(
        ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    )
    return (
        builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(authority, critical=False)
    )


def _builder(
    key: AgentKey, subject: str, issuer: x509.Name, starts: datetime, ends: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .public_key(key)
        .subject_name(_name(subject))
        .issuer_name(issuer)
        .serial_number(x509.random_serial_number())
        .not_valid_before(starts)
        .not_valid_after(ends)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _checked_names(names: Names) -> list[x509.GeneralName]:
    """DNS names and addresses as they stand in a certificate. Raises AuthorityError."""
    if not names:
        raise AuthorityError("server names: none given; agents connect to a DNS name or an address, name at least one")
    return [_general_name(name) for name in dict.fromkeys(names)]


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        pass
    try:
        wire = name.encode("idna").decode("ascii")
    except UnicodeError as exc:
        raise AuthorityError(f"server names: {name!r} is neither a DNS name nor an address") from exc
    if not wire or any(character in wire for character in " /:@*") or wire.startswith("."):
        raise AuthorityError(f"server names: {name!r} is neither a DNS name nor an address")
    return x509.DNSName(wire)


def _pair(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> ServerPair:
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return ServerPair(
        certificate_pem=certificate.public_bytes(Encoding.PEM),
        key_pem=_key_pem(key),
        names=tuple(str(name.value) for name in names),
        starts_ms=_ms(certificate.not_valid_before_utc),
        expires_ms=_ms(certificate.not_valid_after_utc),
    )


def _trust_domain(certificate: x509.Certificate) -> str:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return TRUST_DOMAIN
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    return uris[0].removeprefix("spiffe://") if uris else TRUST_DOMAIN


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _at(ms: int) -> datetime:
    # Certificates know whole seconds.
    return datetime.fromtimestamp(ms // 1000, tz=UTC)


def _ms(moment: datetime) -> int:
    return int(moment.timestamp()) * 1000


def _write_server(folder: Path, server: ServerPair) -> None:
    # Each file is replaced whole; `load` mends what a crash between the two leaves.
    write_private(folder / "server.key", server.key_pem)
    write_public(folder / "server.crt", server.certificate_pem)
