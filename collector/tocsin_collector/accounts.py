"""People and their passwords: accounts, and the sessions and API tokens that stand for them.

Not the question what a role may do (the web process asks that of every route). The async functions are operations for the
store's one writer: they await nothing but the connection. Invariant: a password is never stored and a token only as its hash;
whether an account exists cannot be told from the answer nor from the time it takes.
"""

import re
from hashlib import sha256
from typing import Literal, NamedTuple

from tocsin_collector.ingest.tokens import audit
from tocsin_collector.store.base import Statements

Role = Literal["viewer", "operator", "admin"]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,62}")
PASSWORD_CHARS_MIN = 10
PASSWORD_CHARS_MAX = 1024
ACCOUNTS_MAX = 10_000
SESSIONS_MAX = 100_000
SESSION_KEPT_MS = 7 * 86_400_000  # ended sessions are listed so long
# What an unknown account's password is compared with: the same work as for a known one (argon2id, m=64 MiB, t=3, p=4).
NOBODY = "$argon2id$v=19$m=65536,t=3,p=4$12c002xNugGckfVEbKXMPQ$zdVdkIGBevTX1FK0Y3QeHI0OQFyUAn3U1B7s57UBnPQ"


class AccountError(ValueError):
    """What was asked of an account cannot be: says what would be right."""


class Account(NamedTuple):
    name: str
    password_hash: str
    role: Role


def hash_password(password: str) -> str:
    """Blocking, about 0.1 s and 64 MiB: run it in a thread. Raises AccountError for a password that is too short."""
    from argon2 import PasswordHasher

    if not PASSWORD_CHARS_MIN <= len(password) <= PASSWORD_CHARS_MAX:
        raise AccountError(
            f"password: {len(password)} characters, between {PASSWORD_CHARS_MIN} and {PASSWORD_CHARS_MAX} are allowed"
        )
    return PasswordHasher().hash(password)


def is_password(account: Account | None, password: str) -> bool:
    """Blocking like `hash_password`. Nobody has no password, and finding that out takes as long as a wrong one."""
    from argon2 import PasswordHasher
    from argon2.exceptions import Argon2Error, InvalidHashError

    if len(password) > PASSWORD_CHARS_MAX:
        return False
    try:
        matches = PasswordHasher().verify(account.password_hash if account else NOBODY, password)
    except (Argon2Error, InvalidHashError):
        return False
    return matches and account is not None


def token_hash(secret: str) -> bytes:
    """What the store keeps of a session's or an API token's secret. It has 256 bits: no salt, no stretching."""
    return sha256(secret.encode()).digest()


# ------------------------------------------------------------------------------------------------------- operations


async def create(
    connection: Statements, *, name: str, password_hash: str, role: Role, actor: str, now_ms: int
) -> Account:
    """A new account. Raises AccountError when the name is taken or cannot be one."""
    if not NAME.fullmatch(name):
        raise AccountError(f'account "{name[:80]}": a name has letters, digits and . _ @ -, at most 63')
    if await find(connection, name) is not None:
        raise AccountError(f'account "{name}": there already')
    cursor = await connection.execute("SELECT count(*) FROM account")
    if (await cursor.fetchone())[0] >= ACCOUNTS_MAX:
        raise AccountError(f"accounts: {ACCOUNTS_MAX} are there, no more are allowed")
    await connection.execute(
        "INSERT INTO account (name, password_hash, role, created_ms) VALUES (?, ?, ?, ?)",
        (name, password_hash, role, now_ms),
    )
    await audit(connection, now_ms, actor, "account created", {"account": name, "role": role})
    return Account(name, password_hash, role)


async def find(connection: Statements, name: str) -> Account | None:
    cursor = await connection.execute("SELECT name, password_hash, role FROM account WHERE name = ?", (name,))
    row = await cursor.fetchone()
    return None if row is None else Account(*row)


async def start_session(
    connection: Statements, account: Account, secret: str, *, label: str, ttl_ms: int, now_ms: int
) -> str:
    """A row that stands for a login; returns its public id. Raises AccountError when the account went meanwhile."""
    if await find(connection, account.name) != account:
        raise AccountError("the account changed while its password was checked; log in again")
    await connection.execute("DELETE FROM api_token WHERE expires_ms < ?", (now_ms - SESSION_KEPT_MS,))
    cursor = await connection.execute("SELECT count(*) FROM api_token")
    if (await cursor.fetchone())[0] >= SESSIONS_MAX:
        raise AccountError(f"sessions: {SESSIONS_MAX} are open; wait until some have ended")
    hashed = token_hash(secret)
    id = f"S-{sha256(hashed).hexdigest()[:12]}"
    await connection.execute(
        "INSERT INTO api_token (id, hash, account, label, created_ms, expires_ms) VALUES (?, ?, ?, ?, ?, ?)",
        (id, hashed, account.name, label[:200], now_ms, now_ms + ttl_ms),
    )
    await audit(connection, now_ms, account.name, "login", {"session": id})
    return id


async def end_session(connection: Statements, hashed: bytes, now_ms: int) -> bool:
    """Whether there was one to end. Ending it again changes nothing."""
    cursor = await connection.execute(
        "UPDATE api_token SET revoked_ms = ? WHERE hash = ? AND revoked_ms = 0", (now_ms, hashed)
    )
    return bool(cursor.rowcount == 1)
