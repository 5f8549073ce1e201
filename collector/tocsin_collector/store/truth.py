"""What is committed, read back: enough to start an engine without a snapshot.

Not history: only what is still open. The invariants: reading the same database twice gives equal Truths; a row that cannot be
read stops nobody.
"""

import msgspec
import structlog

from tocsin_collector.core.model import (
    ComponentState,
    Config,
    Incident,
    IncidentState,
    LayoutAdded,
    SeriesAdded,
    Severity,
    Splice,
    Truth,
)
from tocsin_collector.store.base import Statements
from tocsin_collector.store.bodies import (
    SERIES_COLUMNS,
    config_of,
    incident_of,
    live_of,
    series_of,
    text,
    unpack_ids,
    unsigned,
)

log = structlog.get_logger(__name__)

UNREADABLE = "unreadable"  # kind of the timeline line of an incident that was closed because of that


async def read_truth(connection: Statements) -> Truth:
    newest = await connection.execute_fetchall(
        'SELECT "offset", received_ms FROM journal ORDER BY "offset" DESC LIMIT 1'
    )
    offset, at_ms = next(iter(newest), (0, 0))
    return Truth(
        offset=offset,
        at_ms=at_ms,
        config=await _config(connection),
        series=await _series(connection),
        layouts=await _layouts(connection),
        incidents=await _incidents(connection),
        tails=await _tails(connection),
        seen=await _seen(connection),
    )


async def _config(connection: Statements) -> Config | None:
    """The newest that can be read."""
    before = 1 << 62
    while rows := list(
        await connection.execute_fetchall(
            'SELECT "offset", body FROM config WHERE "offset" < ? ORDER BY "offset" DESC LIMIT 1', (before,)
        )
    ):
        ((before, body),) = rows
        try:
            return config_of(body)
        except msgspec.MsgspecError as exc:
            log.error("stored configuration cannot be read, taking the one before it", offset=before, problem=str(exc))
    return None


async def _series(connection: Statements) -> tuple[SeriesAdded, ...]:
    rows = await connection.execute_fetchall(f"SELECT {SERIES_COLUMNS} FROM series ORDER BY id")  # noqa: S608
    return tuple(series_of(row) for row in rows)


async def _layouts(connection: Statements) -> tuple[LayoutAdded, ...]:
    rows = await connection.execute_fetchall("SELECT agent, layout, body FROM layout ORDER BY agent, layout")
    return tuple(LayoutAdded(agent, unsigned(layout), tuple(unpack_ids(body))) for agent, layout, body in rows)


async def _incidents(connection: Statements) -> tuple[Incident, ...]:
    rows = await connection.execute_fetchall(
        "SELECT id, body FROM incident WHERE state <> 'closed' ORDER BY detected_ms, id"
    )
    found: list[Incident] = []
    unreadable: list[str] = []
    for id, body in rows:
        try:
            found.append(incident_of(body))
        except msgspec.MsgspecError as exc:
            unreadable.append(id)
            log.error("stored incident cannot be read, it is closed", incident=id, problem=str(exc))
    if unreadable:
        log.error("incidents could not be read", count=len(unreadable))
        await _close(connection, unreadable)
    return tuple(found)


async def _close(connection: Statements, ids: list[str]) -> None:
    """Rows of incidents whose body cannot be read are closed, with what their columns say for a body."""
    ((now_ms,),) = await connection.execute_fetchall("SELECT coalesce(max(received_ms), 0) FROM journal")
    for id in ids:
        (
            (key, rule, device, site, severity, opened_ms, detected_ms, last_ms, resolved_ms),
        ) = await connection.execute_fetchall(
            'SELECT "key", rule, device, site, severity, opened_ms, detected_ms, last_ms, resolved_ms'
            " FROM incident WHERE id = ?",
            (id,),
        )
        state, resolved_ms, closed_ms = IncidentState.CLOSED, resolved_ms or now_ms, now_ms
        closed = Incident(
            id, key, rule, device, Severity(severity), state, opened_ms, detected_ms, last_ms,
            site=site, resolved_ms=resolved_ms, closed_ms=closed_ms,
        )  # fmt: skip
        await connection.execute_fetchall(
            "UPDATE incident SET state = ?, resolved_ms = ?, closed_ms = ?, body = ? WHERE id = ?",
            (state.value, resolved_ms, closed_ms, text(closed), id),
        )
        await connection.execute_fetchall(
            'INSERT INTO timeline (incident, "offset", at_ms, kind, facts) VALUES (?, ?, ?, ?, ?)',
            (id, -1, now_ms, UNREADABLE, "{}"),
        )


async def _tails(connection: Statements) -> tuple[Splice, ...]:
    rows = await connection.execute_fetchall(
        'SELECT component, start_ms, state, cause, revision FROM "interval"'
        " WHERE superseded IS NULL AND end_ms IS NULL ORDER BY component"
    )
    return tuple(
        Splice(component, start_ms, ComponentState(state), cause=cause, revision=revision)
        for component, start_ms, state, cause, revision in rows
    )


async def _seen(connection: Statements) -> tuple[tuple[int, int], ...]:
    """Newest values are no truth, but that these samples were there is; they came in a transaction with their frames."""
    rows = await connection.execute_fetchall("SELECT body FROM live ORDER BY agent")
    return tuple((id, at_ms) for (body,) in rows for id, at_ms, _ in live_of(body))
