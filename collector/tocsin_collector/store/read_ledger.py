"""Questions to the availability ledger: states now, intervals, sums. Statements on a connection, within its transaction.

Not the ledger's rules (`core/ledger.py`). The invariant: what no row covers is unknown, so that sums always sum to the
period: before a component's first row, and behind the newest journal entry when the collector has stopped.
"""

from tocsin_collector.core import ledger
from tocsin_collector.core.model import ComponentState
from tocsin_collector.store.base import Statements
from tocsin_collector.store.rows import Component, Interval, Page, Sums

STOPPED_AFTER_MS = 15_000  # no tick for so long: the collector is stopped, and nothing is known since
STOPPED = "collector stopped"

_NOW = """
SELECT tail.component, tail.state, coalesce(
    (SELECT before.end_ms FROM "interval" AS before
      WHERE before.component = tail.component AND before.superseded IS NULL
        AND before.start_ms < tail.start_ms AND before.state <> tail.state
      ORDER BY before.start_ms DESC LIMIT 1),
    (SELECT min(first.start_ms) FROM "interval" AS first
      WHERE first.component = tail.component AND first.superseded IS NULL)), tail.cause
FROM "interval" AS tail WHERE tail.superseded IS NULL AND tail.end_ms IS NULL ORDER BY tail.component
"""
_CURRENT = (
    'SELECT start_ms, coalesce(end_ms, 0), state, cause, revision FROM "interval"'
    " WHERE component = ?1 AND superseded IS NULL AND start_ms < ?3 AND start_ms >= coalesce("
    ' (SELECT max(start_ms) FROM "interval" WHERE component = ?1 AND superseded IS NULL AND start_ms <= ?2), ?2)'
    " ORDER BY start_ms LIMIT ?4"
)
_AS_OF = (
    'SELECT start_ms, coalesce(end_ms, 0), state, cause, revision FROM "interval"'
    " WHERE component = ?1 AND revision <= ?5 AND (superseded IS NULL OR superseded > ?5)"
    " AND start_ms < ?3 AND (end_ms IS NULL OR end_ms > ?2) ORDER BY start_ms LIMIT ?4"
)
_ALL = -1


async def newest(connection: Statements) -> tuple[int, int]:
    """Offset and time of the newest journal entry; (0, 0) when there is none."""
    rows = await connection.execute_fetchall('SELECT "offset", received_ms FROM journal ORDER BY "offset" DESC LIMIT 1')
    return next(((offset, received_ms) for offset, received_ms in rows), (0, 0))


async def components(connection: Statements, now_ms: int | None) -> list[Component]:
    found = [Component(*row) for row in await connection.execute_fetchall(_NOW)]
    _, newest_ms = await newest(connection)
    if now_ms is None or now_ms - newest_ms <= STOPPED_AFTER_MS:
        return found
    unknown = ComponentState.UNKNOWN.value
    return [one if one.state == unknown else Component(one.component, unknown, newest_ms, STOPPED) for one in found]


async def intervals(
    connection: Statements, component: str, from_ms: int, to_ms: int, revision: int | None, after: int, limit: int
) -> Page[Interval]:
    """Those that overlap [from_ms, to_ms), by start, not cut to it. after: start_ms of the last one of the page before."""
    rows = await _rows(connection, component, max(from_ms, after + 1), to_ms, revision, limit + 2)
    rows = [row for row in rows if row.start_ms > after]
    shown = rows[:limit]
    return Page(shown, str(shown[-1].start_ms) if len(rows) > limit else "")


async def sums(
    connection: Statements, component: str, from_ms: int, to_ms: int, revision: int | None, now_ms: int | None
) -> Sums:
    offset, newest_ms = await newest(connection)
    rows = [
        ledger.Row(0, row.start_ms, row.end_ms, row.state, row.cause)
        for row in await _rows(connection, component, from_ms, to_ms, revision, _ALL)
    ]
    known_to_ms = max(from_ms, min(to_ms, await _known_to(connection, revision, newest_ms, now_ms, to_ms)))
    total = ledger.sums(rows, from_ms, known_to_ms)
    total[ComponentState.UNKNOWN] += to_ms - known_to_ms
    return Sums(
        component,
        from_ms,
        to_ms,
        offset if revision is None else revision,
        total[ComponentState.UP],
        total[ComponentState.DEGRADED],
        total[ComponentState.DOWN],
        total[ComponentState.UNKNOWN],
        total[ComponentState.MAINTENANCE],
        total[ComponentState.OUTSIDE],
    )


async def _known_to(
    connection: Statements, revision: int | None, newest_ms: int, now_ms: int | None, to_ms: int
) -> int:
    """Up to when the ledger can say anything: nobody knows the future, and a past revision knew nothing of what came after."""
    if revision is not None:
        rows = await connection.execute_fetchall(
            'SELECT received_ms FROM journal WHERE "offset" >= ? ORDER BY "offset" LIMIT 1', (revision,)
        )
        return next((received_ms for (received_ms,) in rows), newest_ms)
    if now_ms is None:
        return to_ms
    return newest_ms if now_ms - newest_ms > STOPPED_AFTER_MS else now_ms


async def _rows(
    connection: Statements, component: str, from_ms: int, to_ms: int, revision: int | None, limit: int
) -> list[Interval]:
    """Rows that overlap [from_ms, to_ms), as they are now, or as they were once entry `revision` was written."""
    period = (component, from_ms, to_ms, limit)
    if revision is None:
        rows = await connection.execute_fetchall(_CURRENT, period)
    else:
        rows = await connection.execute_fetchall(_AS_OF, (*period, revision))
    return [Interval(*row) for row in rows if not row[1] or row[1] > from_ms]
