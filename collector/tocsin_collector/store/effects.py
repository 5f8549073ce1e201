"""Effects of the engine as rows: what one Transaction writes, in statements.

Not the transaction itself: begin, commit and what to do when the disk is full stand in `sqlite.py`.
The invariant: after every call the current ledger rows of each component tile its life, without hole or overlap.
"""

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import msgspec

from tocsin_collector.core import ledger
from tocsin_collector.core.model import (
    ComponentState,
    Config,
    GapSeen,
    IncidentChanged,
    LayoutAdded,
    Notice,
    Refused,
    SeriesAdded,
    SeriesMoved,
    Splice,
)
from tocsin_collector.store import retention, told
from tocsin_collector.store.base import Letter, Live, Mark, Outcome, Row, Statements
from tocsin_collector.store.bodies import pack_ids, signed, text
from tocsin_collector.store.bounds import bound_gaps, bound_letters

TEXT_CHARS_MAX = 2_000  # of a detail that came from outside

_CHUNKS = (64, 8, 1)  # rows per statement: few statements, few texts to prepare
_SPAN_ROWS = (
    'SELECT id, start_ms, coalesce(end_ms, 0), state, cause FROM "interval"'
    " WHERE component = ?1 AND superseded IS NULL AND start_ms < ?3 AND start_ms >= coalesce("
    ' (SELECT max(start_ms) FROM "interval" WHERE component = ?1 AND superseded IS NULL AND start_ms <= ?2), ?2)'
    " ORDER BY start_ms"
)
_NEXT_START = 'SELECT min(start_ms) FROM "interval" WHERE component = ? AND superseded IS NULL AND start_ms >= ?'
_FOREVER = 1 << 62


async def write_rows(connection: Statements, rows: Sequence[Row]) -> None:
    await insert(connection, 'INSERT INTO journal ("offset", received_ms, kind, agent, spool_id, body)', rows)


async def write_marks(connection: Statements, marks: Sequence[Mark], at_ms: int) -> None:
    await insert(
        connection,
        "INSERT INTO spool (agent, spool_id, high_water, changed_ms)",
        [(*mark, at_ms) for mark in marks],
        "ON CONFLICT (agent, spool_id) DO UPDATE"
        " SET high_water = max(high_water, excluded.high_water), changed_ms = excluded.changed_ms",
    )


async def write_outcomes(connection: Statements, outcomes: Sequence[Outcome], channels: Sequence[str]) -> None:
    """All effects, in order of journal offset within each table."""
    await insert(
        connection,
        'INSERT INTO effect_digest ("offset", digest)',
        [(outcome.offset, outcome.digest) for outcome in outcomes],
    )
    sorted_out: dict[type, list[tuple[Outcome, Any]]] = {}
    for outcome in outcomes:
        for effect in outcome.effects:
            sorted_out.setdefault(type(effect), []).append((outcome, effect))
    for kind, write in _WRITERS.items():
        if kind in sorted_out:
            await write(connection, sorted_out[kind])
    if Notice in sorted_out and channels:
        await _notices(connection, sorted_out[Notice], channels)


async def write_configs(connection: Statements, configs: Iterable[tuple[int, int, Config]]) -> None:
    """One that says what the newest says already is not stored again."""
    for offset, received_ms, config in configs:
        await connection.execute_fetchall(
            'INSERT INTO config ("offset", version, received_ms, body) SELECT ?1, ?2, ?3, ?4 WHERE ?4 IS NOT'
            ' (SELECT body FROM config ORDER BY "offset" DESC LIMIT 1)',
            (offset, config.registry.version, received_ms, text(config)),
        )
        await retention.forget_configs(connection)


async def write_letters(connection: Statements, letters: Sequence[Letter]) -> None:
    await insert(
        connection,
        "INSERT INTO dead_letter (agent, spool_id, seq, received_ms, code, detail, body)",
        [letter._replace(detail=letter.detail[:TEXT_CHARS_MAX]) for letter in letters],
    )
    if letters:
        await bound_letters(connection, len(letters), letters[-1].received_ms)


async def write_live(connection: Statements, live: Sequence[Live]) -> None:
    await insert(
        connection,
        "INSERT INTO live (agent, at_ms, body)",
        live,
        "ON CONFLICT (agent) DO UPDATE SET at_ms = excluded.at_ms, body = excluded.body",
    )


async def insert(connection: Statements, into: str, rows: Sequence[Sequence[Any]], tail: str = "") -> None:
    """`into` VALUES rows `tail`, many rows per statement.

    One statement per row would give up the interpreter once per row, and wait for it again behind a busy event loop.
    """
    start = 0
    for size in _CHUNKS:
        while len(rows) - start >= size:
            chunk = rows[start : start + size]
            marks = "(" + ", ".join("?" * len(chunk[0])) + ")"
            values = ", ".join([marks] * size)
            await connection.execute_fetchall(f"{into} VALUES {values} {tail}", tuple(chain.from_iterable(chunk)))
            start += size


async def splice(connection: Statements, new: Splice) -> None:
    """Apply one splice to the current rows of its component, and fill what would be a hole beside it with unknown."""
    end = new.end_ms or _FOREVER
    if end <= new.start_ms:
        return
    found = await connection.execute_fetchall(_SPAN_ROWS, (new.component, new.start_ms, end))
    superseded, pieces = ledger.splice([ledger.Row(*row) for row in found], new)
    if new.end_ms and pieces[-1].end_ms == new.end_ms:
        pieces += await _bridge(connection, new.component, new.end_ms)
    if superseded:
        marks = ", ".join("?" * len(superseded))
        await connection.execute_fetchall(
            f'UPDATE "interval" SET superseded = ? WHERE id IN ({marks})',  # noqa: S608
            (new.revision, *superseded),
        )
    await insert(
        connection,
        'INSERT INTO "interval" (component, start_ms, end_ms, state, cause, revision)',
        [(new.component, p.start_ms, p.end_ms or None, p.state, p.cause, new.revision) for p in pieces],
    )


async def _bridge(connection: Statements, component: str, end_ms: int) -> list[ledger.Piece]:
    """The unknown stretch from `end_ms` to the next current row, where that does not follow at once."""
    ((next_ms,),) = await connection.execute_fetchall(_NEXT_START, (component, end_ms))
    if next_ms == end_ms:
        return []
    return [ledger.Piece(end_ms, next_ms or 0, ComponentState.UNKNOWN.value, ledger.NO_EVIDENCE)]


# ----------------------------------------------------------------------------------------------- one table per effect

_Found = Sequence[tuple[Outcome, Any]]


async def _series(connection: Statements, found: _Found) -> None:
    await insert(
        connection,
        "INSERT INTO series (id, agent, device, metric, unit, kind, labels, states, interval_ms)",
        [
            (e.id, e.agent, e.device, e.metric, e.unit, int(e.kind), text(e.labels), text(e.states), e.interval_ms)
            for _, e in found
        ],
    )


async def _moves(connection: Statements, found: _Found) -> None:
    await connection.executemany("UPDATE series SET agent = ? WHERE id = ?", [(e.agent, e.id) for _, e in found])


async def _layouts(connection: Statements, found: _Found) -> None:
    await insert(
        connection,
        "INSERT INTO layout (agent, layout, body)",
        [(e.agent, signed(e.layout), pack_ids(e.series)) for _, e in found],
        "ON CONFLICT (agent, layout) DO UPDATE SET body = excluded.body",
    )


async def _incidents(connection: Statements, found: _Found) -> None:
    incidents = [effect.incident for _, effect in found]
    await insert(
        connection,
        'INSERT INTO incident (id, "key", rule, device, site, severity, severity_rank, state, opened_ms, detected_ms,'
        " last_ms, resolved_ms, closed_ms, suppressed_by, body)",
        [
            (i.id, i.key, i.rule, i.device, i.site, i.severity.value, i.severity.rank, i.state.value, i.opened_ms,
             i.detected_ms, i.last_ms, i.resolved_ms, i.closed_ms, i.suppressed_by, text(i))
            for i in incidents
        ],
        "ON CONFLICT (id) DO UPDATE SET severity = excluded.severity, severity_rank = excluded.severity_rank,"
        " state = excluded.state, opened_ms = excluded.opened_ms, last_ms = excluded.last_ms,"
        " resolved_ms = excluded.resolved_ms, closed_ms = excluded.closed_ms,"
        " suppressed_by = excluded.suppressed_by, body = excluded.body",
    )  # fmt: skip
    await insert(
        connection,
        'INSERT INTO timeline (incident, "offset", at_ms, kind, facts)',
        [
            (effect.incident.id, outcome.offset, step.at_ms, step.kind, text(step.facts))
            for outcome, effect in found
            for step in effect.timeline
        ],
    )


async def _splices(connection: Statements, found: _Found) -> None:
    for outcome, effect in found:
        await splice(connection, msgspec.structs.replace(effect, revision=outcome.offset))


async def _refusals(connection: Statements, found: _Found) -> None:
    await insert(
        connection,
        "INSERT INTO refused (agent, code, detail, count, last_ms)",
        [(e.agent, e.code, e.detail[:TEXT_CHARS_MAX], e.count, outcome.received_ms) for outcome, e in found],
        "ON CONFLICT (agent, code) DO UPDATE"
        " SET detail = excluded.detail, count = count + excluded.count, last_ms = excluded.last_ms",
    )


async def _gaps(connection: Statements, found: _Found) -> None:
    await insert(
        connection,
        "INSERT INTO gap (agent, from_ms, to_ms, reason, frames, received_ms)",
        [
            (e.agent, e.from_ms, e.to_ms, e.reason[:TEXT_CHARS_MAX], min(e.frames, _FOREVER), outcome.received_ms)
            for outcome, e in found
        ],
    )
    await bound_gaps(connection, found[-1][0].received_ms)


async def _notices(connection: Statements, found: _Found, channels: Sequence[str]) -> None:
    at_ms = {id(notice): outcome.received_ms for outcome, notice in found}
    await insert(
        connection,
        'INSERT INTO outbox (channel, "key", incident, ordinal, kind, idempotency_key, created_ms, body)',
        [
            (channel, *told.columns(notice, channel, at_ms[id(notice)]))
            for notice, channel in await told.addressees(connection, [notice for _, notice in found], channels)
        ],
    )


_WRITERS = {
    SeriesAdded: _series,
    SeriesMoved: _moves,
    LayoutAdded: _layouts,
    IncidentChanged: _incidents,
    Splice: _splices,
    Refused: _refusals,
    GapSeen: _gaps,
}
