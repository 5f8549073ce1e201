"""What goes into the engine and what comes out of it: frozen records, nothing that acts.

Inputs are Frame, Tick, Command and Config, each inside a journal Entry. Outputs are Effects: wishes that the pipeline
writes in the transaction of the entry. All times are Unix milliseconds; *_ms of an event is event time by the collector's
clock, `detected_ms` and `received_ms` are journal time. Every record encodes the same way each time (msgspec), so
that a replay can be compared by digest.
"""

from enum import StrEnum

import msgspec

from tocsin_proto import records


class Record(msgspec.Struct, frozen=True, omit_defaults=True):
    """Base of the engine's records."""


# ------------------------------------------------------------------------------------------------------------ words


class Severity(StrEnum):
    WARNING = "warning"
    MAJOR = "major"
    CRITICAL = "critical"

    @property
    def rank(self) -> int:
        return _RANKS[self]


_RANKS = {Severity.WARNING: 1, Severity.MAJOR: 2, Severity.CRITICAL: 3}
SEVERITIES = tuple(_RANKS)  # in rising order


class ComponentState(StrEnum):
    """The six states of the availability ledger."""

    UP = "up"
    DEGRADED = "degraded"
    DOWN = "down"
    UNKNOWN = "unknown"
    MAINTENANCE = "maintenance"
    OUTSIDE = "outside"


class IncidentState(StrEnum):
    HELD = "held"  # raised, waiting whether a parent explains it
    SUPPRESSED = "suppressed"  # raised, explained by a parent; nobody is told
    OPEN = "open"
    ACKNOWLEDGED = "acknowledged"
    RESOLVED = "resolved"
    CLOSED = "closed"


LIVE_STATES = (IncidentState.HELD, IncidentState.SUPPRESSED, IncidentState.OPEN, IncidentState.ACKNOWLEDGED)
TOLD_STATES = (IncidentState.OPEN, IncidentState.ACKNOWLEDGED)


class Impact(StrEnum):
    """What a raised rule means for the availability of its component."""

    NONE = "none"
    DEGRADED = "degraded"
    DOWN = "down"


# ---------------------------------------------------------------------------------------------------------- registry


class SnmpAccess(Record, frozen=True):
    """How a device is asked by SNMP. The credential is a name; the secret lives with the agent."""

    version: str = "2c"
    credential: str = "public"
    port: int = 161
    profile: str = ""  # empty: chosen by sysObjectID
    interval_ms: int = 60_000
    timeout_ms: int = 2_000
    retries: int = 1


class Site(Record, frozen=True):
    id: str
    name: dict[str, str] = {}  # by language
    zone: str = "UTC"
    lines: tuple[str, ...] = ()
    cell: int = 0


class Device(Record, frozen=True):
    """A host, switch, controller ... An agent is the device it runs on: `is_agent`, with the agent's name as id."""

    id: str
    site: str
    name: dict[str, str] = {}
    line: str = ""
    address: str = ""
    kind: str = "device"  # "server", "switch", "controller" ...: a word for people
    parents: tuple[str, ...] = ()
    watched_by: str = ""  # agent that polls it; empty for the agent's own host
    snmp: SnmpAccess | None = None
    owner: str = ""
    tags: dict[str, str] = {}
    is_agent: bool = False


class Registry(Record, frozen=True):
    """What there is. `version` rises with every change; everything else refers to it by id."""

    version: int = 0
    sites: tuple[Site, ...] = ()
    devices: tuple[Device, ...] = ()


# ------------------------------------------------------------------------------------------------------------- rules


class Level(Record, frozen=True):
    """One rung of a rule. Which fields are set says which kind of detection it is.

    above/below (float): raised while value > above (or < below); ends at clear_below/clear_above (default: same level).
    is_state: raised while the state series has one of these values; `after`: only when it was one of those before.
    no_data_ms: raised when the series has not been heard of for so long while its agent lives.
    for_ms: must hold so long before it is raised; keep_ms: must be clear so long before it ends.
    """

    severity: Severity
    above: float | None = None
    below: float | None = None
    clear_below: float | None = None
    clear_above: float | None = None
    is_state: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    no_data_ms: int = 0
    for_ms: int = 0
    keep_ms: int = 0


class Rule(Record, frozen=True):
    """One sentence about one metric: for each series of `metric` that `where` matches, at most one open incident.

    where: label, tag, "site", "line", "kind" or "device" -> glob patterns, any of which may match; "!pattern" excludes.
    says: template over the facts of the finding ({device}, {value}, {limit}, every label), translated by its English text.
    """

    id: str
    metric: str
    levels: tuple[Level, ...]
    where: dict[str, tuple[str, ...]] = {}
    says: str = ""
    impact: Impact = Impact.NONE
    is_reachability: bool = False  # its finding is held while a parent may explain it
    runbook: str = ""
    is_built_in: bool = False


# ------------------------------------------------------------------------------------------------------------- inputs


class FrameIn(Record, frozen=True, tag="frame"):
    """A frame of an agent. The pipeline admits each (spool_id, seq) once, in order, before it gets here."""

    agent: str
    spool_id: bytes
    frame: records.Frame


class PulseIn(Record, frozen=True, tag="pulse"):
    """An agent lives: Hello or Pulse. Never changes series; anchors the agent's clock."""

    agent: str
    pulse: records.Pulse


class Tick(Record, frozen=True, tag="tick"):
    """One second of the collector's life. A hole between ticks is time in which the collector was stopped."""


class Command(Record, frozen=True, tag="command"):
    """What a person wants done with an incident: acknowledge, resolve, close, comment."""

    kind: str
    actor: str
    incident: str = ""
    text: str = ""


class Settings(Record, frozen=True):
    """Numbers of the engine that an operator may change."""

    silent_after_ms: int = 45_000  # an agent unheard for so long is silent; evidence older than that is no evidence
    hold_ms: int = 15_000  # how long an unreachable child waits for news of its parents
    reopen_within_ms: int = 300_000
    close_after_ms: int = 86_400_000
    past_ms_max: int = 7 * 86_400_000  # stamps older than this, or
    future_ms_max: int = 300_000  # further ahead, take the time of receipt and a flag


class Config(Record, frozen=True, tag="config"):
    """Registry, rules and settings as they are from here on."""

    registry: Registry
    rules: tuple[Rule, ...]
    settings: Settings = Settings()


Input = FrameIn | PulseIn | Tick | Command | Config


class Entry(Record, frozen=True):
    """One line of the journal. `received_ms` is stamped once, by whoever appends it."""

    offset: int
    received_ms: int
    input: Input


# ------------------------------------------------------------------------------------------------------------ outputs


class Step(Record, frozen=True):
    """One link of a decision chain. `kind` names a sentence (translated for people), `facts` fill it."""

    at_ms: int
    kind: str
    facts: dict[str, str | int | float] = {}


class Incident(Record, frozen=True):
    """One fault, from its first evidence to its end. Never mutated: each change is a new record with the same id."""

    id: str
    key: str
    rule: str
    device: str
    severity: Severity
    state: IncidentState
    opened_ms: int  # event time of the raise
    detected_ms: int  # journal time of the raise
    last_ms: int  # event time of the last occurrence
    says: str = ""  # template; facts fill it
    facts: dict[str, str | int | float] = {}
    site: str = ""
    metric: str = ""
    series: int = -1  # series id, -1: none
    impact: Impact = Impact.NONE
    occurrences: int = 1
    suppressed_by: str = ""  # incident id of the parent
    acknowledged_by: str = ""
    resolved_ms: int = 0  # event time; 0: not yet
    closed_ms: int = 0
    was_told: bool = False  # a notice "opened" went out and no "resolved" since
    notices: int = 0  # how many so far: the ordinal of the next
    evidence: tuple[tuple[int, float], ...] = ()  # (event time, value), newest last, at most EVIDENCE_MAX
    decision: tuple[Step, ...] = ()  # at most DECISION_MAX, the first kept and then the newest


EVIDENCE_MAX = 10
DECISION_MAX = 40


class SeriesAdded(Record, frozen=True, tag="series"):
    id: int
    agent: str
    device: str
    metric: str
    unit: str
    kind: int
    labels: tuple[tuple[str, str], ...] = ()
    states: tuple[tuple[int, str], ...] = ()
    interval_ms: int = 0


class SeriesMoved(Record, frozen=True, tag="moved"):
    """Another agent reports the series from here on."""

    id: int
    agent: str


class LayoutAdded(Record, frozen=True, tag="layout"):
    """The series ids of a layout, in its order (-1: not the agent's to speak for), to read frames after a restart."""

    agent: str
    layout: int
    series: tuple[int, ...]


class IncidentChanged(Record, frozen=True, tag="incident"):
    """The incident as it is now, and what was added to its timeline."""

    incident: Incident
    timeline: tuple[Step, ...] = ()


class Splice(Record, frozen=True, tag="splice"):
    """From `revision` on, the component's ledger says `state` over [start_ms, end_ms); end_ms 0: until further notice."""

    component: str
    start_ms: int
    state: ComponentState
    end_ms: int = 0
    cause: str = ""  # incident key or a word ("agent silent", "no evidence")
    revision: int = 0  # journal offset


class Notice(Record, frozen=True, tag="notice"):
    """To be told, once per channel, in order per incident. kind: opened, updated, resolved."""

    incident: str
    ordinal: int
    kind: str
    at_ms: int
    snapshot: Incident


class Refused(Record, frozen=True, tag="refused"):
    """Something an agent sent that was not taken: counted and kept, never silently dropped."""

    agent: str
    code: str  # "not assigned", "unknown layout", "malformed section"
    detail: str
    count: int = 1


class GapSeen(Record, frozen=True, tag="gap"):
    """An agent declared that it lost data."""

    agent: str
    from_ms: int
    to_ms: int
    reason: str
    frames: int


class CommandAnswer(Record, frozen=True, tag="answer"):
    """What became of a Command. error "" means done."""

    incident: str = ""
    error: str = ""


Effect = SeriesAdded | SeriesMoved | LayoutAdded | IncidentChanged | Splice | Notice | Refused | GapSeen | CommandAnswer


class Truth(Record, frozen=True):
    """What the store has committed, enough to start an engine without a snapshot: it then warms up."""

    offset: int = 0
    at_ms: int = 0  # journal time of that entry: nothing later is known
    config: Config | None = None
    series: tuple[SeriesAdded, ...] = ()
    layouts: tuple[LayoutAdded, ...] = ()
    incidents: tuple[Incident, ...] = ()  # all that are not closed
    tails: tuple[Splice, ...] = ()  # the open-ended current interval of each component
    seen: tuple[tuple[int, int], ...] = ()  # series id, event time of a sample: the newest, or one shortly before it


def incident_id(offset: int, ordinal: int) -> str:
    """From the journal position alone, so that a replay finds the same id. "I-4711", the second of an entry "I-4711.1"."""
    return f"I-{offset}" if ordinal == 0 else f"I-{offset}.{ordinal}"
