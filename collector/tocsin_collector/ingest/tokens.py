"""One-use enrolment tokens: made for people to carry to a host, kept only as a hash.

The functions are operations for the store's one writer (`Pipeline.administer`): each runs inside one transaction with
whatever else its caller does there. Time and secrets come in as arguments.

Invariant: a token of n uses admits at most n machines; use, agent row and audit line are one transaction.
"""

import base64
import binascii
from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import Any, Protocol

import msgspec

PREFIX = "tocsin1."
SECRET_BYTES = 32
TTL_MS = 3_600_000
TTL_MS_MAX = 30 * 86_400_000
USES_MAX = 1000
LIVE_MAX = 1000  # tokens that can still be used, all together
KEPT_MS = 90 * 86_400_000  # dead tokens are listed so long
TEXT_BYTES_MAX = 8 * 1024


class Cursor(Protocol):
    @property
    def rowcount(self) -> int: ...
    async def fetchone(self) -> Any: ...
    async def fetchall(self) -> Iterable[Any]: ...


class Connection(Protocol):
    """What an operation needs of the writer's connection: aiosqlite's, or one in line."""

    async def execute(self, sql: str, parameters: Sequence[Any] = ..., /) -> Cursor: ...


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
    connection: Connection,
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


async def listed(connection: Connection) -> list[Token]:
    """All tokens that are kept, the newest first."""
    cursor = await connection.execute(f"SELECT {_COLUMNS} FROM enrolment_token ORDER BY created_ms DESC, id")  # noqa: S608
    return [Token(*row) for row in await cursor.fetchall()]


async def revoke(connection: Connection, id: str, *, actor: str, now_ms: int) -> Token:
    """No further use of it. Doing it again changes nothing. Raises TokenError when there is no such token."""
    cursor = await connection.execute(f"SELECT {_COLUMNS} FROM enrolment_token WHERE id = ?", (id,))  # noqa: S608
    row = await cursor.fetchone()
    if row is None:
        raise TokenError(f"no token {id!r}; `tocsin token ls` shows those there are")
    token = Token(*row)
    if token.revoked_ms:
        return token
    await connection.execute("UPDATE enrolment_token SET revoked_ms = ? WHERE id = ?", (now_ms, id))
    await audit(connection, now_ms, actor, "token revoked", {"token": id})
    return msgspec.structs.replace(token, revoked_ms=now_ms)


async def find(connection: Connection, hashed: bytes, now_ms: int) -> Token | None:
    """The token of this hash if it can be used now. Wrong, expired, used up and revoked look the same."""
    cursor = await connection.execute(f"SELECT {_COLUMNS} FROM enrolment_token WHERE hash = ?", (hashed,))  # noqa: S608
    row = await cursor.fetchone()
    token = None if row is None else Token(*row)
    return token if token is not None and token.is_usable(now_ms) else None


async def consume(connection: Connection, token: Token, now_ms: int) -> bool:
    """Take one use. False when there was none left after all: the statement itself decides, whoever asks first."""
    cursor = await connection.execute(
        "UPDATE enrolment_token SET uses_left = uses_left - 1"
        " WHERE id = ? AND uses_left > 0 AND revoked_ms = 0 AND expires_ms > ?",
        (token.id, now_ms),
    )
    return cursor.rowcount == 1


async def audit(connection: Connection, now_ms: int, actor: str, action: str, detail: dict[str, str]) -> None:
    """One line of the audit. What came from outside is cut to 300 characters a field."""
    facts = {name: value[:300] for name, value in detail.items() if value}
    await connection.execute(
        "INSERT INTO audit (at_ms, actor, action, detail) VALUES (?, ?, ?, ?)",
        (now_ms, actor[:300], action, msgspec.json.encode(facts).decode()),
    )


_COLUMNS = "id, device, site, uses_left, created_ms, expires_ms, created_by, revoked_ms"


async def _live(connection: Connection, now_ms: int) -> int:
    cursor = await connection.execute(
        "SELECT count(*) FROM enrolment_token WHERE uses_left > 0 AND revoked_ms = 0 AND expires_ms > ?", (now_ms,)
    )
    return int((await cursor.fetchone())[0])


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def _unbase64url(data: str) -> bytes:
    return base64.b64decode(data.encode("ascii") + b"=" * (-len(data) % 4), altchars=b"-_", validate=True)
