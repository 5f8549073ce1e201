"""Which notice comes next: what may change between two reads of the database."""

import msgspec

from tocsin_collector.desk.due import DueRow
from tocsin_collector.desk.lanes import Lanes
from tocsin_collector.desk.schedule import Result

SENT = Result("sent", 1, 0)


def row(id: int, key: str = "k", **fields: int) -> DueRow:
    return DueRow(id, key, "I-1", id, "opened", f"I-1:{id}:desk", 100, 0, 0, "{}", **fields)


def ids(rows: list[DueRow]) -> list[int]:
    return [one.id for one in rows]


def test_only_the_oldest_of_a_lane_is_handed_out_until_it_is_settled() -> None:
    lanes = Lanes(10)
    assert lanes.begin() == 0
    lanes.take([row(1), row(2, front=1), row(3, "other")], is_full=False)
    assert ids(lanes.ready(0, 8)) == [1, 3]
    assert lanes.ready(0, 8) == []
    assert not lanes.wants_rows
    lanes.settle(row(1), SENT)
    assert (lanes.wants_rows, lanes.begin()) == (True, 2)
    lanes.take([row(2)], is_full=False)
    assert ids(lanes.ready(0, 8)) == [2]


def test_what_becomes_due_again_while_rows_are_read_is_not_forgotten() -> None:
    lanes = Lanes(10)
    lanes.begin()
    lanes.rescan(1)  # a person wants row 1 told again, and the page below was read before that
    lanes.take([row(2, front=1, is_front_dead=1, front_ms=100)], is_full=False)
    assert lanes.ready(0, 8) == []
    assert (lanes.wants_rows, lanes.begin()) == (True, 1)


def test_a_row_in_front_that_became_due_behind_our_back_comes_first() -> None:
    lanes = Lanes(10)
    lanes.begin()
    lanes.take([row(5, front=1)], is_full=False)
    assert lanes.ready(0, 8) == []
    assert lanes.begin() == 1
    lanes.take([row(1), row(5, front=1)], is_full=False)
    assert ids(lanes.ready(0, 8)) == [1]


def test_only_something_newer_gives_the_dead_another_try() -> None:
    lanes = Lanes(10)
    lanes.begin()
    dead = {"front": 1, "is_front_dead": 1}
    assert lanes.take([row(2, front_ms=100, **dead), row(3, front_ms=99, **dead)], is_full=False) == [1]
    assert lanes.ready(0, 8) == []


def test_a_deferred_notice_waits_its_time_unless_the_channel_comes_back_or_is_probed() -> None:
    lanes = Lanes(10)
    lanes.begin()
    lanes.take([row(1), row(2, "other")], is_full=False)
    for one in lanes.ready(0, 8):
        lanes.settle(one, Result("due", 1, 5_000 * one.id, "busy"))
    assert (lanes.ready(4_999, 8), lanes.next_due_ms()) == ([], 5_000)
    assert ids(lanes.ready(0, 1, is_probe=True)) == [1]
    lanes.hurry(100)
    assert lanes.ready(100, 8) == [msgspec.structs.replace(row(2, "other"), attempts=1)]


def test_a_full_memory_leaves_the_rest_in_the_database() -> None:
    lanes = Lanes(2)
    lanes.begin()
    lanes.take([row(n, f"k{n}") for n in range(1, 6)], is_full=True)
    assert (len(lanes), lanes.wants_rows) == (2, False)
    for one in lanes.ready(0, 8):
        lanes.settle(one, SENT)
    assert (lanes.wants_rows, lanes.begin()) == (True, 3)
