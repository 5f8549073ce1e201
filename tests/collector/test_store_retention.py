"""What is forgotten, and what never is: real tables, journal time by hand."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from tests.support.plant import CONFIG, HOST, START_MS, entry, incident

from tocsin_collector.core.model import IncidentChanged, IncidentState, Notice, Step
from tocsin_collector.store import inline, retention
from tocsin_collector.store.base import Mark, Row, Statements, Transaction
from tocsin_collector.store.inline import run_inline
from tocsin_collector.store.sqlite import FORGET_EVERY_MS, SqliteStore

DAY_MS = 86_400_000


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    store = run_inline(
        SqliteStore.open(
            tmp_path / "tocsin.db", connect=inline.connect, channels=("desk",), incidents_keep_ms=10 * DAY_MS
        )
    )
    yield store
    run_inline(store.close())


def ask(store: SqliteStore, sql: str, *values: Any) -> list[Any]:
    async def work(connection: Statements) -> list[Any]:
        return [tuple(row) for row in await connection.execute_fetchall(sql, values)]

    (answer,) = run_inline(store.commit(Transaction(operations=[work], at_ms=START_MS)))
    assert answer.error is None, answer.error
    return list(answer.value)


def closed(
    store: SqliteStore, offset: int, *, at_ms: int = START_MS, state: IncidentState = IncidentState.CLOSED
) -> None:
    one = incident(
        f"I-{offset}", f"key-{offset}", state, opened_ms=at_ms, closed_ms=at_ms if state is IncidentState.CLOSED else 0
    )
    effects = IncidentChanged(one, (Step(at_ms, "opened"),)), Notice(one.id, 0, "opened", at_ms, one)
    run_inline(store.commit(entry(offset, *effects, received_ms=START_MS)))


def test_closed_incidents_go_after_their_time_with_all_that_was_said_of_them_in_slices(store: SqliteStore) -> None:
    for offset in range(1, 41):
        closed(store, offset)
    closed(store, 41, state=IncidentState.OPEN)
    closed(store, 42, at_ms=START_MS + 5 * DAY_MS)
    closed(store, 43)
    ask(store, "UPDATE outbox SET state = 'sent' WHERE incident <> 'I-43'")  # that one is still to be told

    def left() -> list[int]:
        tables = ("incident", "timeline", "outbox")
        return [ask(store, f"SELECT count(*) FROM {table}")[0][0] for table in tables]

    assert left() == [43, 43, 43]
    later_ms = START_MS + 10 * DAY_MS + 1
    for offset, expected in ((50, 27), (51, 11), (52, 3), (53, 3)):
        run_inline(store.commit(entry(offset, received_ms=later_ms)))
        assert left() == [expected] * 3
    assert ask(store, "SELECT id FROM incident ORDER BY id") == [("I-41",), ("I-42",), ("I-43",)]
    ask(store, "UPDATE outbox SET state = 'dead' WHERE incident = 'I-43'")
    run_inline(store.commit(entry(54, received_ms=later_ms + FORGET_EVERY_MS)))
    assert left() == [2, 2, 2]


def test_spools_that_are_gone_are_forgotten_but_for_the_newest_of_each_agent(store: SqliteStore) -> None:
    def mark(spool: bytes, offset: int, at_ms: int, agent: str = HOST) -> None:
        row = Row(offset, at_ms, "tick", "", b"", b"")
        run_inline(store.commit(Transaction(rows=[row], marks=[Mark(agent, spool * 16, 1)], at_ms=at_ms)))

    mark(b"a", 1, START_MS)
    mark(b"b", 2, START_MS + 1)
    mark(b"c", 3, START_MS, "edge-2")
    mark(b"d", 4, START_MS + 20 * DAY_MS, "edge-3")
    mark(b"e", 5, START_MS + 25 * DAY_MS, "edge-3")
    mark(b"f", 6, START_MS + 31 * DAY_MS, "edge-4")
    assert sorted(mark.spool_id[:1] for mark in run_inline(store.high_waters())) == [b"b", b"c", b"d", b"e", b"f"]


def test_a_configuration_is_stored_once_and_the_oldest_go(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def put(offset: int, version: int) -> None:
        config = replace(CONFIG, registry=replace(CONFIG.registry, version=version))
        row = Row(offset, 1, "config", "", b"", b"")
        run_inline(store.commit(Transaction(rows=[row], configs=[(offset, 1, config)], at_ms=START_MS)))

    for offset, version in ((1, 1), (2, 1), (3, 2), (4, 2), (5, 1)):
        put(offset, version)
    assert ask(store, 'SELECT "offset", version FROM config ORDER BY "offset"') == [(1, 1), (3, 2), (5, 1)]

    async def operation(connection: Statements) -> None:
        await retention.forget_configs(connection, 2)

    run_inline(store.commit(Transaction(operations=[operation], at_ms=START_MS)))
    assert ask(store, 'SELECT "offset" FROM config ORDER BY "offset"') == [(3,), (5,)]
    truth = run_inline(store.truth())
    assert truth.config is not None
    assert truth.config.registry.version == 1
