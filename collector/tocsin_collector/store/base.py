"""The seam to any store: what one transaction holds, and what a store must be able to do.

Not an engine of storage: `sqlite.py` is one, a second comes behind the same Protocol. Ids come from journal offsets,
never from the store; nothing here assumes more than one partition, one owner, one lease for ever.
The invariant: a Transaction is durable whole or not at all, journal entries, high-water marks, effects and all.
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

import msgspec

from tocsin_collector.core.model import Config, Effect, Truth


class StoreError(Exception):
    """The store cannot be used as it is; the message says what to do. The process ends with exit code 78."""


class NewerDatabaseError(StoreError):
    """The database was written by a newer Tocsin."""


class CorruptDatabaseError(StoreError):
    """The database fails its checks, and the configuration does not allow to start afresh."""


class Row(NamedTuple):
    """One journal entry as stored. body: the AgentMessage as received for kind "frame", else the Input as msgpack."""

    offset: int
    received_ms: int
    kind: str
    agent: str
    spool_id: bytes  # b"" where there is none
    body: bytes


class Mark(NamedTuple):
    """All of this spool up to `seq` is durable."""

    agent: str
    spool_id: bytes
    seq: int


class Outcome(NamedTuple):
    """What one journal entry led to; entries without effects have none. digest: see `digest`."""

    offset: int
    received_ms: int
    effects: Sequence[Effect]
    digest: bytes


class Letter(NamedTuple):
    """A message that could not be taken and is kept for people to look at."""

    agent: str
    spool_id: bytes
    seq: int
    received_ms: int
    code: str
    detail: str
    body: bytes


class Live(NamedTuple):
    """Newest values of an agent's series. body: n int64 ids, n int64 times, n float64 values, one after the other."""

    agent: str
    at_ms: int
    body: bytes


class Bounds(NamedTuple):
    """First and last offset of the journal; (1, 0) when it is empty."""

    first: int
    last: int


class Statements(Protocol):
    """What an administrative operation may do: statements inside the writer's transaction, in aiosqlite's words.

    It must await nothing else: the whole transaction runs in one go in the writer's thread.
    """

    def execute(self, sql: str, parameters: Iterable[Any] | None = None) -> Awaitable[Any]: ...
    def executemany(self, sql: str, parameters: Iterable[Sequence[Any]]) -> Awaitable[Any]: ...
    def execute_fetchall(self, sql: str, parameters: Iterable[Any] | None = None) -> Awaitable[Iterable[Any]]: ...


Operation: TypeAlias = Callable[[Statements], Awaitable[Any]]


class Answer(NamedTuple):
    """What an Operation returned, or what it raised: then nothing of it was kept, the rest of the transaction was."""

    value: Any = None
    error: Exception | None = None


class Transaction(msgspec.Struct, frozen=True):
    """All that becomes durable at once, in order of journal offset.

    trim_upto: entries up to this offset are not needed for a restart; trim_before_ms: and may go when received before
    this. The store deletes a few in the same transaction, so that trimming costs no commit of its own.
    """

    rows: Sequence[Row] = ()
    marks: Sequence[Mark] = ()
    outcomes: Sequence[Outcome] = ()
    configs: Sequence[tuple[int, int, Config]] = ()  # (offset, received_ms, Config)
    letters: Sequence[Letter] = ()
    live: Sequence[Live] = ()
    operations: Sequence[Operation] = ()
    at_ms: int = 0
    trim_upto: int = 0
    trim_before_ms: int = 0

    @property
    def is_empty(self) -> bool:
        return not (self.rows or self.marks or self.letters or self.live or self.operations)


class Store(Protocol):
    """Where the collector's truth lives. One owner at a time; every method may be called again after it failed."""

    trouble: str  # why commits do not get through just now (disk full ...); "" when they do

    async def commit(self, transaction: Transaction) -> tuple[Answer, ...]:
        """Return once it is durable, with one Answer per operation. Retries for ever while the disk is in trouble.

        StoreError: nothing more can be committed. Anything else that is raised means a bug of ours in what this transaction
        holds (a second open incident of one key ...): nothing of it was kept, and others may be committed.
        """
        ...

    async def upkeep(self) -> None:
        """Housekeeping between two commits, a few milliseconds of it."""
        ...

    async def used_bytes(self) -> int:
        """Bytes that hold data, most of them the journal's."""
        ...

    async def read_journal(self, start: int, bytes_max: int) -> list[Row]:
        """Entries from offset `start` on, in order, at least one if there is one, about `bytes_max` bytes at most."""
        ...

    async def bounds(self) -> Bounds: ...

    async def trim(self, upto: int) -> int:
        """Delete entries up to and including this offset, but never the last one. Returns how many."""
        ...

    async def truth(self) -> Truth: ...
    async def high_waters(self) -> list[Mark]: ...

    async def digests(self, start: int, end: int) -> dict[int, bytes]:
        """Digest by offset, for the entries in [start, end] that had effects."""
        ...

    async def close(self) -> None: ...
