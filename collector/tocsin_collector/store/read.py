"""What pages, API and commands ask of the store: a read-only connection, one short transaction per question.

Not a way to change anything: the file is opened `mode=ro`, so that this connection can neither write nor checkpoint.
The invariant: no transaction outlives READ_S_MAX; a longer one would make the writer's log grow.
"""

import sqlite3
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tocsin_collector.core.model import LIVE_STATES, Config, Incident, IncidentState, SeriesAdded, Step
from tocsin_collector.store import migrate, read_ledger, rows
from tocsin_collector.store.base import Statements, StoreError
from tocsin_collector.store.bodies import SERIES_COLUMNS, config_of, incident_of, live_of, series_of, step_of
from tocsin_collector.store.rows import Page

if TYPE_CHECKING:
    from tocsin_collector.store.inline import InlineConnection
    from tocsin_collector.store.opening import Connection

T = TypeVar("T")

READ_S_MAX = 2.0
LIMIT_MAX = 1_000
LIVE_INCIDENTS_MAX = 5_000
_STEPS = 10_000  # of SQLite's machine between two looks at the clock


class ReadTooLongError(Exception):
    """The question took longer than READ_S_MAX and was given up: ask for less."""


class CursorError(ValueError):
    """Not a cursor of this list."""


class Reader:
    """Each method is one read transaction: what it returns belongs together."""

    def __init__(self, connection: "Connection", *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._connection = connection
        self._monotonic = monotonic

    @classmethod
    async def open(cls, path: Path) -> "Reader":
        """StoreError: there is no database, or it is of another version."""
        from tocsin_collector.store.threaded import ThreadedConnection

        connection = ThreadedConnection(partial(open_readonly, path))
        try:
            await connection
        except sqlite3.OperationalError as exc:
            raise StoreError(f"{path}: cannot be read: {exc}; is the collector initialised and running?") from exc
        self = cls(connection)
        version, known = await self._read(_version), migrate.migrations()[-1].version
        if version != known:
            await connection.close()
            raise StoreError(f"{path}: database version {version}, this program reads {known}: start its own collector")
        return self

    async def close(self) -> None:
        await self._connection.close()

    # ------------------------------------------------------------------------------------------------------- what is

    async def newest(self) -> tuple[int, int]:
        """Offset and time of the newest journal entry: how fresh everything else is."""
        return await self._read(read_ledger.newest)

    async def config(self) -> Config | None:
        """The configuration in force."""
        found = await self._all('SELECT body FROM config ORDER BY "offset" DESC LIMIT 1')
        return config_of(found[0][0]) if found else None

    async def series(self, device: str) -> list[SeriesAdded]:
        found = await self._all(f"SELECT {SERIES_COLUMNS} FROM series WHERE device = ? ORDER BY metric, id", device)  # noqa: S608
        return [series_of(row) for row in found]

    async def latest(self, device: str) -> list[rows.Latest]:
        """Newest values of the device's series, those that have one."""

        async def work(connection: Statements) -> list[rows.Latest]:
            own = dict(await connection.execute_fetchall("SELECT id, agent FROM series WHERE device = ?", (device,)))
            found: list[rows.Latest] = []
            for agent in sorted(set(own.values())):
                for (body,) in await connection.execute_fetchall("SELECT body FROM live WHERE agent = ?", (agent,)):
                    # A series that has moved stands in the old agent's row until that one is written again.
                    found += [rows.Latest(*one) for one in live_of(body) if own.get(one[0]) == agent]
            return found

        return await self._read(work)

    async def agents(self) -> list[rows.AgentRow]:
        found = await self._all(
            "SELECT name, uuid, hostname, site, serial, expires_ms, enrolled_ms, revoked_ms, version,"
            " coalesce((SELECT at_ms FROM live WHERE live.agent = agent.name), 0) FROM agent ORDER BY name"
        )
        return [rows.AgentRow(*row) for row in found]

    # -------------------------------------------------------------------------------------------------------- ledger

    async def components(self, now_ms: int | None = None) -> list[rows.Component]:
        """The state of each component. With now_ms: unknown since the newest entry when the collector has stopped."""
        return await self._read(lambda connection: read_ledger.components(connection, now_ms))

    async def intervals(
        self,
        component: str,
        from_ms: int,
        to_ms: int,
        revision: int | None = None,
        *,
        cursor: str = "",
        limit: int = LIMIT_MAX,
    ) -> Page[rows.Interval]:
        """Ledger rows that overlap [from_ms, to_ms), oldest first; as of journal offset `revision`, or as they are."""
        after = _whole_number(cursor) if cursor else -1
        limit = _bounded(limit)
        return await self._read(
            lambda connection: read_ledger.intervals(connection, component, from_ms, to_ms, revision, after, limit)
        )

    async def sums(
        self, component: str, from_ms: int, to_ms: int, revision: int | None = None, now_ms: int | None = None
    ) -> rows.Sums:
        """Milliseconds of the six states over [from_ms, to_ms), summing to it.

        Unknown is also what lies before the component's first row, and, with now_ms, behind the newest journal entry
        when the collector has stopped.
        """
        return await self._read(
            lambda connection: read_ledger.sums(connection, component, from_ms, to_ms, revision, now_ms)
        )

    # ----------------------------------------------------------------------------------------------------- incidents

    async def incidents(
        self,
        *,
        states: Sequence[IncidentState] = (),
        device: str = "",
        site: str = "",
        rank_min: int = 0,
        cursor: str = "",
        limit: int = 50,
    ) -> Page[Incident]:
        """Newest first. states (): all. rank_min: severity and graver. CursorError: `cursor` is not a page's `next`."""
        where, values = _incident_filter(states, device, site, rank_min)
        if cursor:
            opened_ms, _, id = cursor.partition(":")
            where.append("(opened_ms, id) < (?, ?)")
            values += [_whole_number(opened_ms), id]
        limit = _bounded(limit)
        found = await self._all(
            f"SELECT opened_ms, id, body FROM incident WHERE {' AND '.join(where) or 'true'}"  # noqa: S608
            " ORDER BY opened_ms DESC, id DESC LIMIT ?",
            *values,
            limit + 1,
        )
        more = f"{found[limit - 1][0]}:{found[limit - 1][1]}" if len(found) > limit else ""
        return Page([incident_of(body) for _, _, body in found[:limit]], more)

    async def live_incidents(self) -> list[Incident]:
        """Held, suppressed, open and acknowledged ones, gravest first, at most LIVE_INCIDENTS_MAX."""
        found = await self._all(
            f"SELECT body FROM incident WHERE state IN ({_marks(LIVE_STATES)})"  # noqa: S608
            " ORDER BY severity_rank DESC, opened_ms LIMIT ?",
            *[state.value for state in LIVE_STATES],
            LIVE_INCIDENTS_MAX,
        )
        return [incident_of(body) for (body,) in found]

    async def incident(self, id: str) -> Incident | None:
        found = await self._all("SELECT body FROM incident WHERE id = ?", id)
        return incident_of(found[0][0]) if found else None

    async def children(self, id: str) -> list[Incident]:
        """Incidents that this one explains, oldest first, at most LIMIT_MAX."""
        found = await self._all(
            "SELECT body FROM incident WHERE suppressed_by = ? AND suppressed_by <> '' ORDER BY opened_ms, id LIMIT ?",
            id,
            LIMIT_MAX,
        )
        return [incident_of(body) for (body,) in found]

    async def timeline(self, id: str) -> list[Step]:
        """What happened to an incident, in order; the newest LIMIT_MAX of it."""
        found = await self._all(
            "SELECT at_ms, kind, facts FROM timeline WHERE incident = ? ORDER BY id DESC LIMIT ?", id, LIMIT_MAX
        )
        return [step_of(*row) for row in reversed(found)]

    async def deliveries(self, id: str) -> list[rows.Delivery]:
        """Who was told of an incident, or will be; the newest LIMIT_MAX."""
        found = await self._all(
            f"SELECT {', '.join(rows.Delivery._fields)} FROM outbox WHERE incident = ? ORDER BY id DESC LIMIT ?",  # noqa: S608
            id,
            LIMIT_MAX,
        )
        return [rows.Delivery(*row) for row in reversed(found)]

    # -------------------------------------------------------------------------------------------- people and machines

    async def session(self, hashed: bytes, now_ms: int) -> rows.Session | None:
        """Whose api_token this is, by its SHA-256; None when there is none, or it is revoked or over."""
        found = await self._all(
            "SELECT t.id, t.account, a.role, t.label, t.created_ms, t.expires_ms FROM api_token AS t"
            " JOIN account AS a ON a.name = t.account WHERE t.hash = ? AND t.revoked_ms = 0 AND t.expires_ms > ?",
            hashed,
            now_ms,
        )
        return rows.Session(*found[0]) if found else None

    async def accounts(self) -> list[rows.Account]:
        return [
            rows.Account(*row) for row in await self._all("SELECT name, role, created_ms FROM account ORDER BY name")
        ]

    async def enrolment_tokens(self) -> list[rows.EnrolmentToken]:
        """Newest first, at most LIMIT_MAX."""
        found = await self._all(
            f"SELECT {', '.join(rows.EnrolmentToken._fields)} FROM enrolment_token"  # noqa: S608
            " ORDER BY created_ms DESC, id LIMIT ?",
            LIMIT_MAX,
        )
        return [rows.EnrolmentToken(*row) for row in found]

    # ------------------------------------------------------------------------------------------- what was not taken

    async def dead_letters(self, *, cursor: str = "", limit: int = 50) -> Page[rows.DeadLetter]:
        fields = "id, agent, spool_id, seq, received_ms, code, detail, length(body)"
        return await self._newest_first("dead_letter", fields, rows.DeadLetter, cursor, limit)

    async def refused(self) -> list[rows.RefusedRow]:
        """Counts per agent and code, the newest first."""
        found = await self._all(
            "SELECT agent, code, detail, count, last_ms FROM refused ORDER BY last_ms DESC, agent, code LIMIT ?",
            LIMIT_MAX,
        )
        return [rows.RefusedRow(*row) for row in found]

    async def gaps(self, *, cursor: str = "", limit: int = 50) -> Page[rows.GapRow]:
        return await self._newest_first("gap", ", ".join(rows.GapRow._fields), rows.GapRow, cursor, limit)

    async def audit(self, *, cursor: str = "", limit: int = 50) -> Page[rows.AuditRow]:
        return await self._newest_first("audit", ", ".join(rows.AuditRow._fields), rows.AuditRow, cursor, limit)

    # -------------------------------------------------------------------------------------------------------- leaves

    async def _newest_first(
        self, table: str, fields: str, record: Callable[..., T], cursor: str, limit: int
    ) -> Page[T]:
        limit = _bounded(limit)
        before = _whole_number(cursor) if cursor else (1 << 62)
        sql = f"SELECT {fields} FROM {table} WHERE id < ? ORDER BY id DESC LIMIT ?"  # noqa: S608
        found = await self._all(sql, before, limit + 1)
        more = str(found[limit - 1][0]) if len(found) > limit else ""
        return Page([record(*row) for row in found[:limit]], more)

    async def _all(self, sql: str, *values: Any) -> list[Any]:
        async def work(connection: Statements) -> list[Any]:
            return list(await connection.execute_fetchall(sql, values))

        return await self._read(work)

    async def _read(self, work: Callable[[Statements], Awaitable[T]]) -> T:
        async def transaction(connection: "InlineConnection") -> T:
            end = self._monotonic() + READ_S_MAX
            connection.raw.set_progress_handler(lambda: self._monotonic() > end, _STEPS)
            await connection.execute("BEGIN")
            try:
                return await work(connection)
            finally:
                connection.raw.set_progress_handler(None, 0)
                if connection.in_transaction:
                    await connection.execute("ROLLBACK")

        try:
            return await self._connection.whole(transaction)
        except sqlite3.OperationalError as exc:
            if exc.sqlite_errorcode == sqlite3.SQLITE_INTERRUPT:
                raise ReadTooLongError(f"the store took longer than {READ_S_MAX:g} s to answer: ask for less") from exc
            raise


def open_readonly(path: Path) -> sqlite3.Connection:
    uri = f"{path.resolve().as_uri()}?mode=ro"
    connection = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA busy_timeout = 2000")
    connection.execute("PRAGMA mmap_size = 0")
    return connection


async def _version(connection: Statements) -> int:
    ((version,),) = await connection.execute_fetchall("PRAGMA user_version")
    return int(version)


def _incident_filter(
    states: Sequence[IncidentState], device: str, site: str, rank_min: int
) -> tuple[list[str], list[Any]]:
    where: list[str] = []
    values: list[Any] = []
    if states:
        # Closed ones are nearly all there are: then the list's own order is the better way in.
        column = "+state" if IncidentState.CLOSED in states else "state"
        where.append(f"{column} IN ({_marks(states)})")
        values += [state.value for state in states]
    if device:
        where.append("device = ?")
        values.append(device)
    if site:
        where.append("site = ?")
        values.append(site)
    if rank_min:
        where.append("severity_rank >= ?")
        values.append(rank_min)
    return where, values


def _marks(values: Sequence[Any]) -> str:
    return ", ".join("?" * len(values))


def _bounded(limit: int) -> int:
    return max(1, min(limit, LIMIT_MAX))


def _whole_number(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or len(text) > 18:
        raise CursorError(f"not a cursor of this list: {text[:40]!r}")
    return int(text)
