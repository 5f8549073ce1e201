"""The store on SQLite: one file, one writing connection, WAL, `synchronous=FULL`.

Not for readers: they open the file `mode=ro` (`read.py`), and can neither write nor checkpoint. This connection is
the only one that does either, because most versions of SQLite can damage a WAL that two connections write.
The invariant: `commit` returns only after the transaction is on the disk, whole.
"""

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import IO, TypeVar

import structlog

from tocsin_collector.core.model import Truth
from tocsin_collector.store import effects, retention
from tocsin_collector.store.base import Answer, Bounds, CorruptDatabaseError, Mark, Row, Transaction
from tocsin_collector.store.health import is_damage, is_disk_trouble, quarantine
from tocsin_collector.store.inline import InlineConnection
from tocsin_collector.store.opening import (
    PAGE_BYTES,
    WAL_BYTES_SOFT,
    Connection,
    Connector,
    DamagedError,
    lock_of,
    open_checked,
)
from tocsin_collector.store.threaded import connect as threaded
from tocsin_collector.store.truth import read_truth

log = structlog.get_logger(__name__)
T = TypeVar("T")

CHECKPOINT_BYTES = 4 * 1024 * 1024  # small and often: each costs a commit less than its own fsync
WAL_BYTES_MAX = 256 * 1024 * 1024
WAL_HEADROOM_BYTES = 32 * 1024 * 1024  # what one transaction may add; commits pause before the bound, not behind it
READER_MS_MAX = 2_500  # every lawful read transaction ends within 2 s
FORGET_EVERY_MS = 60_000
TRIM_ROWS_MAX = 1_024  # deleted along with one commit
RETRY_S = 0.1
RETRY_S_MAX = 5.0


class SqliteStore:
    """`Store` on one SQLite file. channels: who is told; each Notice becomes one outbox row for each of them."""

    def __init__(
        self,
        path: Path,
        connection: Connection,
        *,
        channels: tuple[str, ...] = (),
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
        incidents_keep_ms: int = retention.INCIDENTS_KEEP_MS,
        lock: IO[bytes] | None = None,
    ) -> None:
        self.path = path
        self.channels = channels
        self.trouble = ""
        self.wal_bytes = 0  # as of the last checkpoint, and an estimate of what came since
        self._connection = connection
        self._pause = pause
        self._lock = lock
        self._incidents_keep_ms = incidents_keep_ms
        self._forget_ms = self._forget_spools_ms = 0  # journal time of the newest look at what is over its time
        self._used_bytes = 0
        self._written_bytes = 0  # about, since the last checkpoint
        self._in_doubt: tuple[Answer, ...] | None = None  # a COMMIT failed: it may have happened all the same

    @classmethod
    async def open(
        cls,
        path: Path,
        *,
        connect: Connector = threaded,
        channels: tuple[str, ...] = (),
        may_start_afresh: bool = False,
        quarantine_with: tuple[Path, ...] = (),
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
        incidents_keep_ms: int = retention.INCIDENTS_KEEP_MS,
    ) -> "SqliteStore":
        """Open or create the database, check it, bring it to the newest shape.

        may_start_afresh: a database that fails its checks is renamed, with the files that refer to it
        (`quarantine_with`: the snapshots), and an empty one is made. Without it: CorruptDatabaseError.
        StoreError as well for a newer or foreign database, and when another collector has it open.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = lock_of(path)
        try:
            try:
                connection = await open_checked(path, connect)
            except DamagedError as exc:
                if not may_start_afresh:
                    raise CorruptDatabaseError(
                        f"{path}: the database is damaged ({exc}). Restore a copy, or allow a fresh start with "
                        "store.start_afresh = true in collector.toml: the damaged file is then kept under another "
                        "name, and its incidents, availability record and high-water marks are lost"
                    ) from exc
                aside = quarantine(path, *quarantine_with)
                log.error(
                    "database damaged, set aside, starting afresh without its history",
                    problem=str(exc),
                    kept=str(aside),
                )
                connection = await open_checked(path, connect)
        except BaseException:
            lock.close()
            raise
        return cls(path, connection, channels=channels, pause=pause, incidents_keep_ms=incidents_keep_ms, lock=lock)

    async def close(self) -> None:
        """Fold the log into the file, so that it can be copied as one, and let go of it."""
        try:
            await self._connection.whole(_checkpoint("TRUNCATE", 0))
        except sqlite3.OperationalError as exc:
            log.warning("log not folded into the database at close", error=str(exc))
        await self.abandon()

    async def abandon(self) -> None:
        """Let go of the file as it is, as a crash would."""
        await self._connection.close()
        if self._lock is not None:
            self._lock.close()

    # ---------------------------------------------------------------------------------------------------- writing

    async def commit(self, transaction: Transaction) -> tuple[Answer, ...]:
        pause_s = RETRY_S
        while True:
            try:
                if self.wal_bytes > WAL_BYTES_MAX - WAL_HEADROOM_BYTES:
                    await self._shrink_wal()
                answers = await self._connection.whole(lambda connection: self._write(connection, transaction))
            except sqlite3.DatabaseError as exc:
                if is_damage(exc):
                    raise CorruptDatabaseError(
                        f"{self.path}: the database was found damaged while in use: {exc}"
                    ) from exc
                if not is_disk_trouble(exc):
                    raise
                self._troubled(str(exc))
            except _WalFullError as exc:
                self._troubled(str(exc))
            else:
                self._healed()
                return answers
            # Nothing was acknowledged: agents keep what they sent, and wait with us.
            await self._pause(pause_s)
            pause_s = min(pause_s * 2, RETRY_S_MAX)

    async def upkeep(self) -> None:
        """Between commits: move what was written from the log into the file, a little at a time."""
        if self._written_bytes < CHECKPOINT_BYTES:
            return
        try:
            await self._checkpoint("PASSIVE", 0)
            if self.wal_bytes > WAL_BYTES_SOFT:
                await self._checkpoint("RESTART", 50)
        except sqlite3.OperationalError as exc:
            if not is_disk_trouble(exc):
                raise
            log.warning("checkpoint put off", error=str(exc))

    async def trim(self, upto: int) -> int:
        async def work(connection: InlineConnection) -> int:
            return await _trim(connection, upto, None, TRIM_ROWS_MAX)

        total = 0
        while deleted := await self._connection.whole(lambda connection: _transact(connection, work)):
            total += deleted
        return total

    async def _write(self, connection: InlineConnection, transaction: Transaction) -> tuple[Answer, ...]:
        if self._in_doubt is not None:
            answers, self._in_doubt = self._in_doubt, None
            if await _holds(connection, transaction):
                return answers

        async def work(connection: InlineConnection) -> tuple[Answer, ...]:
            await effects.write_rows(connection, transaction.rows)
            await effects.write_marks(connection, transaction.marks, transaction.at_ms)
            await effects.write_configs(connection, transaction.configs)
            await effects.write_outcomes(connection, transaction.outcomes, self.channels)
            await effects.write_letters(connection, transaction.letters)
            await effects.write_live(connection, transaction.live)
            if transaction.trim_upto:
                rows_max = min(TRIM_ROWS_MAX, 2 * len(transaction.rows) + 16)
                await _trim(connection, transaction.trim_upto, transaction.trim_before_ms, rows_max)
            await self._forget(connection, transaction.at_ms)
            self._in_doubt = await _operate(connection, transaction)
            return self._in_doubt

        try:
            answers = await _transact(connection, work)
        except Exception as exc:
            if not (isinstance(exc, sqlite3.Error) and is_disk_trouble(exc)):
                self._in_doubt = None  # refused: what comes next is another transaction
            raise
        self._in_doubt = None
        self._written_bytes += _size(transaction)
        return answers

    async def _forget(self, connection: InlineConnection, at_ms: int) -> None:
        """A slice of what is over its time: once in a while, and with each commit for as long as there is more."""
        if abs(at_ms - self._forget_ms) < FORGET_EVERY_MS:
            return
        if await retention.forget_incidents(connection, at_ms - self._incidents_keep_ms) < retention.INCIDENTS_SLICE:
            self._forget_ms = at_ms
        if abs(at_ms - self._forget_spools_ms) >= retention.SPOOLS_EVERY_MS:
            self._forget_spools_ms = at_ms
            await retention.forget_spools(connection, at_ms - retention.SPOOLS_KEEP_MS)

    async def _shrink_wal(self) -> None:
        await self._checkpoint("RESTART", READER_MS_MAX)
        if self.wal_bytes > WAL_BYTES_MAX - WAL_HEADROOM_BYTES:
            raise _WalFullError("the database's log is at its bound: some reader holds it open for longer than 2 s")

    async def _checkpoint(self, mode: str, wait_ms: int) -> None:
        left_pages = await self._connection.whole(_checkpoint(mode, wait_ms))
        self.wal_bytes = left_pages * PAGE_BYTES
        self._written_bytes = 0

    def _troubled(self, problem: str) -> None:
        if self.trouble != problem:
            log.error("store cannot commit, retrying; nothing is acknowledged meanwhile", problem=problem)
        self.trouble = problem

    def _healed(self) -> None:
        if self.trouble:
            log.warning("store commits again", problem=self.trouble)
            self.trouble = ""

    # ---------------------------------------------------------------------------------------------------- reading

    async def read_journal(self, start: int, bytes_max: int) -> list[Row]:
        async def work(connection: InlineConnection) -> list[Row]:
            cursor = await connection.execute(
                'SELECT "offset", received_ms, kind, agent, spool_id, body FROM journal WHERE "offset" >= ? ORDER BY "offset"',
                (start,),
            )
            rows: list[Row] = []
            size = 0
            for found in cursor.raw:
                rows.append(Row(*found))
                size += len(rows[-1].body) + 64
                if size >= bytes_max:
                    break
            await cursor.close()
            return rows

        return await self._connection.whole(work)

    async def bounds(self) -> Bounds:
        return await self._connection.whole(_bounds)

    async def truth(self) -> Truth:
        return await self._connection.whole(lambda connection: _transact(connection, read_truth))

    async def high_waters(self) -> list[Mark]:
        async def work(connection: InlineConnection) -> list[Mark]:
            return [
                Mark(*row) for row in await connection.execute_fetchall("SELECT agent, spool_id, high_water FROM spool")
            ]

        return await self._connection.whole(work)

    async def digests(self, start: int, end: int) -> dict[int, bytes]:
        async def work(connection: InlineConnection) -> dict[int, bytes]:
            sql = 'SELECT "offset", digest FROM effect_digest WHERE "offset" BETWEEN ? AND ?'
            return dict(await connection.execute_fetchall(sql, (start, end)))

        return await self._connection.whole(work)

    async def used_bytes(self) -> int:
        """What the file's pages hold, free ones left out: the journal is by far the largest part. As of before in trouble."""

        async def work(connection: InlineConnection) -> int:
            ((pages,),) = await connection.execute_fetchall("PRAGMA page_count")
            ((free,),) = await connection.execute_fetchall("PRAGMA freelist_count")
            return int(pages - free) * PAGE_BYTES

        try:
            self._used_bytes = await self._connection.whole(work)
        except sqlite3.OperationalError as exc:
            if not is_disk_trouble(exc):
                raise
            log.warning("size of the database not known just now", error=str(exc))
        return self._used_bytes


class _WalFullError(Exception):
    """Commits must wait until a reader lets go of the log."""


async def _transact(connection: InlineConnection, work: Callable[[InlineConnection], Awaitable[T]]) -> T:
    await connection.execute("BEGIN IMMEDIATE")
    try:
        result = await work(connection)
        await connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # a full disk has rolled it back already
            await connection.execute("ROLLBACK")
        raise
    return result


async def _operate(connection: InlineConnection, transaction: Transaction) -> tuple[Answer, ...]:
    """Each operation behind a savepoint of its own: one that is refused takes nothing else with it."""
    answers = []
    for operation in transaction.operations:
        await connection.execute("SAVEPOINT operation")
        try:
            answers.append(Answer(await operation(connection)))
        except sqlite3.OperationalError as exc:
            if is_disk_trouble(exc):
                raise
            answers.append(await _refuse(connection, exc))
            continue
        except Exception as exc:
            answers.append(await _refuse(connection, exc))
            continue
        await connection.execute("RELEASE operation")
    return tuple(answers)


async def _refuse(connection: InlineConnection, exc: Exception) -> Answer:
    await connection.execute("ROLLBACK TO operation")
    await connection.execute("RELEASE operation")
    return Answer(error=exc)


async def _holds(connection: InlineConnection, transaction: Transaction) -> bool:
    return bool(transaction.rows) and (await _bounds(connection)).last >= transaction.rows[-1].offset


async def _bounds(connection: InlineConnection) -> Bounds:
    ((first, last),) = await connection.execute_fetchall(
        'SELECT (SELECT min("offset") FROM journal), (SELECT max("offset") FROM journal)'
    )
    return Bounds(1, 0) if last is None else Bounds(first, last)


async def _trim(connection: InlineConnection, upto: int, before_ms: int | None, rows_max: int) -> int:
    """Delete the oldest entries, at most `rows_max`, up to offset `upto`, received before `before_ms` (None: any)."""
    first, last = await _bounds(connection)
    upto = min(upto, last - 1, first + rows_max - 1)
    if before_ms is not None:
        ((upto,),) = await connection.execute_fetchall(
            'SELECT max("offset") FROM journal WHERE "offset" BETWEEN ? AND ? AND received_ms < ?',
            (first, upto, before_ms),
        )
    if upto is None or upto < first:
        return 0
    await connection.execute_fetchall('DELETE FROM effect_digest WHERE "offset" <= ?', (upto,))
    return (await connection.execute('DELETE FROM journal WHERE "offset" <= ?', (upto,))).rowcount


def _checkpoint(mode: str, wait_ms: int) -> Callable[[InlineConnection], Awaitable[int]]:
    async def work(connection: InlineConnection) -> int:
        """Pages that the log holds and the next writer cannot start over."""
        await connection.execute_fetchall(f"PRAGMA busy_timeout = {wait_ms}")
        try:
            ((is_busy, pages, moved),) = await connection.execute_fetchall(f"PRAGMA wal_checkpoint({mode})")
        finally:
            await connection.execute_fetchall("PRAGMA busy_timeout = 5000")
        return 0 if not is_busy and mode != "PASSIVE" else int(pages if pages != moved else 0)

    return work


def _size(transaction: Transaction) -> int:
    """About what a transaction adds to the log: its bodies, and some pages for whatever else it touches."""
    bodies = sum([len(row.body) + 64 for row in transaction.rows]) + sum([len(live.body) for live in transaction.live])
    effects_count = sum([len(outcome.effects) for outcome in transaction.outcomes])
    return bodies + min(effects_count, 1_000) * 8_192 + 6 * PAGE_BYTES
