"""One writer, whole transactions: what is durable, what is refused, what heals by itself."""

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs
from tests.support.plant import CONFIG, HOST, SPOOL, START_MS, entry, incident

from tocsin_collector.core.model import (
    ComponentState,
    GapSeen,
    IncidentChanged,
    IncidentState,
    LayoutAdded,
    Notice,
    Refused,
    SeriesAdded,
    Splice,
    Step,
)
from tocsin_collector.store import inline, migrate, sqlite
from tocsin_collector.store.base import (
    Answer,
    Bounds,
    CorruptDatabaseError,
    Letter,
    Live,
    Mark,
    NewerDatabaseError,
    Outcome,
    Row,
    Statements,
    StoreError,
    Transaction,
)
from tocsin_collector.store.health import has_wal_reset_bug
from tocsin_collector.store.inline import InlineConnection, run_inline
from tocsin_collector.store.opening import PAGE_BYTES
from tocsin_collector.store.sqlite import SqliteStore


def open_store(path: Path, **options: Any) -> SqliteStore:
    return run_inline(SqliteStore.open(path, connect=options.pop("connect", inline.connect), **options))


def commit(store: SqliteStore, transaction: Transaction) -> tuple[Answer, ...]:
    return run_inline(store.commit(transaction))


def rows_of(path: Path, sql: str) -> list[Any]:
    connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tocsin.db"


FULL_TRANSACTION = Transaction(
    rows=[Row(1, START_MS, "config", "", b"", b"c"), Row(2, START_MS, "frame", HOST, SPOOL, b"f")],
    marks=[Mark(HOST, SPOOL, 41)],
    outcomes=[
        Outcome(
            2,
            START_MS,
            [
                SeriesAdded(
                    0, HOST, HOST, "if.oper_status", "1", 4, (("interface", "eth0"),), ((1, "up"), (2, "down")), 60_000
                ),
                LayoutAdded(HOST, (1 << 64) - 1, (0, -1)),
                IncidentChanged(incident("I-2"), (Step(START_MS, "sample_above", {"value": 0.95}),)),
                Splice(HOST, START_MS, ComponentState.DOWN, cause="disk-full/edge-1"),
                Notice("I-2", 0, "opened", START_MS, incident("I-2")),
                Refused(HOST, "not assigned", "plc-7", 3),
                GapSeen(HOST, 1, 2, "spool full", 7),
            ],
            b"12345678",
        )
    ],
    configs=[(1, START_MS, CONFIG)],
    letters=[Letter(HOST, SPOOL, 40, START_MS, "malformed", "d" * 9000, b"\x00")],
    live=[Live(HOST, START_MS, b"")],
    at_ms=START_MS,
)
TABLES = (
    "journal", "spool", "series", "layout", "incident", "timeline", '"interval"', "outbox", "refused", "gap", "config",
    "dead_letter", "live", "effect_digest",
)  # fmt: skip


def counts(path: Path) -> dict[str, int]:
    return {table: rows_of(path, f"SELECT count(*) FROM {table}")[0][0] for table in TABLES}


def test_a_transaction_becomes_rows_in_every_table_and_the_same_truth_again(path: Path) -> None:
    store = open_store(path, channels=("desk", "mail"))
    commit(store, FULL_TRANSACTION)
    run_inline(store.close())
    assert counts(path) == {**dict.fromkeys(TABLES, 1), "journal": 2, "outbox": 2}
    assert len(rows_of(path, "SELECT detail FROM dead_letter")[0][0]) == 2000
    store = open_store(path)
    truth = run_inline(store.truth())
    effects = FULL_TRANSACTION.outcomes[0].effects
    assert (truth.offset, truth.at_ms, truth.config) == (2, START_MS, CONFIG)
    assert truth.series == (effects[0],)
    assert truth.layouts == (effects[1],)
    assert truth.incidents == (incident("I-2"),)
    assert [(t.component, t.state, t.revision) for t in truth.tails] == [(HOST, ComponentState.DOWN, 2)]
    assert run_inline(store.high_waters()) == [Mark(HOST, SPOOL, 41)]
    assert run_inline(store.digests(1, 9)) == {2: b"12345678"}
    assert run_inline(store.read_journal(1, 1 << 20)) == list(FULL_TRANSACTION.rows)
    run_inline(store.close())


class Failing(InlineConnection):
    """Raises the given error at the first statement that starts with `at`; `after`: once it has been executed."""

    def __init__(self, raw: sqlite3.Connection, at: str, error: Exception, *, after: bool = False) -> None:
        super().__init__(raw)
        self.at, self.error, self.after, self.armed = at, error, after, False

    async def execute(self, sql: str, parameters: Any = None) -> Any:
        hit = self.armed and sql.startswith(self.at)
        self.armed = self.armed and not hit
        if hit and not self.after:
            raise self.error
        result = await super().execute(sql, parameters)
        if hit:
            raise self.error
        return result

    async def execute_fetchall(self, sql: str, parameters: Any = None) -> list[Any]:
        if self.armed and sql.startswith(self.at):
            self.armed = False
            raise self.error
        return await super().execute_fetchall(sql, parameters)


def disk_error(code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = code
    return error


def failing_store(
    path: Path, at: str, error: Exception, *, after: bool = False, **options: Any
) -> tuple[SqliteStore, Failing]:
    made: list[Failing] = []

    async def connect(path: Path) -> Failing:
        made.append(Failing(inline.open_raw(path), at, error, after=after))
        return made[0]

    store = open_store(path, connect=connect, channels=("desk",), **options)
    made[0].armed = True
    return store, made[0]


@pytest.mark.parametrize(
    "at",
    [
        "INSERT INTO journal",
        "INSERT INTO spool",
        "INSERT INTO config",
        "INSERT INTO incident",
        "INSERT INTO outbox",
        "COMMIT",
    ],
)
def test_a_collector_that_dies_within_a_transaction_leaves_nothing_of_it(path: Path, at: str) -> None:
    store, _ = failing_store(path, at, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        commit(store, FULL_TRANSACTION)
    run_inline(store.abandon())
    assert counts(path) == dict.fromkeys(TABLES, 0)


def test_two_open_incidents_of_one_key_are_refused_by_the_database_and_nothing_of_the_transaction_stays(
    path: Path,
) -> None:
    store = open_store(path)
    commit(store, entry(1, IncidentChanged(incident("I-1"))))
    with pytest.raises(sqlite3.IntegrityError):
        commit(store, entry(2, IncidentChanged(incident("I-2", state=IncidentState.HELD))))
    assert run_inline(store.bounds()) == Bounds(1, 1)
    closed = IncidentChanged(incident("I-1", state=IncidentState.RESOLVED))
    commit(store, entry(2, closed, IncidentChanged(incident("I-2"))))
    assert rows_of(path, "SELECT id, state FROM incident ORDER BY id") == [("I-1", "resolved"), ("I-2", "open")]
    run_inline(store.close())


def test_the_same_notice_is_never_written_twice(path: Path) -> None:
    store = open_store(path, channels=("desk",))
    commit(store, entry(1, Notice("I-1", 0, "opened", START_MS, incident("I-1"))))
    commit(store, entry(2, Notice("I-1", 0, "opened", START_MS, incident("I-1"))))  # who knows is not told again
    commit(store, entry(3, Notice("I-1", 1, "updated", START_MS, incident("I-1"))))
    with pytest.raises(sqlite3.IntegrityError):
        commit(store, entry(4, Notice("I-1", 1, "updated", START_MS, incident("I-1"))))
    assert rows_of(path, "SELECT ordinal, kind FROM outbox ORDER BY id") == [(0, "opened"), (1, "updated")]
    run_inline(store.close())


def test_a_full_disk_holds_the_commit_back_until_there_is_room(path: Path) -> None:
    seen: list[str] = []

    async def pause(seconds: float) -> None:
        assert seconds <= sqlite.RETRY_S_MAX
        seen.append(store.trouble)
        if len(seen) == 8:
            await store._connection.whole(lambda c: c.execute("PRAGMA max_page_count = 100000"))

    store = open_store(path, pause=pause)
    pages = run_inline(store.used_bytes()) // PAGE_BYTES
    run_inline(store._connection.whole(lambda c: c.execute(f"PRAGMA max_page_count = {pages + 3}")))
    with capture_logs() as logs:
        commit(store, entry(1, body=bytes(10 * PAGE_BYTES)))
    assert seen == ["database or disk is full"] * 8
    assert store.trouble == ""
    assert [log["event"] for log in logs] == [
        "store cannot commit, retrying; nothing is acknowledged meanwhile",
        "store commits again",
    ]
    assert run_inline(store.bounds()) == Bounds(1, 1)
    run_inline(store.close())


def test_a_commit_that_failed_only_in_name_is_not_written_again(path: Path) -> None:
    async def pause(seconds: float) -> None:
        pass

    store, connection = failing_store(path, "COMMIT", disk_error(sqlite3.SQLITE_IOERR), after=True, pause=pause)
    answers = commit(store, Transaction(rows=[Row(1, 1, "tick", "", b"", b"")], operations=[add_audit]))
    assert not connection.armed
    assert answers == (Answer(1),)
    assert rows_of(path, "SELECT count(*) FROM audit") == [(1,)]
    assert run_inline(store.bounds()) == Bounds(1, 1)
    run_inline(store.close())


@pytest.mark.parametrize(
    "code", [sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR_FSYNC]
)
def test_trouble_with_the_disk_is_tried_again(path: Path, code: int) -> None:
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)

    store, _ = failing_store(path, "INSERT INTO journal", disk_error(code), pause=pause)
    commit(store, FULL_TRANSACTION)
    assert pauses == [sqlite.RETRY_S]
    assert counts(path)["journal"] == 2
    run_inline(store.close())


def test_the_size_of_the_database_is_as_it_was_while_the_disk_is_in_trouble(path: Path) -> None:
    store = open_store(path)
    before = run_inline(store.used_bytes())
    run_inline(store.close())
    store, _ = failing_store(path, "PRAGMA freelist_count", disk_error(sqlite3.SQLITE_IOERR))
    assert run_inline(store.used_bytes()) == 0
    assert run_inline(store.used_bytes()) == before
    run_inline(store.close())


def test_a_mistake_in_our_own_sql_is_not_tried_again(path: Path) -> None:
    store, _ = failing_store(path, "INSERT INTO journal", disk_error(sqlite3.SQLITE_ERROR))
    with pytest.raises(sqlite3.OperationalError):
        commit(store, FULL_TRANSACTION)
    run_inline(store.close())


async def add_audit(connection: Statements) -> int:
    cursor = await connection.execute("INSERT INTO audit (at_ms, actor, action, detail) VALUES (1, 'zm', 'x', '')")
    return int(cursor.rowcount)


async def break_a_rule(connection: Statements) -> None:
    await add_audit(connection)
    await connection.execute("INSERT INTO account VALUES ('zm', 'h', 'admin', 1)")
    await connection.execute("INSERT INTO account VALUES ('zm', 'h', 'admin', 1)")


async def change_its_mind(connection: Statements) -> None:
    await add_audit(connection)
    raise ValueError("no such token")


async def misspell(connection: Statements) -> None:
    await connection.execute("INSERT INTO acount VALUES (1)")


def test_an_operation_that_is_refused_takes_nothing_else_with_it(path: Path) -> None:
    store = open_store(path)
    operations = (add_audit, break_a_rule, change_its_mind, misspell, add_audit)
    answers = commit(store, Transaction(rows=[Row(1, 1, "tick", "", b"", b"")], operations=operations))
    assert [type(answer.error) for answer in answers] == [
        type(None), sqlite3.IntegrityError, ValueError, sqlite3.OperationalError, type(None),
    ]  # fmt: skip
    assert answers[0].value == 1
    assert rows_of(path, "SELECT (SELECT count(*) FROM audit), (SELECT count(*) FROM account)") == [(2, 0)]
    assert run_inline(store.bounds()) == Bounds(1, 1)
    run_inline(store.close())


def test_an_operation_that_awaits_anything_else_is_refused(path: Path) -> None:
    import asyncio

    async def doze(connection: Statements) -> None:
        await asyncio.sleep(0)

    store = open_store(path)
    with pytest.raises(RuntimeError, match="not its connection"):
        commit(store, Transaction(operations=[doze]))
    run_inline(store.abandon())


# ---------------------------------------------------------------------------------------------------------- the journal


def test_the_journal_is_read_in_order_and_in_pages(path: Path) -> None:
    store = open_store(path)
    for offset in range(1, 11):
        commit(store, entry(offset, body=bytes(1000)))
    page = run_inline(store.read_journal(3, 2500))
    assert [row.offset for row in page] == [3, 4, 5]
    assert [row.offset for row in run_inline(store.read_journal(10, 1))] == [10]
    assert run_inline(store.read_journal(11, 1)) == []
    run_inline(store.close())


def test_trimming_stops_before_the_last_entry(path: Path) -> None:
    store = open_store(path)
    for offset in range(1, 4):
        commit(store, entry(offset, Refused("a", "c", "d")))
    assert run_inline(store.trim(99)) == 2
    assert run_inline(store.bounds()) == Bounds(3, 3)
    assert run_inline(store.digests(0, 99)) == {3: bytes(8)}
    run_inline(store.close())


def test_a_commit_trims_only_what_is_old_and_behind_the_snapshot(path: Path) -> None:
    store = open_store(path)
    for offset in range(1, 11):
        commit(store, entry(offset, received_ms=offset * 1000))
    last = Transaction(rows=[Row(11, 11_000, "tick", "", b"", b"")], trim_upto=7, trim_before_ms=5_000)
    commit(store, last)
    assert run_inline(store.bounds()) == Bounds(5, 11)
    commit(store, Transaction(rows=[Row(12, 12_000, "tick", "", b"", b"")], trim_upto=7, trim_before_ms=12_000))
    assert run_inline(store.bounds()) == Bounds(8, 12)
    run_inline(store.close())


def test_a_reader_that_holds_the_log_stops_commits_at_its_bound_and_they_go_on_when_it_ends(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "WAL_BYTES_SOFT", 256 * 1024)
    monkeypatch.setattr(sqlite, "WAL_BYTES_MAX", 1024 * 1024)
    monkeypatch.setattr(sqlite, "WAL_HEADROOM_BYTES", 512 * 1024)
    monkeypatch.setattr(sqlite, "CHECKPOINT_BYTES", 64 * 1024)
    monkeypatch.setattr(sqlite, "READER_MS_MAX", 20)
    seen: list[str] = []

    async def pause(seconds: float) -> None:
        seen.append(store.trouble)
        reader.close()

    store = open_store(path, pause=pause)
    commit(store, entry(1))
    reader = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM journal").fetchone()
    for offset in range(2, 30):
        commit(store, entry(offset, body=bytes(100_000)))
        run_inline(store.upkeep())
    assert len(seen) == 1
    assert "some reader holds it open" in seen[0]
    log_file = path.with_name("tocsin.db-wal")
    assert log_file.stat().st_size <= 1024 * 1024
    run_inline(store.close())


def test_checkpoints_keep_the_log_small(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "CHECKPOINT_BYTES", 256 * 1024)
    store = open_store(path)
    for offset in range(1, 101):
        commit(store, entry(offset, body=bytes(50_000)))
        run_inline(store.upkeep())
    assert path.with_name("tocsin.db-wal").stat().st_size < 1024 * 1024
    assert path.stat().st_size > 4_000_000
    run_inline(store.close())


# ------------------------------------------------------------------------------------------------------------- opening


def test_the_database_is_made_as_the_design_says(path: Path) -> None:
    store = open_store(path)
    asked = ("journal_mode", "synchronous", "page_size", "wal_autocheckpoint", "mmap_size", "secure_delete")

    async def ask(connection: InlineConnection) -> list[Any]:
        return [connection.raw.execute(f"PRAGMA {name}").fetchone()[0] for name in asked]

    assert run_inline(store._connection.whole(ask)) == ["wal", 2, 16384, 0, 0, 0]
    run_inline(store.close())


def test_a_second_collector_on_the_same_database_is_refused(path: Path) -> None:
    store = open_store(path)
    with pytest.raises(StoreError, match="another collector"):
        open_store(path)
    run_inline(store.abandon())
    run_inline(open_store(path).close())


def test_a_newer_database_is_refused_and_left_as_it_is(path: Path) -> None:
    run_inline(open_store(path).close())
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(NewerDatabaseError, match="database version 99, this program knows 1"):
        open_store(path, may_start_afresh=True)
    assert path.read_bytes() == before


def test_a_database_of_another_program_is_refused(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE bookmark (url TEXT)")
    connection.close()
    with pytest.raises(StoreError, match="another program"):
        open_store(path, may_start_afresh=True)


def test_a_migration_copies_the_file_first_and_becomes_durable_with_its_number(path: Path) -> None:
    run_inline(open_store(path).close())
    known = [*migrate.migrations(), migrate.Migration(2, "0002_more.sql", "CREATE TABLE more (id INTEGER PRIMARY KEY)")]
    connection = inline.open_raw(path)
    migrated = migrate.migrate(connection, path, known)
    assert (migrated.found, migrated.now, migrated.backup) == (1, 2, path.with_name("tocsin.db.before-0002"))
    assert migrated.backup is not None
    assert rows_of(migrated.backup, "PRAGMA user_version") == [(1,)]
    assert connection.execute("SELECT count(*) FROM more").fetchone() == (0,)
    known.append(
        migrate.Migration(3, "0003_wrong.sql", "CREATE TABLE extra (id INTEGER); CREATE TABLE more (id INTEGER)")
    )
    with pytest.raises(sqlite3.OperationalError):
        migrate.migrate(connection, path, known)
    assert migrate.user_version(connection) == 2
    assert connection.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'extra'").fetchone() == (0,)
    connection.close()


def test_migrations_count_from_one_without_a_hole() -> None:
    assert [migration.version for migration in migrate.migrations()] == [1]


def damage_header(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"this is not a database at all!!!")


def damage_pages(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(2 * PAGE_BYTES)
        file.write(b"\xff" * (path.stat().st_size - 2 * PAGE_BYTES))


def damage_one_table(path: Path) -> None:
    """Only a check finds this: nothing that is read at the start lies in it."""
    ((page,),) = rows_of(path, "SELECT rootpage FROM sqlite_schema WHERE name = 'timeline'")
    with path.open("r+b") as file:
        file.seek((page - 1) * PAGE_BYTES + 8)
        file.write(b"\x00\x01")  # where the first cell is said to begin: within the page's head


def cut_short(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(3 * PAGE_BYTES)


@pytest.mark.parametrize("damage", [damage_header, damage_pages, damage_one_table, cut_short])
def test_a_damaged_database_is_refused_or_set_aside_never_used(path: Path, damage: Any) -> None:
    store = open_store(path)
    commit(store, FULL_TRANSACTION)
    run_inline(store.close())
    damage(path)
    damaged = path.read_bytes()
    snapshots = path.with_name("snapshots")
    snapshots.mkdir()
    with pytest.raises(CorruptDatabaseError, match="start_afresh"):
        open_store(path)
    assert path.read_bytes() == damaged
    with capture_logs() as logs:
        store = open_store(path, may_start_afresh=True, quarantine_with=(snapshots,))
    assert logs[0]["event"] == "database damaged, set aside, starting afresh without its history"
    assert run_inline(store.bounds()) == Bounds(1, 0)
    assert path.with_name("tocsin.db.bad-1").read_bytes() == damaged
    assert path.with_name("snapshots.bad-1").is_dir()
    run_inline(store.close())
    damage_header(path)
    run_inline(open_store(path, may_start_afresh=True).close())
    assert path.with_name("tocsin.db.bad-2").exists()


@pytest.mark.parametrize(
    ("version", "has_bug"),
    [
        ((3, 6, 23), False), ((3, 7, 0), True), ((3, 40, 1), True), ((3, 44, 5), True), ((3, 44, 6), False),
        ((3, 45, 0), True), ((3, 50, 6), True), ((3, 50, 7), False), ((3, 51, 2), True), ((3, 51, 3), False),
    ],
)  # fmt: skip
def test_versions_of_sqlite_with_the_log_reset_bug_are_known(version: tuple[int, int, int], has_bug: bool) -> None:
    assert has_wal_reset_bug(version) is has_bug
