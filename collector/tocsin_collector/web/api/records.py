"""What the API takes and gives: frozen records, from which /api/v1/openapi.json is generated.

All times are Unix milliseconds; 0: not yet or not known. Texts named `says` and `text` are in the language of Accept-Language.
"""

from typing import Generic, TypeVar

import msgspec


class Wire(msgspec.Struct, frozen=True):
    """Base of the API's records."""


T = TypeVar("T")


class Page(Wire, Generic[T], frozen=True):
    """Some of a list. `next` is the cursor of the rest, "" at the end."""

    items: list[T]
    next: str = ""


class Host(Wire, frozen=True):
    """A device and the state it is in."""

    id: str
    name: dict[str, str]
    site: str
    line: str
    kind: str
    address: str
    state: str
    since_ms: int
    cause: str
    open_incidents: int
    parents: list[str]
    watched_by: str
    owner: str
    tags: dict[str, str]


class Value(Wire, frozen=True):
    """The newest value of one series. `value` null: none yet, or not a number. Counters are rates per second."""

    series: int
    metric: str
    labels: dict[str, str]
    unit: str
    value: float | None
    time_ms: int
    text: str


class HostDetail(Wire, frozen=True):
    host: Host
    values: list[Value]


class Step(Wire, frozen=True):
    at_ms: int
    kind: str
    facts: dict[str, str | int | float]
    text: str


class Incident(Wire, frozen=True):
    id: str
    key: str
    rule: str
    device: str
    site: str
    severity: str
    state: str
    says: str
    opened_ms: int
    detected_ms: int
    last_ms: int
    resolved_ms: int
    closed_ms: int
    occurrences: int
    suppressed_by: str
    acknowledged_by: str
    impact: str
    metric: str
    facts: dict[str, str | int | float]


class Sample(Wire, frozen=True):
    time_ms: int
    value: float | None
    text: str


class Delivery(Wire, frozen=True):
    """One notice to one channel. state: due, sent, dead."""

    channel: str
    ordinal: int
    kind: str
    state: str
    attempts: int
    created_ms: int
    next_ms: int
    delivered_ms: int
    last_error: str


class IncidentDetail(Wire, frozen=True):
    incident: Incident
    timeline: list[Step]
    deliveries: list[Delivery]


class Why(Wire, frozen=True):
    """Everything that led to this incident being opened, held back or told: evidence, decision, suppression, delivery."""

    incident: Incident
    evidence: list[Sample]
    decision: list[Step]
    explained_by: Incident | None
    explains: list[Incident]
    deliveries: list[Delivery]


class Remark(Wire, frozen=True, forbid_unknown_fields=True):
    text: str = ""


class Done(Wire, frozen=True):
    incident: str


class TokenWish(Wire, frozen=True, forbid_unknown_fields=True):
    """device "": named after its hostname. ttl_s at most 30 days, uses at most 1000."""

    device: str = ""
    site: str = ""
    ttl_s: int = 3600
    uses: int = 1


class TokenMade(Wire, frozen=True):
    """`token` is shown this once; only its hash is kept."""

    id: str
    token: str


class Token(Wire, frozen=True):
    id: str
    device: str
    site: str
    uses_left: int
    created_ms: int
    expires_ms: int
    created_by: str
    revoked_ms: int


class Availability(Wire, frozen=True):
    """The six sums of a component's ledger over a period; they sum to the period, to the millisecond.

    ratio: up / (period - unknown - outside - maintenance), null when nothing is known.
    coverage: the part of (period - outside - maintenance) that is known.
    """

    component: str
    from_ms: int
    to_ms: int
    revision: int
    up_ms: int
    degraded_ms: int
    down_ms: int
    unknown_ms: int
    maintenance_ms: int
    outside_ms: int
    ratio: float | None
    coverage: float


class Login(Wire, frozen=True, forbid_unknown_fields=True):
    name: str
    password: str


class LoggedIn(Wire, frozen=True):
    token: str
    role: str
    expires_ms: int
