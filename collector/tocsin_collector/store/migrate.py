"""Which shape a database has, and how it gets the newest one: numbered SQL files, applied in order, once each.

Not a way back: a database of a newer Tocsin is refused, and before a change of shape the file is copied whole.
The invariant: a migration and its number become durable together.
"""

import sqlite3
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from tocsin_collector.store.base import NewerDatabaseError, StoreError

APPLICATION_ID = 0x546F6373  # "Tocs", at a fixed place in the file's header


class Migration(NamedTuple):
    version: int
    name: str
    sql: str


class Migrated(NamedTuple):
    """backup: the copy made before, None for a new database or one that was up to date."""

    found: int
    now: int
    backup: Path | None


def migrations() -> list[Migration]:
    """The SQL files of this package, by number; they count from 1 without a hole."""
    files = sorted(resources.files("tocsin_collector.store").joinpath("sql").iterdir(), key=lambda file: file.name)
    found = [
        Migration(int(f.name[:4]), f.name, f.read_text(encoding="utf-8")) for f in files if f.name.endswith(".sql")
    ]
    assert [m.version for m in found] == list(range(1, len(found) + 1)), [m.name for m in found]
    return found


def migrate(connection: sqlite3.Connection, path: Path, known: list[Migration]) -> Migrated:
    """Bring the database of `connection` to the newest of `known`.

    NewerDatabaseError: it is ahead of this program. StoreError: it is not a database of Tocsin at all.
    """
    version = user_version(connection)
    newest = known[-1].version
    _refuse_foreign(connection, path, version)
    if version > newest:
        raise NewerDatabaseError(
            f"{path}: written by a newer Tocsin (database version {version}, this program knows {newest}): "
            f"install that version again, or restore the copy made before the upgrade ({path.name}.before-*)"
        )
    backup = _backup(connection, path, version) if 0 < version < newest else None
    for migration in known[version:]:
        _apply(connection, migration)
    return Migrated(version, newest, backup)


def _apply(connection: sqlite3.Connection, migration: Migration) -> None:
    try:
        connection.executescript(
            f"BEGIN IMMEDIATE;\n{migration.sql}\n;PRAGMA application_id = {APPLICATION_ID};"
            f"PRAGMA user_version = {migration.version};\nCOMMIT;"
        )
    except BaseException:
        if connection.in_transaction:
            connection.rollback()
        raise


def user_version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _refuse_foreign(connection: sqlite3.Connection, path: Path, version: int) -> None:
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if (version or tables) and application != APPLICATION_ID:
        raise StoreError(f"{path}: a database of another program; name another state folder in collector.toml")


def _backup(connection: sqlite3.Connection, path: Path, version: int) -> Path:
    """A whole copy beside the file. Made under another name first, so that half a copy is never taken for one."""
    backup = path.with_name(f"{path.name}.before-{version + 1:04}")
    partial = backup.with_name(f"{backup.name}.partial")
    partial.unlink(missing_ok=True)
    target = sqlite3.connect(partial)
    try:
        connection.backup(target, pages=4096)
    finally:
        target.close()
    partial.replace(backup)
    return backup
