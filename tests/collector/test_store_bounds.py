"""What agents can fill has a bound, and what went over it is counted."""

import sqlite3
from pathlib import Path
from typing import Any

from tests.support.plant import HOST, SPOOL, START_MS, entry

from tocsin_collector.core.model import GapSeen
from tocsin_collector.store import inline
from tocsin_collector.store.base import Letter, Statements, Transaction
from tocsin_collector.store.bounds import (
    GAPS_DROPPED,
    GAPS_MAX,
    LETTERS_DROPPED,
    LETTERS_MAX,
    bound_gaps,
    bound_letters,
)
from tocsin_collector.store.inline import run_inline
from tocsin_collector.store.sqlite import SqliteStore

MIB = 1024 * 1024


class Opened:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.store: SqliteStore = run_inline(SqliteStore.open(path, connect=inline.connect))

    def write(self, letters: list[Letter]) -> None:
        run_inline(self.store.commit(Transaction(letters=letters)))

    def operate(self, operation: Any) -> None:
        (answer,) = run_inline(self.store.commit(Transaction(operations=[operation])))
        assert answer.error is None, answer.error

    def rows(self, sql: str) -> list[Any]:
        connection = sqlite3.connect(f"{self.path.as_uri()}?mode=ro", uri=True)
        try:
            return connection.execute(sql).fetchall()
        finally:
            connection.close()


def letter(seq: int, agent: str = HOST, body: bytes = b"x") -> Letter:
    return Letter(agent, SPOOL, seq, START_MS + seq, "malformed", "", body)


def test_of_too_many_dead_letters_the_oldest_go_and_are_counted_by_agent(tmp_path: Path) -> None:
    opened = Opened(tmp_path / "tocsin.db")
    opened.write([letter(seq, "edge-2") for seq in range(1, 101)])
    for start in range(101, LETTERS_MAX + 301, 500):
        opened.write([letter(seq) for seq in range(start, min(start + 500, LETTERS_MAX + 301))])
    assert opened.rows("SELECT count(*), min(seq), max(seq) FROM dead_letter") == [
        (LETTERS_MAX, 301, LETTERS_MAX + 300)
    ]
    assert opened.rows("SELECT agent, code, count FROM refused ORDER BY agent") == [
        (HOST, LETTERS_DROPPED, 200),
        ("edge-2", LETTERS_DROPPED, 100),
    ]
    run_inline(opened.store.close())


def test_dead_letters_have_a_bound_in_bytes_as_well(tmp_path: Path) -> None:
    opened = Opened(tmp_path / "tocsin.db")
    for start in range(1, 151, 50):
        letters = [letter(seq, body=bytes(256 * 1024)) for seq in range(start, start + 50)]
        opened.write(letters)

        async def bound(connection: Statements) -> None:
            await bound_letters(connection, 50, START_MS, bytes_max=44 * MIB)

        opened.operate(bound)
        ((held,),) = opened.rows("SELECT sum(length(body)) FROM dead_letter")
        assert held <= 44 * MIB
    ((kept, newest),) = opened.rows("SELECT count(*), max(seq) FROM dead_letter")
    assert newest == 150
    assert 0 < kept < 150
    assert opened.rows("SELECT sum(count) FROM refused") == [(150 - kept,)]
    run_inline(opened.store.close())


def test_gaps_have_a_bound(tmp_path: Path) -> None:
    opened = Opened(tmp_path / "tocsin.db")
    for offset in range(1, 4):
        gaps = [GapSeen(HOST, n, n + 1, "spool full", 1) for n in range(40)]
        run_inline(opened.store.commit(entry(offset, *gaps)))

    async def bound(connection: Statements) -> None:
        await bound_gaps(connection, START_MS, rows_max=100)

    opened.operate(bound)
    assert opened.rows("SELECT count(*), min(id) FROM gap") == [(100, 21)]
    assert opened.rows("SELECT agent, code, count, last_ms FROM refused") == [(HOST, GAPS_DROPPED, 20, START_MS)]

    async def jump(connection: Statements) -> None:
        await connection.execute("UPDATE gap SET id = id + ? WHERE id = 120", (GAPS_MAX,))

    opened.operate(jump)
    run_inline(opened.store.commit(entry(4, GapSeen(HOST, 1, 2, "spool full", 1))))
    assert opened.rows("SELECT count(*) FROM gap") == [(2,)]
    run_inline(opened.store.close())
