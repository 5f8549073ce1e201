"""Keys, certificate requests and the judgement of what a collector issued: all that needs cryptography, in one place.

Not the asking (`identity`, `renewal`). This module is imported only while enrolling or renewing: a running agent does
without its ten megabytes. Invariant: the private key leaves these functions only as PEM, for a file of mode 0600.
"""

import hashlib
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec


class CertificateError(ValueError):
    """What the collector answered is no certificate for this key; the text is for people."""


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate that was checked, with its key. `uris` say for whom it is, `pins` which authorities came with it."""

    key_pem: bytes
    certificate_pem: bytes
    ca_pem: bytes
    not_before_ms: int
    not_after_ms: int
    uris: tuple[str, ...]
    pins: frozenset[str]


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def request(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A signing request in DER that proves possession of the key; its subject is ignored, so it has none."""
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    return csr.public_bytes(serialization.Encoding.DER)


def issued(certificate_pem: bytes, ca_pem: bytes, key: ec.EllipticCurvePrivateKey) -> Issued:
    """The certificate must be for our key and of an authority in the bundle. Raises CertificateError."""
    try:
        certificate = x509.load_pem_x509_certificate(certificate_pem)
        authorities = x509.load_pem_x509_certificates(ca_pem)
        issuer = next(one for one in authorities if one.subject == certificate.issuer)
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, StopIteration, InvalidSignature) as exc:
        raise CertificateError("the collector's answer holds no usable certificate; its log says more") from exc
    if certificate.public_key() != key.public_key():
        raise CertificateError("the collector's certificate is for another key; its log says more")
    key_pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return Issued(
        key_pem,
        certificate_pem,
        ca_pem,
        int(certificate.not_valid_before_utc.timestamp() * 1000),
        int(certificate.not_valid_after_utc.timestamp() * 1000),
        _uris(certificate),
        frozenset(_pin(one) for one in authorities),
    )


def uris(certificate_pem: bytes) -> tuple[str, ...]:
    """Whom a certificate of ours names. ValueError when it is none."""
    return _uris(x509.load_pem_x509_certificate(certificate_pem))


def pins(ca_pem: bytes) -> frozenset[str]:
    """SHA-256 over the SubjectPublicKeyInfo of each authority in a bundle, hex; none when it is no bundle."""
    try:
        return frozenset(_pin(one) for one in x509.load_pem_x509_certificates(ca_pem))
    except ValueError:
        return frozenset()


def _uris(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return tuple(names.get_values_for_type(x509.UniformResourceIdentifier))


def _pin(certificate: x509.Certificate) -> str:
    der = certificate.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return hashlib.sha256(der).hexdigest()
