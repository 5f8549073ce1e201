"""What `tocsin-collector init` makes: settings file, certificate authority, store, first administrator.

Not the running collector (`app.py`). Invariant: what is there is left as it is; doing it again adds only what is missing and
says so.
"""

import secrets
import sqlite3
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tocsin_collector import accounts
from tocsin_collector.accounts import AccountError
from tocsin_collector.config import CollectorConfig, Paths
from tocsin_collector.ingest.authority import Authority
from tocsin_collector.store.base import Answer, StoreError, Transaction
from tocsin_collector.store.sqlite import SqliteStore
from tocsin_proto.settings_print import render

PASSWORD_BYTES = 12


class Made(NamedTuple):
    """One thing. is_new False: it was there and was left alone."""

    what: str
    where: str
    is_new: bool


class Foundation(NamedTuple):
    """password: of the new administrator when none was given, shown once; "" otherwise."""

    made: tuple[Made, ...]
    password: str


def write_settings(file: Path, state: str, names: tuple[str, ...]) -> Made:
    """collector.toml with what differs from the defaults. One that is there is not touched."""
    if file.exists():
        return Made("settings", str(file), False)
    lines = ["# Every key, its default and what it means: config/collector.toml of the source, or the manual.\n"]
    lines += [f"state = {render(state)}\n"] if state else []
    lines += [f"names = {render(names)}\n"]
    file.parent.mkdir(parents=True, exist_ok=True)
    partial_file = file.with_suffix(".new")
    partial_file.write_text("".join(lines))
    partial_file.replace(file)
    return Made("settings", str(file), True)


async def lay(
    config: CollectorConfig, paths: Paths, *, admin: str, password: str, clock: Callable[[], int]
) -> Foundation:
    """Everything in the state folder. Raises AuthorityError, StoreError, AccountError or OSError; what was made stays."""
    paths.state.mkdir(parents=True, exist_ok=True, mode=0o700)
    made = [*(_folder(name, path) for name, path in (("registry", paths.registry), ("rules", paths.rules)))]
    if paths.secrets == paths.state / "secrets":
        made.append(_folder("secrets", paths.secrets, mode=0o700))
    made.append(_authority(paths, config.names, clock()))
    found = administrators(paths.database)
    if found is not None and found > 0:
        kept = Made("store", str(paths.database), False)
        return Foundation((*made, kept, Made("administrator", f"{found} there", False)), "")
    is_new = not paths.database.exists()
    shown = "" if password else secrets.token_urlsafe(PASSWORD_BYTES)
    await _administrator(paths, admin, accounts.hash_password(password or shown), clock())
    made += [Made("store", str(paths.database), is_new), Made("administrator", admin, True)]
    return Foundation(tuple(made), shown)


def administrators(database: Path) -> int | None:
    """How many there are; None without a store. Reads only: a running collector is not disturbed. Raises StoreError."""
    if not database.exists():
        return None
    try:
        connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
        try:
            return int(connection.execute("SELECT count(*) FROM account WHERE role = 'admin'").fetchone()[0])
        finally:
            connection.close()
    except sqlite3.OperationalError:
        return 0  # no table yet: an `init` that was cut off
    except sqlite3.DatabaseError as error:
        raise StoreError(f"{database}: {error}; restore a copy, or move it away") from error


def _authority(paths: Paths, names: tuple[str, ...], now_ms: int) -> Made:
    where = str(paths.authority)
    if not (paths.authority / "ca.key").exists() and not (paths.authority / "ca.crt").exists():
        Authority.create(paths.authority, names, now_ms)
        return Made("certificate authority", where, True)
    authority = Authority.load(paths.authority, now_ms)
    if names and set(names) - set(authority.server.names):
        authority.renew_server(now_ms, names)
        return Made(f"server certificate for {', '.join(names)}", where, True)
    return Made("certificate authority", where, False)


async def _administrator(paths: Paths, name: str, password_hash: str, now_ms: int) -> None:
    """In a transaction of the store's own writer. Raises StoreError when a collector has the store open."""
    store = await SqliteStore.open(paths.database)
    try:
        create = partial(
            accounts.create, name=name, password_hash=password_hash, role="admin", actor="init", now_ms=now_ms
        )
        (answer,) = await store.commit(Transaction(operations=(create,), at_ms=now_ms))
    finally:
        await store.close()
    _raise(answer)


def _raise(answer: Answer) -> None:
    if isinstance(answer.error, AccountError | StoreError):
        raise answer.error
    assert answer.error is None, answer.error


def _folder(what: str, path: Path, mode: int = 0o755) -> Made:
    is_new = not path.is_dir()
    path.mkdir(parents=True, exist_ok=True, mode=mode)
    return Made(what, str(path), is_new)
