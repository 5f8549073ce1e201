"""What is forgotten after its time: closed incidents with all that was said of them, spools that are gone, old configurations.

Not the journal (`sqlite.py`) and not what agents may fill (`bounds.py`); the ledger forgets nothing, an auditor recomputes it.
Invariant: nothing that is open, and no notice that is still to be told, is ever forgotten; each call takes a slice of it.
"""

from tocsin_collector.store.base import Statements

DAY_MS = 86_400_000
INCIDENTS_KEEP_MS = 400 * DAY_MS
SPOOLS_KEEP_MS = 30 * DAY_MS
SPOOLS_EVERY_MS = 3_600_000
CONFIGS_MAX = 1_000
INCIDENTS_SLICE = 16

# By the time of opening, which is indexed: what is closed long ago was opened longer ago.
_CLOSED = (
    "SELECT id FROM incident AS i WHERE opened_ms < ?1 AND state = 'closed' AND closed_ms < ?1"
    " AND NOT EXISTS (SELECT 1 FROM outbox WHERE incident = i.id AND state = 'due') ORDER BY opened_ms LIMIT ?2"
)


async def forget_incidents(connection: Statements, before_ms: int, limit: int = INCIDENTS_SLICE) -> int:
    """Those that were closed before this moment, the oldest first. Returns how many; fewer than `limit`: that was all."""
    ids = [id for (id,) in await connection.execute_fetchall(_CLOSED, (before_ms, limit))]
    marks = ", ".join("?" * len(ids))
    for table, column in (("timeline", "incident"), ("outbox", "incident"), ("incident", "id")):
        if ids:
            await connection.execute_fetchall(f"DELETE FROM {table} WHERE {column} IN ({marks})", ids)  # noqa: S608
    return len(ids)


async def forget_spools(connection: Statements, before_ms: int) -> None:
    """Those that nothing came from since, but for each agent's newest: it may only have been switched off."""
    await connection.execute_fetchall(
        "DELETE FROM spool WHERE changed_ms < ? AND changed_ms <"
        " (SELECT max(changed_ms) FROM spool AS other WHERE other.agent = spool.agent)",
        (before_ms,),
    )


async def forget_configs(connection: Statements, most: int = CONFIGS_MAX) -> None:
    await connection.execute_fetchall(
        'DELETE FROM config WHERE "offset" <= (SELECT "offset" FROM config ORDER BY "offset" DESC LIMIT 1 OFFSET ?)',
        (most,),
    )
