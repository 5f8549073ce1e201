"""The bounds of tables that agents can fill: the oldest rows go, a few with each commit, and what went is counted.

Not the journal's trimming (`sqlite.py`), which goes by time. Invariant: after each transaction at most LETTERS_MAX dead
letters of at most LETTERS_BYTES_MAX and at most GAPS_MAX gaps are kept; how many were dropped stands in `refused`, by agent.
"""

from collections.abc import Iterable
from typing import Any

from tocsin_collector.store.base import Statements

LETTERS_MAX = 10_000
LETTERS_BYTES_MAX = 256 * 1024 * 1024
GAPS_MAX = 100_000

LETTERS_DROPPED = "dead letters dropped"
GAPS_DROPPED = "gaps dropped"

# Adding up is not free, and a broken agent may fill one transaction after the other: once for so many letters, and what may
# come in between is kept free.
_ADDED_UP_EVERY = 64
_LETTER_BYTES_MAX = 512 * 1024
_TOO_MUCH = (
    "SELECT max(id) FROM (SELECT id, sum(length(body) + length(detail)) OVER (ORDER BY id DESC) AS bytes FROM dead_letter)"
    " WHERE bytes > ?"
)


async def bound_letters(
    connection: Statements, added: int, at_ms: int, *, rows_max: int = LETTERS_MAX, bytes_max: int = LETTERS_BYTES_MAX
) -> None:
    """Call after `added` letters were written."""
    newest = await _number(connection, "SELECT max(id) FROM dead_letter")
    await _drop(connection, "dead_letter", newest - rows_max, LETTERS_DROPPED, at_ms)
    if newest // _ADDED_UP_EVERY != (newest - added) // _ADDED_UP_EVERY:
        room = max(0, bytes_max - _ADDED_UP_EVERY * _LETTER_BYTES_MAX)
        await _drop(connection, "dead_letter", await _number(connection, _TOO_MUCH, room), LETTERS_DROPPED, at_ms)


async def bound_gaps(connection: Statements, at_ms: int, *, rows_max: int = GAPS_MAX) -> None:
    newest = await _number(connection, "SELECT max(id) FROM gap")
    await _drop(connection, "gap", newest - rows_max, GAPS_DROPPED, at_ms)


async def _drop(connection: Statements, table: str, upto: int, code: str, at_ms: int) -> None:
    if upto <= 0:
        return
    dropped: Iterable[Any] = await connection.execute_fetchall(
        f"SELECT agent, count(*) FROM {table} WHERE id <= ? GROUP BY agent",  # noqa: S608
        (upto,),
    )
    for agent, count in dropped:
        await connection.execute_fetchall(
            "INSERT INTO refused (agent, code, detail, count, last_ms) VALUES (?, ?, '', ?, ?)"
            " ON CONFLICT (agent, code) DO UPDATE SET count = count + excluded.count, last_ms = excluded.last_ms",
            (agent, code, count, at_ms),
        )
    await connection.execute_fetchall(f"DELETE FROM {table} WHERE id <= ?", (upto,))  # noqa: S608


async def _number(connection: Statements, sql: str, *parameters: int) -> int:
    """0 where there is none."""
    ((found,),) = await connection.execute_fetchall(sql, parameters)
    return int(found or 0)
