"""What the `Link` is told and what it wishes for: the records between the protocol and the connection.

Not decisions. Invariant: a wish is a value; whoever drops it has changed nothing.
"""

from dataclasses import dataclass

from tocsin_proto.records import Assignment, ProbeRequest


@dataclass(frozen=True, slots=True)
class Facts:
    """What a Hello says of this agent besides its spool."""

    version: str
    hostname: str = ""
    capabilities: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Send:
    """An encoded AgentMessage for the stream."""

    raw: bytes


@dataclass(frozen=True, slots=True)
class Deliver:
    """For the rest of the agent."""

    message: Assignment | ProbeRequest


@dataclass(frozen=True, slots=True)
class Reconnect:
    """End this stream, open another one. `failed`: with back-off; otherwise after `after_ms`."""

    reason: str
    after_ms: int = 0
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Stop:
    """Do not come back: the collector does not know this agent any more."""

    reason: str


Wish = Send | Deliver | Reconnect | Stop


@dataclass(slots=True)
class Counters:
    """Since the agent's start."""

    frames_sent: int = 0
    bytes_sent: int = 0
    pulses_sent: int = 0
    gaps_told: int = 0  # holes found only while sending
    acks: int = 0
    nacks: int = 0
    rejected: int = 0
    poisoned: int = 0
    protocol_errors: int = 0
    last_ack_ms: int = 0  # agent's clock; 0: never
    last_reject: str = ""
