"""What readers get: rows of the store as frozen records. Times are Unix milliseconds, 0: not yet or never."""

from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class Page(NamedTuple, Generic[T]):
    """next: cursor of the page behind this one, "" when there is none."""

    items: list[T]
    next: str


class Component(NamedTuple):
    """The state a component is in. since_ms: start of its run of equal states. cause: incident key or a word."""

    component: str
    state: str
    since_ms: int
    cause: str


class Interval(NamedTuple):
    """A stretch of a component's ledger. end_ms 0: until further notice. revision: journal offset that wrote it."""

    start_ms: int
    end_ms: int
    state: str
    cause: str
    revision: int


class Sums(NamedTuple):
    """Milliseconds of each state; they sum to to_ms - from_ms. revision: the journal offset as of which this holds."""

    component: str
    from_ms: int
    to_ms: int
    revision: int
    up: int
    degraded: int
    down: int
    unknown: int
    maintenance: int
    outside: int


class Delivery(NamedTuple):
    """One outbox row: one notice for one channel. state: due, sent, dead."""

    id: int
    channel: str
    incident: str
    ordinal: int
    kind: str
    idempotency_key: str
    created_ms: int
    state: str
    attempts: int
    next_ms: int
    delivered_ms: int
    last_error: str


class Latest(NamedTuple):
    """Newest value of a series; a counter's is its rate per second."""

    series: int
    time_ms: int
    value: float


class AgentRow(NamedTuple):
    """heard_ms: journal time of its last input, 0: never; written every few seconds."""

    name: str
    uuid: str
    hostname: str
    site: str
    serial: str
    expires_ms: int
    enrolled_ms: int
    revoked_ms: int
    version: str
    heard_ms: int


class EnrolmentToken(NamedTuple):
    id: str
    device: str
    site: str
    uses_left: int
    created_ms: int
    expires_ms: int
    created_by: str
    revoked_ms: int


class Account(NamedTuple):
    name: str
    role: str
    created_ms: int


class Session(NamedTuple):
    """A valid api_token and whose it is."""

    id: str
    account: str
    role: str
    label: str
    created_ms: int
    expires_ms: int


class DeadLetter(NamedTuple):
    id: int
    agent: str
    spool_id: bytes
    seq: int
    received_ms: int
    code: str
    detail: str
    body_bytes: int


class RefusedRow(NamedTuple):
    agent: str
    code: str
    detail: str
    how_often: int
    last_ms: int


class GapRow(NamedTuple):
    id: int
    agent: str
    from_ms: int
    to_ms: int
    reason: str
    frames: int
    received_ms: int


class AuditRow(NamedTuple):
    id: int
    at_ms: int
    actor: str
    action: str
    detail: str
