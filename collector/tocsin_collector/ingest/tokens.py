"""One-use enrolment tokens: made for people to carry to a host, kept only as a hash.

The functions are operations for the store's one writer (`Pipeline.administer`): each runs inside one transaction with
whatever else its caller does there. Time and secrets come in as arguments.

Invariant: a token of n uses admits at most n machines; use, agent row and audit line are one transaction.
"""

import base64
import binascii
import re
from hashlib import sha256
from typing import Any

import msgspec

from tocsin_collector.store.base import Statements

PREFIX = "tocsin1."
SECRET_BYTES = 32
TTL_MS = 3_600_000
TTL_MS_MAX = 30 * 86_400_000
USES_MAX = 1000
LIVE_MAX = 1000  # tokens that can still be used, all together
KEPT_MS = 90 * 86_400_000  # dead tokens are listed so long
TEXT_BYTES_MAX = 8 * 1024

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")  # an id of the registry


class TokenError(ValueError):
    """What was asked of a token cannot be: says what would be right."""


class Token(msgspec.Struct, frozen=True):
    """One row of `enrolment_token`, without the hash. device "": the host is named after its hostname."""

    id: str
    device: str
    site: str
    uses_left: int
    created_ms: int
    expires_ms: int
    created_by: str
    revoked_ms: int

    def is_usable(self, now_ms: int) -> bool:
        return self.uses_left > 0 and self.revoked_ms == 0 and now_ms < self.expires_ms


class TokenText(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a token's text carries: where to enrol, whom to trust, the secret."""

    address: str = msgspec.field(name="a")  # "host:port" of the enrolment listener
    pin: str = msgspec.field(name="p")  # SHA-256 of the CA's SubjectPublicKeyInfo, hex
    secret: str = msgspec.field(name="s")  # base64url
    ca_pem: str = msgspec.field(name="c")


def text(address: str, pin: str, ca_pem: bytes, secret: bytes) -> str:
    """The token as it is shown once: `tocsin1.` and base64url of JSON."""
    carried = TokenText(address=address, pin=pin, secret=_base64url(secret), ca_pem=ca_pem.decode("ascii"))
    return PREFIX + _base64url(msgspec.json.encode(carried))


def secret_of(presented: str) -> bytes | None:
    """The secret in a token's whole text, or in its bare `s`; None for what can be neither."""
    if len(presented) > TEXT_BYTES_MAX:
        return None
    try:
        if presented.startswith(PREFIX):
            presented = msgspec.json.decode(_unbase64url(presented.removeprefix(PREFIX)), type=TokenText).secret
        secret = _unbase64url(presented)
    except (ValueError, binascii.Error, msgspec.MsgspecError):
        return None
    return secret if len(secret) == SECRET_BYTES else None


def digest(secret: bytes) -> bytes:
    """What the store keeps. No salt and no stretching: the secret has 256 bits."""
    return sha256(secret).digest()


# ------------------------------------------------------------------------------------------------------- operations


async def create(
    connection: Statements,
    *,
    secret: bytes,
    actor: str,
    now_ms: int,
    device: str = "",
    site: str = "",
    ttl_ms: int = TTL_MS,
    uses: int = 1,
) -> Token:
    """A new token; its id is public and tells nothing of the secret. Raises TokenError before anything is written."""
    assert len(secret) == SECRET_BYTES, len(secret)
    if not 0 < ttl_ms <= TTL_MS_MAX:
        raise TokenError(f"token lifetime: {ttl_ms // 1000} s, between 1 s and {TTL_MS_MAX // 86_400_000} days")
    if not 0 < uses <= USES_MAX:
        raise TokenError(f"token uses: {uses}, between 1 and {USES_MAX}")
    if device and not _NAME.fullmatch(device):
        raise TokenError(f"token device: {device!r} is no id; letters, digits, dot, dash, underscore, at most 63")
    if device and uses != 1:
        raise TokenError(f"token uses: {uses} for the one device {device!r}; name no device, or allow one use")
    if await _live(connection, now_ms) >= LIVE_MAX:
        raise TokenError(f"tokens: {LIVE_MAX} can still be used; revoke some, or wait until they expire")
    hashed = digest(secret)
    token = Token(f"T-{sha256(hashed).hexdigest()[:10]}", device, site, uses, now_ms, now_ms + ttl_ms, actor, 0)
    await connection.execute("DELETE FROM enrolment_token WHERE expires_ms < ?", (now_ms - KEPT_MS,))
    await connection.execute(
        "INSERT INTO enrolment_token (id, hash, device, site, uses_left, created_ms, expires_ms, created_by)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (token.id, hashed, device, site, uses, now_ms, token.expires_ms, actor),
    )
    await audit(connection, now_ms, actor, "token created", {"token": token.id, "device": device, "site": site})
    return token


async def listed(connection: Statements) -> list[Token]:
    """All tokens that are kept, the newest first."""
    return await _select(connection, "ORDER BY created_ms DESC, id")


async def revoke(connection: Statements, id: str, *, actor: str, now_ms: int) -> Token:
    """No further use of it. Doing it again changes nothing. Raises TokenError when there is no such token."""
    found = await _select(connection, "WHERE id = ?", id)
    if not found:
        raise TokenError(f"no token {id!r}; `tocsin token ls` shows those there are")
    token = found[0]
    if token.revoked_ms:
        return token
    await connection.execute("UPDATE enrolment_token SET revoked_ms = ? WHERE id = ?", (now_ms, id))
    await audit(connection, now_ms, actor, "token revoked", {"token": id})
    return msgspec.structs.replace(token, revoked_ms=now_ms)


async def find(connection: Statements, hashed: bytes) -> Token | None:
    """The token of this hash, usable or not: see `Token.is_usable`."""
    found = await _select(connection, "WHERE hash = ?", hashed)
    return found[0] if found else None


async def consume(connection: Statements, token: Token, now_ms: int) -> bool:
    """Take one use. False when there was none left after all: the statement itself decides, whoever asks first."""
    taken = await connection.execute_fetchall(
        "UPDATE enrolment_token SET uses_left = uses_left - 1"
        " WHERE id = ? AND uses_left > 0 AND revoked_ms = 0 AND expires_ms > ? RETURNING id",
        (token.id, now_ms),
    )
    return bool(list(taken))


async def give_back(connection: Statements, token: Token) -> None:
    """Undo `consume` within its transaction: the machine was refused for something that its owner can mend."""
    await connection.execute("UPDATE enrolment_token SET uses_left = uses_left + 1 WHERE id = ?", (token.id,))


async def audit(connection: Statements, now_ms: int, actor: str, action: str, detail: dict[str, str]) -> None:
    """One line of the audit. What came from outside is cut to 300 characters a field."""
    facts = {name: value[:300] for name, value in detail.items() if value}
    await connection.execute(
        "INSERT INTO audit (at_ms, actor, action, detail) VALUES (?, ?, ?, ?)",
        (now_ms, actor[:300], action, msgspec.json.encode(facts).decode()),
    )


async def _select(connection: Statements, where: str, *parameters: Any) -> list[Token]:
    columns = ", ".join(Token.__struct_fields__)
    rows = await connection.execute_fetchall(f"SELECT {columns} FROM enrolment_token {where}", parameters)  # noqa: S608
    return [Token(*row) for row in rows]


async def _live(connection: Statements, now_ms: int) -> int:
    rows = await connection.execute_fetchall(
        "SELECT count(*) FROM enrolment_token WHERE uses_left > 0 AND revoked_ms = 0 AND expires_ms > ?", (now_ms,)
    )
    return sum(int(count) for (count,) in rows)


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def _unbase64url(data: str) -> bytes:
    return base64.b64decode(data.encode("ascii") + b"=" * (-len(data) % 4), altchars=b"-_", validate=True)
