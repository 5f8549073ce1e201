"""What is committed, read back: enough to start an engine without a snapshot.

Not history: only what is still open. The invariant: reading the same database twice gives equal Truths.
"""

from tocsin_collector.core.model import ComponentState, Config, Incident, LayoutAdded, SeriesAdded, Splice, Truth
from tocsin_collector.store.base import Statements
from tocsin_collector.store.bodies import (
    SERIES_COLUMNS,
    config_of,
    incident_of,
    live_of,
    series_of,
    unpack_ids,
    unsigned,
)


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
    rows = await connection.execute_fetchall('SELECT body FROM config ORDER BY "offset" DESC LIMIT 1')
    return next((config_of(body) for (body,) in rows), None)


async def _series(connection: Statements) -> tuple[SeriesAdded, ...]:
    rows = await connection.execute_fetchall(f"SELECT {SERIES_COLUMNS} FROM series ORDER BY id")  # noqa: S608
    return tuple(series_of(row) for row in rows)


async def _layouts(connection: Statements) -> tuple[LayoutAdded, ...]:
    rows = await connection.execute_fetchall("SELECT agent, layout, body FROM layout ORDER BY agent, layout")
    return tuple(LayoutAdded(agent, unsigned(layout), tuple(unpack_ids(body))) for agent, layout, body in rows)


async def _incidents(connection: Statements) -> tuple[Incident, ...]:
    rows = await connection.execute_fetchall(
        "SELECT body FROM incident WHERE state <> 'closed' ORDER BY detected_ms, id"
    )
    return tuple(incident_of(body) for (body,) in rows)


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
