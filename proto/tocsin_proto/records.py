"""The records of the wire, as both sides hold them in memory.

Not the wire itself: `codec` turns these into bytes and back, and is the only importer of the generated code.
Columns stay bytes here (little-endian, dense): the agent fills them from `array.array`, the collector reads them with
`numpy.frombuffer`. All records are frozen; times are Unix milliseconds unless named otherwise.
"""

from enum import IntEnum

import msgspec

PROTOCOL_MIN = 1
PROTOCOL_MAX = 1

FRAME_BYTES_MAX = 256 * 1024  # an encoded Frame; the agent splits before this, the collector refuses beyond it
CREDIT_BYTES = 512 * 1024  # unacked bytes an agent may have in flight
LAYOUT_SERIES_MAX = 1000


class SeriesKind(IntEnum):
    GAUGE = 1
    COUNTER32 = 2
    COUNTER64 = 3
    STATE = 4

    @property
    def is_counter(self) -> bool:
        return self in (SeriesKind.COUNTER32, SeriesKind.COUNTER64)


class Record(msgspec.Struct, frozen=True, gc=False):
    """Base of all wire records: a frozen struct, nothing else."""


class Clock(Record, frozen=True):
    """Both clocks of an agent at one moment. `mono_ms` counts on during suspend; `boot` names its start."""

    wall_ms: int
    mono_ms: int
    boot: int


class Series(Record, frozen=True):
    """What one value means. `resource` "" is the agent's own host; `labels` are sorted by name."""

    resource: str
    metric: str
    unit: str
    kind: SeriesKind
    labels: tuple[tuple[str, str], ...] = ()
    interval_ms: int = 0
    states: tuple[tuple[int, str], ...] = ()


class Layout(Record, frozen=True):
    """A group of series, named once. `id` is `codec.layout_id(series)`: declaring it again changes nothing."""

    id: int
    series: tuple[Series, ...]


class Section(Record, frozen=True):
    """One value each for all series of a layout, or for those named by `indices` (uint32, strictly increasing).

    values: float64 of the gauges and states; counters: uint64 of the counters, each in the layout's order.
    offsets_ms: int32 per sample in the layout's order, or empty for zero.
    """

    layout: int
    time_ms: int
    values: bytes = b""
    counters: bytes = b""
    indices: bytes = b""
    offsets_ms: bytes = b""


class Event(Record, frozen=True):
    resource: str
    source: str
    name: str
    time_ms: int
    fields: tuple[tuple[str, str], ...] = ()
    text: str = ""


class Gap(Record, frozen=True):
    """What the agent could not keep. Sequence numbers 0 and 0: it does not know which."""

    first_seq: int
    last_seq: int
    from_ms: int
    to_ms: int
    reason: str
    frames: int = 0


class Heartbeat(Record, frozen=True):
    spool_bytes: int = 0
    dropped_frames: int = 0
    probe_errors: int = 0
    overruns: int = 0


class Frame(Record, frozen=True):
    """All that one flush has to say. `follows`: the record before it that the spool still held."""

    seq: int
    follows: int
    clock: Clock
    layouts: tuple[Layout, ...] = ()
    sections: tuple[Section, ...] = ()
    events: tuple[Event, ...] = ()
    gaps: tuple[Gap, ...] = ()
    heartbeat: Heartbeat | None = None


class Hello(Record, frozen=True):
    protocol_min: int
    protocol_max: int
    version: str
    spool_id: bytes
    first_unacked: int
    last_seq: int
    clock: Clock
    capabilities: tuple[str, ...] = ()
    assignment_etag: str = ""
    hostname: str = ""


class Pulse(Record, frozen=True):
    """Out of sequence and never spooled: the agent lives, whatever the backlog."""

    clock: Clock
    backlog_bytes: int = 0
    last_seq: int = 0


class AssignmentReport(Record, frozen=True):
    etag: str
    refused: tuple[str, ...] = ()


class ProbeAnswer(Record, frozen=True):
    request: int
    reachable: bool
    detail: str = ""


class Welcome(Record, frozen=True):
    protocol: int
    resume_from: int
    credit_bytes: int
    frame_bytes_max: int
    time_ms: int
    assignment_etag: str
    agent: str
    declare_again: bool = False  # layouts that were declared before are not known here


class Ack(Record, frozen=True):
    seq: int


class Nack(Record, frozen=True):
    expected: int


class Reject(Record, frozen=True):
    seq: int
    code: str
    detail: str = ""


class AssignedDevice(Record, frozen=True):
    """`settings` is JSON in the words of the registry's stanza for `kind`."""

    id: str
    address: str
    kind: str
    settings: bytes


class Assignment(Record, frozen=True):
    etag: str
    devices: tuple[AssignedDevice, ...] = ()


class Drain(Record, frozen=True):
    reconnect_after_ms: int


class Revoked(Record, frozen=True):
    reason: str


class Credit(Record, frozen=True):
    bytes: int


class ProbeRequest(Record, frozen=True):
    request: int
    resource: str


AgentMessage = Hello | Frame | Pulse | AssignmentReport | ProbeAnswer
CollectorMessage = Welcome | Ack | Nack | Reject | Assignment | Drain | Revoked | Credit | ProbeRequest
