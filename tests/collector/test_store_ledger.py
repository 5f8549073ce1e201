"""The ledger in the database: rows tile a component's life, sums are exact, what was once printed can be printed again."""

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.plant import entry

from tocsin_collector.core.model import ComponentState, Splice
from tocsin_collector.store import inline
from tocsin_collector.store.inline import run_inline
from tocsin_collector.store.read import Reader
from tocsin_collector.store.rows import Interval, Sums
from tocsin_collector.store.sqlite import SqliteStore

HORIZON = 60  # the model looks at each millisecond up to here; open ends go on behind it
STATES = list(ComponentState)
DOOR = "press-7"


@st.composite
def splices(draw: st.DrawFn) -> Splice:
    start = draw(st.integers(0, HORIZON - 2))
    end = draw(st.one_of(st.just(0), st.integers(start + 1, HORIZON - 1)))
    return Splice(DOOR, start, draw(st.sampled_from(STATES)), end, draw(st.sampled_from(["", "a", "b"])))


class Books:
    """A store on disk and its reader, in line."""

    def __init__(self, folder: str) -> None:
        self.path = Path(folder) / "tocsin.db"
        self.store = run_inline(SqliteStore.open(self.path, connect=inline.connect))
        self.reader = Reader(self.store._connection)
        self.offset = 0

    def write(self, *splices: Splice) -> int:
        self.offset += 1
        run_inline(self.store.commit(entry(self.offset, *splices)))
        return self.offset

    def intervals(self, revision: int | None = None) -> list[Interval]:
        return run_inline(self.reader.intervals(DOOR, 0, 1 << 50, revision)).items

    def sums(self, from_ms: int, to_ms: int, revision: int | None = None) -> Sums:
        return run_inline(self.reader.sums(DOOR, from_ms, to_ms, revision))


def model(written: list[Splice]) -> list[ComponentState]:
    """The state of each millisecond, unknown where nothing was ever said."""
    line = [ComponentState.UNKNOWN] * HORIZON
    for one in written:
        for ms in range(one.start_ms, one.end_ms or HORIZON):
            line[ms] = one.state
    return line


@settings(max_examples=60, deadline=None)
@given(st.lists(splices(), min_size=1, max_size=8), st.integers(0, HORIZON - 1), st.integers(1, HORIZON))
def test_any_splices_tile_the_life_of_a_component_and_every_sum_is_exact(
    written: list[Splice], from_ms: int, length: int
) -> None:
    to_ms = min(HORIZON, from_ms + length)
    with tempfile.TemporaryDirectory() as folder:
        books = Books(folder)
        for one in written:
            books.write(one)
        rows = books.intervals()
        assert [row.end_ms for row in rows[:-1]] == [row.start_ms for row in rows[1:]]
        assert rows[-1].end_ms == 0
        assert rows[0].start_ms == min(one.start_ms for one in written)
        for n in range(len(written) + 1):
            line = model(written[:n])[from_ms:to_ms]
            sums = books.sums(from_ms, to_ms, revision=n)
            assert sums[4:] == tuple(line.count(state) for state in STATES)
            assert sum(sums[4:]) == to_ms - from_ms
        assert books.sums(from_ms, to_ms)[4:] == sums[4:]
        run_inline(books.store.close())


def test_a_report_of_an_old_revision_reads_as_it_was_printed() -> None:
    with tempfile.TemporaryDirectory() as folder:
        books = Books(folder)
        first = books.write(Splice(DOOR, 1000, ComponentState.UP))
        printed = books.sums(0, 10_000)
        assert printed == Sums(DOOR, 0, 10_000, first, 9000, 0, 0, 1000, 0, 0)
        books.write(Splice(DOOR, 2000, ComponentState.DOWN, 5000, "k"))
        assert books.sums(0, 10_000, printed.revision) == printed
        now = books.sums(0, 10_000)
        assert (now.revision, now.up, now.down, now.unknown) == (2, 6000, 3000, 1000)
        run_inline(books.store.close())


def test_several_splices_of_one_entry_apply_in_order() -> None:
    with tempfile.TemporaryDirectory() as folder:
        books = Books(folder)
        books.write(
            Splice(DOOR, 1000, ComponentState.UP),
            Splice(DOOR, 3000, ComponentState.DOWN, cause="k"),
            Splice(DOOR, 2000, ComponentState.UNKNOWN, 4000),
        )
        assert [row[:4] for row in books.intervals()] == [
            (1000, 2000, "up", ""),
            (2000, 4000, "unknown", ""),
            (4000, 0, "down", "k"),
        ]
        run_inline(books.store.close())


def test_the_state_of_now_began_where_its_run_of_equal_states_began() -> None:
    with tempfile.TemporaryDirectory() as folder:
        books = Books(folder)
        books.write(
            Splice(DOOR, 1000, ComponentState.UP),
            Splice(DOOR, 2000, ComponentState.DOWN, cause="a"),
            Splice(DOOR, 3000, ComponentState.DOWN, cause="b"),
            Splice("other", 500, ComponentState.UP),
        )
        newest_ms = run_inline(books.reader.newest())[1]
        assert run_inline(books.reader.components(newest_ms)) == [
            ("other", "up", 500, ""),
            (DOOR, "down", 2000, "b"),
        ]
        run_inline(books.store.close())


def test_a_collector_that_has_stopped_knows_nothing_since() -> None:
    with tempfile.TemporaryDirectory() as folder:
        books = Books(folder)
        start = 1_000_000
        run_inline(books.store.commit(entry(1, Splice(DOOR, start, ComponentState.UP), received_ms=start)))
        run_inline(books.store.commit(entry(2, received_ms=start + 60_000)))
        now_ms = start + 3_600_000
        assert run_inline(books.reader.components(now_ms)) == [(DOOR, "unknown", start + 60_000, "collector stopped")]
        sums = run_inline(books.reader.sums(DOOR, start, now_ms, now_ms=now_ms))
        assert (sums.up, sums.unknown) == (60_000, 3_540_000)
        run_inline(books.store.close())


def test_ledger_pages_join_without_hole_or_repetition() -> None:
    with tempfile.TemporaryDirectory() as folder:
        books = Books(folder)
        for n in range(7):
            books.write(Splice(DOOR, n * 10, STATES[n % 2]))
        whole = books.intervals()
        assert len(whole) == 7
        for revision in (None, 7):
            paged: list[Interval] = []
            cursor = ""
            while True:
                page = run_inline(books.reader.intervals(DOOR, 15, 1000, revision, cursor=cursor, limit=2))
                paged += page.items
                cursor = page.next
                if not cursor:
                    break
            assert paged == whole[1:]
        run_inline(books.store.close())


def test_nobody_knows_the_future_and_a_past_revision_not_what_came_after() -> None:
    with tempfile.TemporaryDirectory() as folder:
        books = Books(folder)
        start, day_ms = 1_000_000, 86_400_000
        run_inline(books.store.commit(entry(1, Splice(DOOR, start, ComponentState.UP), received_ms=start)))
        run_inline(books.store.commit(entry(2, received_ms=start + 60_000)))
        now_ms, tomorrow_ms = start + 65_000, start + day_ms
        sums = run_inline(books.reader.sums(DOOR, start, tomorrow_ms, now_ms=now_ms))
        assert (sums.up, sums.unknown) == (65_000, day_ms - 65_000)
        then = run_inline(books.reader.sums(DOOR, start, tomorrow_ms, 2, now_ms=now_ms))
        assert (then.up, then.unknown) == (60_000, day_ms - 60_000)
        run_inline(books.store.close())
