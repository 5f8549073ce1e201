"""The next certificate, for a new key, asked with the present one: a short-lived program of its own.

`python -m tocsin_agent.renewal FOLDER ADDRESS`; what it found out is one JSON line on stdout. Not when to renew (`renewer`).
A process of its own because cryptography costs ten megabytes for a second of use once in weeks.

Invariant: the present identity stays as it is until the new one lies beside it whole; no secret is in argv, on stdout or
in a message.
"""

import sys
from pathlib import Path
from typing import Any, Final

import grpc
import msgspec

from tocsin_agent import identity
from tocsin_agent.identity import EnrolError, Identity

METHOD: Final = "/tocsin.v1.Enrolment/Renew"
WITHIN_S: Final = 30.0


class Outcome(msgspec.Struct, frozen=True):
    """`problem` empty: renewed, the new identity is in the folder."""

    problem: str = ""


class RenewalError(Exception):
    """Not renewed; the text says why."""


def renew(folder: Path, address: str) -> Identity:
    """The new identity, stored in `folder`; blocks for up to WITHIN_S. RenewalError: the present one holds."""
    from tocsin_agent import keys

    try:
        present = identity.load(folder)
    except EnrolError as exc:
        raise RenewalError(str(exc)) from exc
    if present is None:
        raise RenewalError(f"{folder}: no identity to renew")
    key = keys.new_key()
    reply = _ask(present, address, keys.request(key))
    try:
        issued = keys.issued(reply.certificate_pem, reply.ca_pem, key)
        if issued.uris != keys.uris(present.certificate_pem):
            raise RenewalError("the collector's new certificate is for another agent; its log says more")
    except ValueError as exc:
        raise RenewalError(str(exc)) from exc
    if not issued.pins & keys.pins(present.ca_pem):
        # A change of authority goes by a bundle of both: else one wrong answer would lock this agent out for good.
        raise RenewalError("the collector answers with authorities of which none was trusted before")
    if issued.not_after_ms < present.not_after_ms:
        raise RenewalError("the collector's new certificate ends before the present one")
    renewed = msgspec.structs.replace(
        present,
        not_before_ms=issued.not_before_ms,
        not_after_ms=issued.not_after_ms,
        key_pem=issued.key_pem,
        certificate_pem=issued.certificate_pem,
        ca_pem=issued.ca_pem,
    )
    try:
        identity.store(renewed, folder)
    except OSError as exc:
        raise RenewalError(f"{folder}: cannot be written ({exc.strerror})") from exc
    return renewed


def _ask(present: Identity, address: str, csr_der: bytes) -> Any:
    from tocsin_proto.v1 import tocsin_pb2 as pb

    credentials = grpc.ssl_channel_credentials(present.ca_pem, present.key_pem, present.certificate_pem)
    with grpc.secure_channel(address, credentials, options=(("grpc.enable_http_proxy", 0),)) as channel:
        call = channel.unary_unary(
            METHOD,
            request_serializer=pb.RenewRequest.SerializeToString,
            response_deserializer=pb.RenewResponse.FromString,
        )
        try:
            return call(pb.RenewRequest(csr_der=csr_der), timeout=WITHIN_S)
        except grpc.RpcError as exc:
            error: Any = exc
            code = error.code().name.lower().replace("_", " ")
            raise RenewalError(f"{address}: {code}: {error.details() or 'no reason given'}") from exc


def main(argv: list[str]) -> int:
    folder, address = argv
    try:
        renew(Path(folder), address)
        outcome = Outcome()
    except RenewalError as exc:
        outcome = Outcome(str(exc))
    except ModuleNotFoundError as exc:
        if (exc.name or "").startswith("tocsin"):
            raise
        outcome = Outcome(f"{exc.name} is not installed: pip install tocsin[agent]")
    sys.stdout.write(msgspec.json.encode(outcome).decode() + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
