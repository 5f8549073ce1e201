"""Opening a database: one collector at a time, the settings of its connection, its checks, its shape.

Not what is done with one that is damaged: the caller decides. The invariant: a connection that comes from here is to a
database that passed its checks and has the newest shape.
"""

import fcntl
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import IO, Protocol, TypeVar

import structlog

from tocsin_collector.store import migrate
from tocsin_collector.store.base import StoreError
from tocsin_collector.store.health import has_wal_reset_bug, is_damage, is_disk_trouble, problem_of
from tocsin_collector.store.inline import InlineConnection

log = structlog.get_logger(__name__)
T = TypeVar("T")

PAGE_BYTES = 16_384
CACHE_KIB = 32_768
WAL_BYTES_SOFT = 64 * 1024 * 1024  # from here on a checkpoint also waits a moment for readers

PRAGMAS = (
    f"PRAGMA page_size = {PAGE_BYTES}",  # before the first table, or it has no effect
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    "PRAGMA wal_autocheckpoint = 0",
    "PRAGMA mmap_size = 0",
    "PRAGMA secure_delete = OFF",  # Debian builds it on: each trimmed page would be written once more, as zeros
    f"PRAGMA cache_size = -{CACHE_KIB}",
    f"PRAGMA journal_size_limit = {WAL_BYTES_SOFT}",
    "PRAGMA temp_store = MEMORY",
    "PRAGMA trusted_schema = OFF",
    "PRAGMA busy_timeout = 5000",
)


class Connection(Protocol):
    """What the store needs of a connection: `threaded.connect` gives one, `inline.connect` another."""

    async def whole(self, work: Callable[[InlineConnection], Awaitable[T]]) -> T: ...
    async def close(self) -> None: ...


Connector = Callable[[Path], Awaitable[Connection]]


class DamagedError(Exception):
    """The database cannot be opened or fails its checks."""


def lock_of(path: Path) -> IO[bytes]:
    """One collector per database: a second writer could damage it."""
    file = path.with_name(f"{path.name}.lock").open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        file.close()
        raise StoreError(f"{path}: another collector has this database open; stop it first") from exc
    return file


async def open_checked(path: Path, connect: Connector) -> Connection:
    async def work(connection: InlineConnection) -> migrate.Migrated:
        for pragma in PRAGMAS:
            await connection.execute_fetchall(pragma)
        if problem := problem_of(connection.raw):
            raise DamagedError(problem)
        return migrate.migrate(connection.raw, path, migrate.migrations())

    # Password hashes and the plant's weak points are in it: nobody else's to read, whoever made the folder.
    path.touch(mode=0o600, exist_ok=True)
    path.chmod(0o600)
    connection = await connect(path)
    try:
        migrated = await connection.whole(work)
    except sqlite3.OperationalError as exc:
        await connection.close()
        if is_disk_trouble(exc):
            raise StoreError(f"{path}: cannot open the database: {exc}") from exc
        raise
    except sqlite3.DatabaseError as exc:
        await connection.close()
        if is_damage(exc):
            raise DamagedError(str(exc)) from exc
        raise
    except BaseException:
        await connection.close()
        raise
    _tell(path, migrated)
    return connection


def _tell(path: Path, migrated: migrate.Migrated) -> None:
    log.info("database open", path=str(path), sqlite_version=sqlite3.sqlite_version, database_version=migrated.now)
    if has_wal_reset_bug(sqlite3.sqlite_version_info):
        log.warning(
            "this SQLite can damage a log that two connections write: never open the live database with another program",
            sqlite_version=sqlite3.sqlite_version,
            fixed_in="3.51.3, 3.50.7, 3.44.6",
        )
    if migrated.backup:
        log.warning(
            "database brought to a new shape", found=migrated.found, now=migrated.now, copy=str(migrated.backup)
        )
