"""Which channel knows of which incident: read from the outbox, kept nowhere else.

Not the decision that there is something to tell (the core) and not the telling (`desk/`). Invariant: on each channel the
openings and closings written for an incident alternate, whenever the channel came, went, or was given another name.
"""

from collections.abc import Iterable, Sequence

from tocsin_collector.core.model import Incident, IncidentState, Notice
from tocsin_collector.store.base import Statements
from tocsin_collector.store.bodies import incident_of, text

OPENED, RESOLVED = "opened", "resolved"
CATCH_UP_ROWS_MAX = 500  # written in one transaction

_NEWEST = (  # kind is that of the row with the highest id
    "SELECT channel, kind, max(id) FROM outbox WHERE incident = ? AND kind <> 'updated' GROUP BY channel"
)
_LEFT_OPEN = (
    "SELECT i.body FROM (SELECT incident, kind, max(id) FROM outbox WHERE channel = ? AND kind <> 'updated'"
    " GROUP BY incident) AS o JOIN incident AS i ON i.id = o.incident"
    " WHERE o.kind = 'opened' AND i.state IN ('resolved', 'closed') ORDER BY i.detected_ms, i.id LIMIT ?"
)
_LIVE = "SELECT body FROM incident WHERE state IN ('open', 'acknowledged') ORDER BY detected_ms, id"  # TOLD_STATES


async def addressees(
    connection: Statements, notices: Iterable[Notice], channels: Sequence[str]
) -> list[tuple[Notice, str]]:
    """Whom each notice is written for: an opening for who does not know of the incident, all else for who does."""
    known: dict[str, dict[str, str]] = {}
    found: list[tuple[Notice, str]] = []
    for notice in notices:
        if notice.incident not in known:
            known[notice.incident] = await _newest(connection, notice.incident)
        told = known[notice.incident]
        for channel in channels:
            if (told.get(channel) == OPENED) is not (notice.kind == OPENED):
                found.append((notice, channel))
                if notice.kind in (OPENED, RESOLVED):
                    told[channel] = notice.kind
    return found


async def write(connection: Statements, found: Iterable[tuple[Notice, str]], at_ms: int) -> None:
    """One outbox row each; what is there already stays as it is."""
    await connection.executemany(
        'INSERT OR IGNORE INTO outbox (channel, "key", incident, ordinal, kind, idempotency_key, created_ms, body)'
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        [(channel, *columns(notice, channel, at_ms)) for notice, channel in found],
    )


def columns(notice: Notice, channel: str, at_ms: int) -> tuple[str, str, int, str, str, int, str]:
    """Of an outbox row, behind the channel."""
    key = f"{notice.incident}:{notice.ordinal}:{channel}"
    return notice.snapshot.key, notice.incident, notice.ordinal, notice.kind, key, at_ms, text(notice)


async def catch_up(connection: Statements, channels: Sequence[str], at_ms: int) -> int:
    """Write what channels have missed while they were not configured: one opening for what is open and told to others, one
    closing for what has ended. Returns how many rows; fewer than CATCH_UP_ROWS_MAX: that was all.
    """
    missed: list[tuple[Notice, str]] = []
    for channel in channels:
        over = await connection.execute_fetchall(_LEFT_OPEN, (channel, CATCH_UP_ROWS_MAX))
        missed += [(_notice(incident_of(body), RESOLVED, at_ms), channel) for (body,) in over]
    for (body,) in await connection.execute_fetchall(_LIVE):
        if len(missed) >= CATCH_UP_ROWS_MAX:
            break
        incident = incident_of(body)
        if incident.was_told:
            told = await _newest(connection, incident.id)
            opening = _notice(incident, OPENED, at_ms)
            missed += [(opening, channel) for channel in channels if told.get(channel) != OPENED]
    missed = missed[:CATCH_UP_ROWS_MAX]
    await write(connection, missed, at_ms)
    return len(missed)


async def _newest(connection: Statements, incident: str) -> dict[str, str]:
    """channel -> kind of the newest opening or closing written for it."""
    return {channel: kind for channel, kind, _ in await connection.execute_fetchall(_NEWEST, (incident,))}


def _notice(incident: Incident, kind: str, at_ms: int) -> Notice:
    """With the ordinal of the newest notice that others had of it: the next one comes behind it."""
    moment = incident.resolved_ms or at_ms if incident.state in _OVER else incident.opened_ms
    return Notice(incident.id, max(0, incident.notices - 1), kind, moment, incident)


_OVER = (IncidentState.RESOLVED, IncidentState.CLOSED)
