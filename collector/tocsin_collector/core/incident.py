"""One incident, step by step: a table of transitions and the functions that apply it.

Not the question whether something is wrong (detector) nor whether a parent explains it (topology): this file only knows
what becomes of an incident once that is decided. The invariants: a closed incident never changes; `was_told` alternates, so
that the notices of one incident strictly alternate between opened and resolved (law 5).
"""

import math
from enum import Enum

import msgspec

from tocsin_collector.core.model import (
    DECISION_MAX,
    EVIDENCE_MAX,
    Incident,
    IncidentState,
    Severity,
    Step,
)

HELD, SUPPRESSED, OPEN = IncidentState.HELD, IncidentState.SUPPRESSED, IncidentState.OPEN
ACKNOWLEDGED, RESOLVED, CLOSED = IncidentState.ACKNOWLEDGED, IncidentState.RESOLVED, IncidentState.CLOSED


class Happening(Enum):
    RAISED = "raised"  # the finding is there again
    CLEARED = "cleared"  # the finding has ended
    EXPLAINED = "explained"  # all its parents are out of reach
    UNEXPLAINED = "unexplained"  # a parent is back, the finding is still there
    RELEASED = "released"  # nothing explains it in time
    ACKNOWLEDGED = "acknowledged"
    RESOLVED_BY_HAND = "resolved by hand"
    CLOSED_BY_HAND = "closed by hand"
    EXPIRED = "expired"  # resolved long enough


TRANSITIONS: dict[tuple[IncidentState, Happening], IncidentState] = {
    (HELD, Happening.RELEASED): OPEN,
    (HELD, Happening.EXPLAINED): SUPPRESSED,
    (HELD, Happening.CLEARED): CLOSED,
    (SUPPRESSED, Happening.UNEXPLAINED): HELD,
    (SUPPRESSED, Happening.RELEASED): OPEN,
    (SUPPRESSED, Happening.CLEARED): CLOSED,
    (OPEN, Happening.ACKNOWLEDGED): ACKNOWLEDGED,
    (OPEN, Happening.CLEARED): RESOLVED,
    (OPEN, Happening.RESOLVED_BY_HAND): RESOLVED,
    (ACKNOWLEDGED, Happening.CLEARED): RESOLVED,
    (ACKNOWLEDGED, Happening.RESOLVED_BY_HAND): RESOLVED,
    (RESOLVED, Happening.RAISED): OPEN,
    (RESOLVED, Happening.CLOSED_BY_HAND): CLOSED,
    (RESOLVED, Happening.EXPIRED): CLOSED,
}


class NotPossible(Exception):
    """The incident's state does not allow what was asked; says what would."""


def step(incident: Incident, happening: Happening, at_ms: int, entry: Step, now_ms: int) -> Incident:
    """The incident after `happening`, with `entry` in its decision chain. at_ms: event time; now_ms: journal time."""
    state = TRANSITIONS.get((incident.state, happening))
    if state is None:
        raise NotPossible(f"incident {incident.id} is {incident.state.value}: it cannot be {happening.value}")
    changed = msgspec.structs.replace(
        incident,
        state=state,
        resolved_ms=at_ms if state is RESOLVED else 0 if state is OPEN else incident.resolved_ms,
        closed_ms=now_ms if state is CLOSED else 0,
        suppressed_by="" if state in (OPEN, HELD) else incident.suppressed_by,
    )
    return explain(changed, entry)


def explain(incident: Incident, *steps: Step) -> Incident:
    """Add to the decision chain: its beginning is kept, then the newest."""
    chain = incident.decision + steps
    if len(chain) > DECISION_MAX:
        half = DECISION_MAX // 2
        chain = chain[:half] + chain[-half:]
    return msgspec.structs.replace(incident, decision=chain)


def occur(incident: Incident, at_ms: int, value: float) -> Incident:
    """The same fault was seen once more while its incident is there: counted, never a second incident."""
    return msgspec.structs.replace(
        incident,
        occurrences=incident.occurrences + 1,
        last_ms=max(incident.last_ms, at_ms),
        evidence=_newest(incident, at_ms, value),
    )


def worsen(incident: Incident, severity: Severity, at_ms: int, value: float) -> Incident:
    """The severity of the same fault changed, up or down."""
    return msgspec.structs.replace(
        incident,
        severity=severity,
        last_ms=max(incident.last_ms, at_ms),
        evidence=_newest(incident, at_ms, value),
    )


def _newest(incident: Incident, at_ms: int, value: float) -> tuple[tuple[int, float], ...]:
    if not math.isfinite(value):
        return incident.evidence
    return (*incident.evidence, (at_ms, value))[-EVIDENCE_MAX:]
