"""The outbox table: what is due, what came of it, and what gets another try. Statements only.

Rows are written by the store, in the transaction of their incident. The invariant: a row's state, attempts and the line in
its incident's timeline change in one transaction.
"""

from collections.abc import Sequence

import msgspec

from tocsin_collector.desk.schedule import Result
from tocsin_collector.ingest.tokens import audit
from tocsin_collector.store.base import Statements

DELIVERED, FAILED = "delivered", "delivery_failed"  # kinds of timeline lines
NOT_CONFIGURED = "the channel is not configured (any more)"
BY_DELIVERY = -1  # journal offset of timeline lines that no entry led to

# With each row the oldest one of its lane that is in front of it and not settled: due, or a dead opening or closing.
_DUE = (
    'SELECT o.id, o."key", o.incident, o.ordinal, o.kind, o.idempotency_key, o.created_ms, o.attempts, o.next_ms, o.body,'
    " coalesce(f.id, 0), coalesce(f.state = 'dead', 0), coalesce(f.next_ms, 0)"
    " FROM outbox AS o LEFT JOIN outbox AS f ON f.id ="
    ' (SELECT b.id FROM outbox AS b WHERE b.channel = o.channel AND b."key" = o."key" AND b.id < o.id'
    " AND b.state <> 'sent' AND (b.state = 'due' OR b.kind <> 'updated') ORDER BY b.id LIMIT 1)"
    " WHERE o.channel = ? AND o.state = 'due' AND o.id >= ? ORDER BY o.id LIMIT ?"
)


class DueRow(msgspec.Struct, frozen=True):
    """A notice that is not delivered yet. front: id of the row of its lane that comes first, 0 when it is itself.

    When that one is dead, front_ms is when it was given up.
    """

    id: int
    key: str
    incident: str
    ordinal: int
    kind: str
    idempotency_key: str
    created_ms: int
    attempts: int
    next_ms: int
    body: str
    front: int = 0
    is_front_dead: int = 0
    front_ms: int = 0


class Revived(msgspec.Struct, frozen=True):
    id: int
    channel: str
    idempotency_key: str


class RetryError(Exception):
    """A row cannot be told again; says why."""


async def read_due(connection: Statements, channel: str, start: int, limit: int) -> list[DueRow]:
    """Due rows from id `start` on, oldest first."""
    return [DueRow(*row) for row in await connection.execute_fetchall(_DUE, (channel, start, limit))]


async def other_channels(connection: Statements, known: Sequence[str]) -> dict[str, int]:
    """Channels that are not configured (any more), and how many notices wait for each."""
    found = await connection.execute_fetchall(
        "SELECT channel, count(*) FROM outbox WHERE state = 'due' GROUP BY channel"
    )
    return {channel: count for channel, count in found if channel not in known}


async def abandon_others(
    connection: Statements, known: Sequence[str], *, before_ms: int, now_ms: int, limit: int
) -> int:
    """Give up notices, at most `limit`, that wait since before `before_ms` for channels which are not configured."""
    marks = ", ".join("?" * len(known))
    found = list(
        await connection.execute_fetchall(
            "SELECT id, channel, incident, kind, attempts FROM outbox WHERE state = 'due' AND created_ms < ?"  # noqa: S608
            f" AND channel NOT IN ({marks}) ORDER BY id LIMIT ?",
            (before_ms, *known, limit),
        )
    )
    await connection.executemany(
        'INSERT INTO timeline (incident, "offset", at_ms, kind, facts) VALUES (?, ?, ?, ?, ?)',
        [
            (incident, BY_DELIVERY, now_ms, FAILED, _said(channel, kind, attempts, NOT_CONFIGURED))
            for _, channel, incident, kind, attempts in found
        ],
    )
    await connection.executemany(
        "UPDATE outbox SET state = 'dead', next_ms = ?, last_error = ? WHERE id = ?",
        [(now_ms, NOT_CONFIGURED, id) for id, *_ in found],
    )
    return len(found)


async def record(connection: Statements, channel: str, results: Sequence[tuple[DueRow, Result]], now_ms: int) -> None:
    """What attempts have led to; a second time it changes nothing. A dead row's next_ms keeps when it was given up."""
    await connection.executemany(
        'INSERT INTO timeline (incident, "offset", at_ms, kind, facts)'
        " SELECT incident, ?, ?, ?, ? FROM outbox WHERE id = ? AND state = 'due'",
        [
            (BY_DELIVERY, now_ms, DELIVERED if r.state == "sent" else FAILED, _facts(channel, row, r), row.id)
            for row, r in results
            if r.state != "due"
        ],
    )
    await connection.executemany(
        "UPDATE outbox SET state = ?, attempts = ?, next_ms = ?, delivered_ms = ?, last_error = ?"
        " WHERE id = ? AND state = 'due'",
        [(r.state, r.attempts, r.at_ms, r.at_ms if r.state == "sent" else 0, r.error, row.id) for row, r in results],
    )


async def revive(connection: Statements, ids: Sequence[int]) -> None:
    await connection.executemany(
        "UPDATE outbox SET state = 'due', next_ms = 0 WHERE id = ? AND state = 'dead'", [(id,) for id in ids]
    )


async def retry_dead(connection: Statements, id: int, *, actor: str, now_ms: int) -> Revived:
    """Tell a dead notice again, because a person wants it. RetryError: it is not dead, or it has been overtaken."""
    found = list(
        await connection.execute_fetchall(
            "SELECT channel, idempotency_key, state, kind, incident FROM outbox WHERE id = ?", (id,)
        )
    )
    if not found:
        raise RetryError(f"there is no notice {id}")
    ((channel, idempotency_key, state, kind, incident),) = found
    if state != "dead":
        raise RetryError(f"notice {idempotency_key} is {state}; only one that was given up (dead) can be told again")
    # An update holds nothing back, so what came after it may have been told: telling it now would turn time back.
    if kind == "updated" and await _is_overtaken(connection, channel, incident, id):
        raise RetryError(f"notice {idempotency_key} has been overtaken by a later one of the same incident")
    await revive(connection, [id])
    await audit(connection, now_ms, actor, "delivery retried", {"notice": idempotency_key})
    return Revived(id, channel, idempotency_key)


async def _is_overtaken(connection: Statements, channel: str, incident: str, id: int) -> bool:
    later = await connection.execute_fetchall(
        "SELECT 1 FROM outbox WHERE incident = ? AND channel = ? AND id > ? LIMIT 1", (incident, channel, id)
    )
    return bool(list(later))


def _facts(channel: str, row: DueRow, result: Result) -> str:
    return _said(channel, row.kind, result.attempts, result.error)


def _said(channel: str, kind: str, attempts: int, problem: str) -> str:
    facts: dict[str, str | int] = {"channel": channel, "notice": kind, "attempts": attempts}
    if problem:
        facts["problem"] = problem
    return msgspec.json.encode(facts).decode()
