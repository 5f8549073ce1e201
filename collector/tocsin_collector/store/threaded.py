"""The writer's connection: aiosqlite, with a way to run a whole transaction in its thread at once.

Not more than aiosqlite but for `whole`: one hop between threads for each transaction, not one for each statement.
The invariant: all statements run in the one thread of this connection.
"""

import sqlite3
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import aiosqlite

from tocsin_collector.store.inline import InlineConnection, open_raw, run_inline

T = TypeVar("T")


class ThreadedConnection(aiosqlite.Connection):
    def __init__(self, opener: Callable[[], sqlite3.Connection]) -> None:
        super().__init__(opener, iter_chunk_size=64)
        self._thread.daemon = True  # a process that fails ends, whether or not it came to close this

    async def whole(self, work: Callable[[InlineConnection], Awaitable[T]]) -> T:
        """Run `work` in the connection's thread, without a pause. It must await nothing but what it is given."""
        execute: Callable[[Callable[[], T]], Awaitable[T]] = self._execute  # in its thread; not typed there
        return await execute(lambda: run_inline(work(InlineConnection(self._conn))))


async def connect(path: Path) -> ThreadedConnection:
    connection = ThreadedConnection(partial(open_raw, path))
    await connection
    return connection
