"""The files of the authority: PEM in, PEM out, whole or not at all.

Not what is signed (`authority`). Invariant: a private key is readable by its owner only, from the first byte written; one
that others can read is refused, with what to do.
"""

import os
import stat
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key


class AuthorityError(Exception):
    """The folder of the authority cannot be used: says which file, what is wrong and what would be right."""


def write_private(path: Path, data: bytes) -> None:
    _write(path, data, 0o600)


def write_public(path: Path, data: bytes) -> None:
    _write(path, data, 0o644)


def read_certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(_read(path))
    except ValueError as exc:
        raise AuthorityError(f"{path}: not a certificate in PEM; restore it from a backup") from exc


def read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    data = _read(path)
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise AuthorityError(f"{path}: mode {mode:04o} lets others read a private key; `chmod 600` it")
    try:
        key = load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
        raise AuthorityError(f"{path}: not an unencrypted private key in PEM; restore it from a backup") from exc
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise AuthorityError(f"{path}: not a key on an elliptic curve, as `tocsin-collector init` makes it")
    return key


def _write(path: Path, data: bytes, mode: int) -> None:
    """Whole or not at all; a private key is never readable by others, not even while it is written."""
    partial = path.with_name(f".{path.name}.new")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as exc:
        raise AuthorityError(
            f"{path}: not there; `tocsin-collector init` makes it, or restore it from a backup"
        ) from exc
    except OSError as exc:
        raise AuthorityError(f"{path}: {exc.strerror}; the collector's user must be able to read it") from exc
