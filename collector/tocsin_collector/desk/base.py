"""The seam to whoever is told: one Delivery in, one Outcome out.

Not the queue (`outbox.py`) and not its policy (`schedule.py`). The invariant: a connector tries once and says what
happened; whether and when there is another try is never its business.
"""

from collections.abc import Callable
from enum import Enum
from importlib import import_module
from pathlib import Path
from typing import NamedTuple, Protocol, cast

import msgspec

from tocsin_collector.config import Channel
from tocsin_collector.core.model import Notice

CONNECTORS = {
    "webhook": "tocsin_collector.desk.webhook:Webhook",
}


class Delivery(msgspec.Struct, frozen=True):
    """One notice on its way to one channel. The key is the same at every attempt: receivers drop what they have by it."""

    idempotency_key: str
    attempt: int  # 1: the first
    notice: Notice


class Verdict(Enum):
    OK = "ok"
    RETRY = "retry"  # it was not taken; it may be later
    UNCERTAIN = "uncertain"  # it may have been taken: told again with the same key
    PERMANENT = "permanent"  # this notice will never be taken as it is


class Outcome(msgspec.Struct, frozen=True):
    """What came of one attempt. detail: for people, without secrets. retry_after_s: what the receiver asked for."""

    verdict: Verdict
    detail: str = ""
    retry_after_s: float = 0.0


class Connector(Protocol):
    """One receiver. `deliver` may run several times at once, for different incidents, and ends within its time-out."""

    async def deliver(self, delivery: Delivery) -> Outcome: ...
    async def close(self) -> None: ...


class Surroundings(NamedTuple):
    """What a connector knows of its collector. source: who speaks; link: start of addresses of pages, "" for none."""

    secrets: Path
    source: str
    link: str
    clock: Callable[[], int]  # Unix milliseconds


Factory = Callable[[Channel, Surroundings], Connector]


def connector(channel: Channel, surroundings: Surroundings) -> Connector:
    """The channel's connector, imported only now. Raises ChannelError: the channel cannot work as it is configured."""
    module, _, name = CONNECTORS[channel.kind].partition(":")
    return cast(Factory, getattr(import_module(module), name))(channel, surroundings)


class ChannelError(Exception):
    """A channel cannot work as it is configured; says which key of it is wrong and what would be right."""

    def __init__(self, channel: str, key: str, problem: str) -> None:
        super().__init__(f'channel "{channel}": {key}: {problem}')
        self.key = key
        self.problem = problem
