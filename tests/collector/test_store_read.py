"""What readers see: pages that join, sessions that end, nothing they could break."""

import asyncio
import sqlite3
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from structlog.testing import capture_logs
from tests.support.plant import CONFIG, HOST, START_MS, entry, incident

from tocsin_collector.core.model import (
    LIVE_STATES,
    IncidentChanged,
    IncidentState,
    Level,
    Notice,
    SeriesAdded,
    SeriesMoved,
    Severity,
    Step,
)
from tocsin_collector.store import inline
from tocsin_collector.store.base import Live, Row, Statements, StoreError, Transaction
from tocsin_collector.store.inline import run_inline
from tocsin_collector.store.read import CursorError, Reader, ReadTooLongError
from tocsin_collector.store.sqlite import SqliteStore


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    store = run_inline(SqliteStore.open(tmp_path / "tocsin.db", connect=inline.connect, channels=("desk",)))
    yield store
    run_inline(store.close())


def reader_of(store: SqliteStore) -> Reader:
    return Reader(store._connection)


def write(store: SqliteStore, sql: str, *values: Any) -> None:
    async def operation(connection: Statements) -> None:
        await connection.execute(sql, values)

    (answer,) = run_inline(store.commit(Transaction(operations=[operation])))
    assert answer.error is None


def fill(store: SqliteStore) -> None:
    states = [IncidentState.OPEN, IncidentState.CLOSED, IncidentState.SUPPRESSED, IncidentState.RESOLVED]
    for n in range(1, 21):
        one = incident(
            f"I-{n}",
            f"key-{n}",
            states[n % 4],
            opened_ms=START_MS + n // 3,
            severity=list(Severity)[n % 3],
            device=f"d{n % 2}",
            site=f"s{n % 2}",
        )
        run_inline(store.commit(entry(n, IncidentChanged(one))))


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ({}, range(1, 21)),
        ({"states": (IncidentState.OPEN,)}, range(4, 21, 4)),
        ({"states": LIVE_STATES}, [n for n in range(1, 21) if n % 4 in (0, 2)]),
        ({"states": (IncidentState.CLOSED, IncidentState.OPEN)}, [n for n in range(1, 21) if n % 4 in (0, 1)]),
        ({"device": "d1"}, range(1, 21, 2)),
        ({"site": "s0"}, range(2, 21, 2)),
        ({"rank_min": Severity.CRITICAL.rank}, range(2, 21, 3)),
    ],
)
def test_pages_of_incidents_hold_each_one_once_newest_first(store: SqliteStore, question: Any, expected: Any) -> None:
    fill(store)
    seen = []
    cursor = ""
    while True:
        page = run_inline(reader_of(store).incidents(**question, cursor=cursor, limit=3))
        seen += page.items
        cursor = page.next
        if not cursor:
            break
    assert sorted(one.id for one in seen) == sorted(f"I-{n}" for n in expected)
    order = [(one.opened_ms, one.id) for one in seen]
    assert order == sorted(order, reverse=True)


@pytest.mark.parametrize("cursor", ["x", "12", "-1:I-1", "9" * 30 + ":I-1", "1; DROP TABLE incident:"])
def test_a_cursor_of_something_else_is_refused_or_harmless(store: SqliteStore, cursor: str) -> None:
    fill(store)
    if cursor == "12":
        assert run_inline(reader_of(store).incidents(cursor=cursor)).items == []
        return
    with pytest.raises(CursorError):
        run_inline(reader_of(store).incidents(cursor=cursor))


def test_an_incident_is_told_whole(store: SqliteStore) -> None:
    parent = incident("I-1", "parent", severity=Severity.CRITICAL)
    child = incident("I-2", "child", IncidentState.SUPPRESSED, suppressed_by="I-1")
    steps = (Step(START_MS, "sample_above", {"value": 0.95}), Step(START_MS + 1, "raised"))
    run_inline(store.commit(entry(1, IncidentChanged(parent, steps[:1]), Notice("I-1", 0, "opened", START_MS, parent))))
    run_inline(store.commit(entry(2, IncidentChanged(parent, steps[1:]), IncidentChanged(child))))
    reader = reader_of(store)
    assert run_inline(reader.incident("I-1")) == parent
    assert run_inline(reader.incident("I-9")) is None
    assert run_inline(reader.timeline("I-1")) == list(steps)
    assert run_inline(reader.children("I-1")) == [child]
    assert run_inline(reader.children("")) == []
    assert [(d.channel, d.ordinal, d.kind, d.state) for d in run_inline(reader.deliveries("I-1"))] == [
        ("desk", 0, "opened", "due")
    ]
    assert run_inline(reader.live_incidents()) == [parent, child]


def test_newest_values_are_those_of_the_device_alone(store: SqliteStore) -> None:
    series = [SeriesAdded(n, HOST, device, "m", "1", 1) for n, device in enumerate((HOST, "sw-1", HOST))]
    body = array("q", [0, 1, 2]).tobytes() + array("q", [10, 11, 12]).tobytes() + array("d", [0.5, 1.5, 2.5]).tobytes()
    transaction = entry(1, *series)
    run_inline(store.commit(transaction))
    run_inline(store.commit(Transaction(live=[Live(HOST, START_MS, body)])))
    reader = reader_of(store)
    assert run_inline(reader.series("sw-1")) == [series[1]]
    assert run_inline(reader.latest("sw-1")) == [(1, 11, 1.5)]
    assert run_inline(reader.latest(HOST)) == [(0, 10, 0.5), (2, 12, 2.5)]
    assert run_inline(reader.latest("nobody")) == []


def test_a_series_that_moved_is_read_from_the_agent_that_reports_it_now(store: SqliteStore) -> None:
    run_inline(store.commit(entry(1, SeriesAdded(0, "edge-1", "sw-1", "m", "1", 1))))
    run_inline(store.commit(entry(2, SeriesMoved(0, "edge-2"), SeriesAdded(1, "edge-2", "sw-1", "n", "1", 1))))
    bodies = [
        Live(agent, START_MS, array("q", [0, at_ms]).tobytes() + array("d", [value]).tobytes())
        for agent, at_ms, value in (("edge-1", 10, 0.1), ("edge-2", 20, 0.2))
    ]
    run_inline(store.commit(Transaction(live=bodies)))
    assert [one.agent for one in run_inline(store.truth()).series] == ["edge-2", "edge-2"]
    assert run_inline(reader_of(store).latest("sw-1")) == [(0, 20, 0.2)]
    run_inline(store.commit(entry(3, SeriesMoved(0, "edge-3"), SeriesMoved(0, "edge-1"))))
    assert run_inline(reader_of(store).latest("sw-1")) == [(0, 10, 0.1)]


def test_numbers_that_json_has_not_are_told_in_words_and_never_keep_a_record_from_being_read(
    store: SqliteStore,
) -> None:
    nan, inf = float("nan"), float("inf")
    facts: dict[str, str | int | float] = {"value": nan, "limit": inf, "mount": "/null", "count": 3}
    odd = incident("I-1", facts=facts, evidence=((1, nan), (2, 0.5), (3, -inf)))
    run_inline(
        store.commit(entry(1, IncidentChanged(odd, (Step(1, "raised", facts),)), Notice("I-1", 0, "opened", 1, odd)))
    )
    (read,) = run_inline(store.truth()).incidents
    assert read.facts == {"value": "nan", "limit": "inf", "mount": "/null", "count": 3}
    assert read.evidence == ((2, 0.5),)
    assert run_inline(reader_of(store).timeline("I-1"))[0].facts == read.facts
    bad = replace(CONFIG, rules=(replace(CONFIG.rules[0], levels=(Level(Severity.MAJOR, above=inf),)),))
    with pytest.raises(ValueError, match="Config holds a number that cannot be stored"):
        run_inline(store.commit(Transaction(rows=[Row(2, 1, "config", "", b"", b"")], configs=[(2, 1, bad)])))


def test_rows_that_cannot_be_read_stop_no_start(store: SqliteStore) -> None:
    run_inline(store.commit(entry(1, IncidentChanged(incident("I-1", "a")), IncidentChanged(incident("I-2", "b")))))
    run_inline(store.commit(Transaction(rows=[Row(2, 1, "config", "", b"", b"")], configs=[(2, 1, CONFIG)])))
    run_inline(store.commit(Transaction(rows=[Row(3, 9, "config", "", b"", b"")], configs=[(3, 1, CONFIG)])))
    write(store, "UPDATE incident SET body = '{\"evidence\": [[1, null]]}' WHERE id = 'I-1'")
    write(store, "INSERT INTO config VALUES (4, 7, 1, '{\"rules\": null}')")
    with capture_logs() as logs:
        truth = run_inline(store.truth())
    assert (truth.config, [one.id for one in truth.incidents]) == (CONFIG, ["I-2"])
    assert {"stored incident cannot be read, it is closed", "incidents could not be read"} <= {
        log["event"] for log in logs
    }
    closed = run_inline(reader_of(store).incident("I-1"))
    assert closed is not None
    assert (closed.key, closed.state, closed.device) == ("a", IncidentState.CLOSED, HOST)
    assert [step.kind for step in run_inline(reader_of(store).timeline("I-1"))] == ["unreadable"]
    assert run_inline(store.truth()) == truth
    # The key is free: the fault that goes on opens a new one.
    run_inline(store.commit(entry(5, IncidentChanged(incident("I-5", "a")))))


def test_the_newest_configuration_is_in_force(store: SqliteStore) -> None:
    reader = reader_of(store)
    assert run_inline(reader.config()) is None
    run_inline(store.commit(Transaction(configs=[(1, START_MS, CONFIG)], operations=[])))
    run_inline(store.commit(Transaction(configs=[(5, START_MS, CONFIG.__class__(CONFIG.registry, ()))])))
    config = run_inline(reader.config())
    assert config is not None
    assert config.rules == ()


def test_a_session_ends_when_it_is_over_or_revoked(store: SqliteStore) -> None:
    write(store, "INSERT INTO account VALUES ('zm', 'argon', 'operator', 1)")
    write(store, "INSERT INTO api_token VALUES ('t1', ?, 'zm', 'browser', 1000, 2000, 0)", b"h1")
    write(store, "INSERT INTO api_token VALUES ('t2', ?, 'zm', 'browser', 1000, 2000, 1500)", b"h2")
    reader = reader_of(store)
    assert run_inline(reader.session(b"h1", 1999)) == ("t1", "zm", "operator", "browser", 1000, 2000)
    assert run_inline(reader.session(b"h1", 2000)) is None
    assert run_inline(reader.session(b"h2", 1999)) is None
    assert run_inline(reader.session(b"h3", 1999)) is None


def test_a_question_that_takes_too_long_is_given_up(store: SqliteStore) -> None:
    clock = iter(range(0, 10_000, 3))
    reader = Reader(store._connection, monotonic=lambda: float(next(clock)))
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
    with pytest.raises(ReadTooLongError, match="2 s"):
        run_inline(reader._all(endless))
    assert run_inline(reader_of(store).newest()) == (0, 0)


def test_readers_see_commits_at_once_and_can_change_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "tocsin.db"
        store = await SqliteStore.open(path)
        reader = await Reader.open(path)
        assert await reader.newest() == (0, 0)
        await store.commit(entry(1))
        assert await reader.newest() == (1, START_MS + 1)
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            await reader._all("DELETE FROM journal")
        await asyncio.gather(*(reader.components() for _ in range(20)))
        await reader.close()
        await store.close()

    asyncio.run(main())


def test_a_reader_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="initialised"):
        asyncio.run(Reader.open(tmp_path / "tocsin.db"))
    connection = sqlite3.connect(tmp_path / "tocsin.db")
    connection.execute("PRAGMA user_version = 7")
    connection.close()
    with pytest.raises(StoreError, match="database version 7"):
        asyncio.run(Reader.open(tmp_path / "tocsin.db"))
