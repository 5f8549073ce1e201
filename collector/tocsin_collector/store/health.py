"""Whether a database can be trusted, and what is done with one that cannot.

Not a repair: a damaged file is set aside whole for people to look at, never written to again.
The invariant: nothing is deleted here, only renamed.
"""

import sqlite3
import time
from pathlib import Path

CHECK_MS_MAX = 2_000  # for the journal, which may be large; all other tables are always checked whole
_SIDE_FILES = ("", "-wal", "-shm")
_BULK = ("journal", "effect_digest")


def problem_of(connection: sqlite3.Connection) -> str:
    """What `quick_check` has to say, "" when all is well. sqlite3.DatabaseError when even that cannot be asked."""
    names = [name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
    for name in sorted(names, key=lambda name: (name in _BULK, name)):
        if name in _BULK:
            _limit(connection, CHECK_MS_MAX)
        try:
            found = [row[0] for row in connection.execute(f'PRAGMA quick_check("{name}")')]
        except sqlite3.OperationalError as exc:
            if exc.sqlite_errorcode != sqlite3.SQLITE_INTERRUPT:
                raise
            continue  # the bound of a large journal: what is damaged behind it shows when it is read
        finally:
            connection.set_progress_handler(None, 0)
        if found != ["ok"]:
            return f"table {name}: {found[0]}"
    return ""


def quarantine(path: Path, *others: Path) -> Path:
    """Rename the database, its log and whatever refers to it (`others`) to the next free name `.bad-N`."""
    number = 1
    while path.with_name(f"{path.name}.bad-{number}").exists():
        number += 1
    for suffix in _SIDE_FILES:
        side = path.with_name(path.name + suffix)
        if side.exists():
            side.rename(path.with_name(f"{path.name}.bad-{number}{suffix}"))
    for other in others:
        if other.exists():
            other.rename(other.with_name(f"{other.name}.bad-{number}"))
    return path.with_name(f"{path.name}.bad-{number}")


def has_wal_reset_bug(version: tuple[int, int, int]) -> bool:
    """Whether this SQLite can corrupt a WAL that two connections write or checkpoint (sqlite.org/wal.html#walresetbug).

    Fixed in 3.51.3, and in 3.44.6 and 3.50.7 of the older lines. Tocsin has one writer, so it is only told.
    """
    if version < (3, 7, 0) or version >= (3, 51, 3):
        return False
    return not any(version[:2] == fixed[:2] and version >= fixed for fixed in ((3, 44, 6), (3, 50, 7)))


def is_disk_trouble(exc: sqlite3.Error) -> bool:
    """Whether this may heal by itself: full, read-only, failing or busy, but not damaged and no mistake of ours."""
    code = getattr(exc, "sqlite_errorcode", None)
    return code is not None and (code & 0xFF) in _TROUBLE


def is_damage(exc: sqlite3.Error) -> bool:
    """Whether SQLite met pages that it cannot understand."""
    code = getattr(exc, "sqlite_errorcode", None)
    return code is not None and (code & 0xFF) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


_TROUBLE = frozenset(
    (
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PROTOCOL,
    )
)


def _limit(connection: sqlite3.Connection, ms: int) -> None:
    end = time.monotonic() + ms / 1000
    connection.set_progress_handler(lambda: time.monotonic() > end, 10_000)
