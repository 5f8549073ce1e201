"""A connection in aiosqlite's words over plain sqlite3: its coroutines never suspend.

Not a connection to share: it runs where it is called. The writer's thread runs each transaction through it in one
go (one hop between threads instead of one per statement), and the simulator runs a whole collector on it, without an
event loop. The invariant: a coroutine that awaits nothing else ends at its first `send`.
"""

import sqlite3
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def run_inline(work: Awaitable[T]) -> T:
    """Drive a coroutine that never suspends to its end. RuntimeError when it does suspend: it awaited something else."""
    steps = work.__await__()
    try:
        next(steps)
    except StopIteration as end:
        result: T = end.value
        return result
    steps.close()
    raise RuntimeError("an inline coroutine awaited something that is not its connection")


class InlineCursor:
    """The part of aiosqlite's Cursor that operations use."""

    def __init__(self, cursor: sqlite3.Cursor) -> None:
        self.raw = cursor

    @property
    def rowcount(self) -> int:
        return self.raw.rowcount

    @property
    def lastrowid(self) -> int | None:
        return self.raw.lastrowid

    async def fetchone(self) -> Any:
        return self.raw.fetchone()

    async def fetchmany(self, size: int) -> list[Any]:
        return self.raw.fetchmany(size)

    async def fetchall(self) -> list[Any]:
        return self.raw.fetchall()

    async def close(self) -> None:
        self.raw.close()


class InlineConnection:
    """The part of aiosqlite's Connection that the store uses, and `whole`."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.raw = connection

    @property
    def in_transaction(self) -> bool:
        return self.raw.in_transaction

    async def execute(self, sql: str, parameters: Iterable[Any] | None = None) -> InlineCursor:
        return InlineCursor(self.raw.execute(sql, _parameters(parameters)))

    async def executemany(self, sql: str, parameters: Iterable[Sequence[Any]]) -> InlineCursor:
        return InlineCursor(self.raw.executemany(sql, parameters))

    async def execute_fetchall(self, sql: str, parameters: Iterable[Any] | None = None) -> list[Any]:
        return self.raw.execute(sql, _parameters(parameters)).fetchall()

    async def executescript(self, sql: str) -> InlineCursor:
        return InlineCursor(self.raw.executescript(sql))

    async def set_progress_handler(self, handler: Callable[[], int | None] | None, n: int) -> None:
        self.raw.set_progress_handler(handler, n)

    async def commit(self) -> None:
        self.raw.commit()

    async def rollback(self) -> None:
        self.raw.rollback()

    async def close(self) -> None:
        self.raw.close()

    async def whole(self, work: Callable[["InlineConnection"], Awaitable[T]]) -> T:
        """Run `work` on this connection without a pause: here, it is just called."""
        return await work(self)


async def connect(path: Path) -> InlineConnection:
    """The connector of the simulator: everything happens in the caller's thread."""
    return InlineConnection(open_raw(path))


def open_raw(path: Path) -> sqlite3.Connection:
    """A writing connection whose transactions are begun and ended by statement, never implicitly."""
    return sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=256)


def _parameters(parameters: Iterable[Any] | None) -> Any:
    return () if parameters is None else parameters
