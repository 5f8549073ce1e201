"""Who this agent is: its key and certificate on disk, and how it gets them from a token, once.

Not the stream (`uplink`), not the command (`cli`), not the next certificate (`renewal`). Invariant: the private key lies in
a file of mode 0600 and leaves this machine in no message; nothing is sent to a peer that the token's CA did not vouch for;
whatever breaks off in the middle of `store`, `load` finds one whole identity, the one before or the new one.

cryptography is imported only while enrolling (`keys`): a running agent does without its ten megabytes.
"""

import base64
import binascii
import hashlib
import os
from pathlib import Path
from typing import IO, Any, Final

import grpc
import msgspec
import structlog

from tocsin_agent.durable import remove_folder, sync_folder, write_atomic
from tocsin_proto.words import Told

PREFIX: Final = "tocsin1."
TOKEN_CHARS_MAX: Final = 8192
WITHIN_S: Final = 30.0
METHOD: Final = "/tocsin.v1.Enrolment/Enrol"
FOLDER: Final = "identity"  # in the state folder
KEY: Final = "agent.key"
CERTIFICATE: Final = "agent.pem"
CA: Final = "ca.pem"
ABOUT: Final = "identity.json"  # names the folder beside it that holds the other three
LIFE_MS_ASSUMED: Final = 30 * 86_400_000  # of a certificate whose beginning is not known

log = structlog.get_logger()


class EnrolError(Told):
    """Not enrolled; the text says what to do. `refused`: by the collector, otherwise it was not reached or not asked."""

    def __init__(self, text: str, /, *, refused: bool = False, **facts: object) -> None:
        super().__init__(text, **facts)
        self.refused = refused


class Token(msgspec.Struct, frozen=True, rename={"address": "a", "pin": "p", "secret": "s", "ca_pem": "c"}):
    """What a token says: where to enrol, what to trust, and the one-time secret."""

    address: str
    pin: str
    secret: str
    ca_pem: str

    def __repr__(self) -> str:
        return f"Token(address={self.address!r}, secret=...)"


class Identity(msgspec.Struct, frozen=True):
    """`collector`: address of the Ingest listener. The three PEMs are what a TLS channel takes."""

    agent: str
    collector: str
    not_after_ms: int
    key_pem: bytes
    certificate_pem: bytes
    ca_pem: bytes
    not_before_ms: int = 0  # 0: not known

    @property
    def life_ms(self) -> int:
        return self.not_after_ms - self.not_before_ms if self.not_before_ms else LIFE_MS_ASSUMED

    def __repr__(self) -> str:
        return f"Identity(agent={self.agent!r}, collector={self.collector!r})"


class _About(msgspec.Struct, frozen=True):
    agent: str
    collector: str
    not_after_ms: int
    fingerprint: str  # of the certificate that these facts were read from
    not_before_ms: int = 0

    @property
    def folder(self) -> str:
        return self.fingerprint[:16]


def read_token(file: IO[str]) -> str:
    """From a file or standard input, never from the command line, where every user of the machine could see it."""
    return file.read(TOKEN_CHARS_MAX + 1).strip()


def parse_token(text: str) -> Token:
    """EnrolError when it is no token, or when it carries a CA that is not the one it pins."""
    if not text:
        raise EnrolError("the token is empty: give the file, or the text on standard input")
    if not text.startswith(PREFIX) or len(text) > TOKEN_CHARS_MAX:
        raise EnrolError('this is no enrolment token: one begins with "{prefix}"; copy the whole line', prefix=PREFIX)
    body = text.removeprefix(PREFIX)
    try:
        raw = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
        token = msgspec.json.decode(raw, type=Token)
    except (binascii.Error, ValueError) as exc:
        raise EnrolError("the token is damaged or cut short: copy the whole line") from exc
    if not token.address or not token.secret or not _pins(token):
        raise EnrolError("the token contradicts itself (its CA is not the one it pins): ask for a new one")
    return token


def enrol(token_text: str, folder: Path, hostname: str, *, address: str = "", machine: str = "") -> Identity:
    """Trades the token for a certificate and stores all of it in `folder`; blocks for up to WITHIN_S.

    `address`: of the Enrolment listener, where it is not the one in the token. EnrolError says what to do.
    """
    token = parse_token(token_text)
    _writable(folder)
    from tocsin_agent import keys

    key = keys.new_key()
    reply = _ask(token, address or token.address, keys.request(key), hostname, machine or machine_hash())
    try:
        issued = keys.issued(reply.certificate_pem, reply.ca_pem, key)
    except keys.CertificateError as exc:
        raise EnrolError(str(exc), refused=True) from exc
    if token.pin.lower() not in issued.pins:
        raise EnrolError("the collector answers with a CA that the token does not pin", refused=True)
    identity = Identity(
        reply.agent,
        reply.collector,
        issued.not_after_ms,
        issued.key_pem,
        issued.certificate_pem,
        issued.ca_pem,
        issued.not_before_ms,
    )
    try:
        store(identity, folder)
    except OSError as exc:
        raise EnrolError(
            "{path}: cannot be written ({why}); the token is used up, ask for a new one", path=folder, why=exc.strerror
        ) from exc
    return identity


def load(folder: Path) -> Identity | None:
    """None: never enrolled. EnrolError: there is something, but it is damaged, unreadable, or open to others."""
    try:
        about = msgspec.json.decode((folder / ABOUT).read_bytes(), type=_About)
        files = folder / _plain(about.folder)
        mode = (files / KEY).stat().st_mode
        pems = [(files / name).read_bytes() for name in (KEY, CERTIFICATE, CA)]
    except FileNotFoundError as exc:
        if not (folder / ABOUT).exists():
            return None
        raise EnrolError("{path}: missing; enrol again with a new token", path=exc.filename) from exc
    except OSError as exc:
        raise EnrolError("{path}: {why}; run as the user that enrolled", path=exc.filename, why=exc.strerror) from exc
    except msgspec.MsgspecError as exc:
        raise EnrolError("{path}: damaged ({why}); enrol again with a new token", path=folder / ABOUT, why=exc) from exc
    if os.name == "posix" and mode & 0o077:
        raise EnrolError(
            "{path}: readable by others; chmod 600 it, and enrol again if it may have been read", path=files / KEY
        )
    if hashlib.sha256(pems[1]).hexdigest() != about.fingerprint:
        raise EnrolError(
            "{path}: is not the certificate of {about}; enrol again with a new token",
            path=files / CERTIFICATE,
            about=ABOUT,
        )
    key_pem, certificate_pem, ca_pem = pems
    return Identity(
        about.agent, about.collector, about.not_after_ms, key_pem, certificate_pem, ca_pem, about.not_before_ms
    )


def store(identity: Identity, folder: Path) -> None:
    """Takes the place of the identity before, at one moment: when the one file is replaced that names the others."""
    about = _About(
        identity.agent,
        identity.collector,
        identity.not_after_ms,
        hashlib.sha256(identity.certificate_pem).hexdigest(),
        identity.not_before_ms,
    )
    files = folder / about.folder
    files.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_atomic(files / KEY, identity.key_pem)
    write_atomic(files / CERTIFICATE, identity.certificate_pem)
    write_atomic(files / CA, identity.ca_pem)
    sync_folder(files)
    sync_folder(folder)
    write_atomic(folder / ABOUT, msgspec.json.encode(about))
    sync_folder(folder)
    for other in folder.iterdir():
        if other.is_dir() and other != files:
            remove_folder(other)


def machine_hash(path: Path = Path("/etc/machine-id")) -> str:
    """A stable name of this machine that gives its machine id away to nobody; empty where there is none."""
    try:
        text = path.read_text("ascii").strip()
    except (OSError, ValueError):
        return ""
    return hashlib.sha256(b"tocsin machine " + text.encode()).hexdigest() if text else ""


# -------------------------------------------------------------------------------------------------------- the request


def _ask(token: Token, address: str, csr_der: bytes, hostname: str, machine: str) -> Any:
    from tocsin_proto.v1 import tocsin_pb2 as pb

    request = pb.EnrolRequest(token=token.secret, csr_der=csr_der, hostname=hostname[:256], machine=machine)
    credentials = grpc.ssl_channel_credentials(root_certificates=token.ca_pem.encode())
    with grpc.secure_channel(address, credentials, options=(("grpc.enable_http_proxy", 0),)) as channel:
        call = channel.unary_unary(
            METHOD,
            request_serializer=pb.EnrolRequest.SerializeToString,
            response_deserializer=pb.EnrolResponse.FromString,
        )
        try:
            return call(request, timeout=WITHIN_S)
        except grpc.RpcError as exc:
            raise _explained(exc, address) from exc


def _explained(exc: Any, address: str) -> EnrolError:
    code, detail = exc.code(), exc.details() or ""
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        if "CERTIFICATE_VERIFY_FAILED" in detail or "Ssl handshake" in detail or "SSL_ERROR_SSL" in detail:
            return EnrolError(
                "{address}: answers with a certificate that the token's CA did not sign for this address; "
                "check the address, or ask for a token of this collector",
                refused=True,
                address=address,
            )
        return EnrolError(
            "{address}: not reached ({detail}); check address, firewall and that the collector runs",
            address=address,
            detail=detail,
        )
    if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
        return EnrolError(
            "{address}: refuses the token ({detail}); it works once and for a limited time: ask for a new one",
            refused=True,
            address=address,
            detail=detail,
        )
    return EnrolError(
        "{address}: refuses ({code}: {detail})", refused=True, address=address, code=code.name.lower(), detail=detail
    )


def _pins(token: Token) -> bool:
    from tocsin_agent import keys

    return token.pin.lower() in keys.pins(token.ca_pem.encode())


# --------------------------------------------------------------------------------------------------------- the files


def _plain(name: str) -> str:
    """A name in this folder, whatever a damaged file says."""
    if not name.isalnum():
        raise EnrolError("{path}: damaged; enrol again with a new token", path=ABOUT)
    return name


def _writable(folder: Path) -> None:
    """Before the token is spent: a folder that takes no file would waste it."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomic(folder / ".probe", b"")
        (folder / ".probe").unlink()
    except OSError as exc:
        raise EnrolError(
            "{path}: cannot be written ({why}); give a folder that this user owns", path=folder, why=exc.strerror
        ) from exc
