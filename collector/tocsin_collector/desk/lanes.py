"""Which notice of a channel comes next: one lane per incident key, one notice of a lane at a time, in order of id.

Not I/O and not policy. A lane exists here only while its first due notice does; what waits behind it stays in the
database. The invariants: of a lane only its oldest due notice is ever handed out, and it stays handed out until `settle`;
a lane with a dead opening or closing hands out nothing. So per key opens and closes alternate as they were written.
"""

from collections.abc import Sequence
from heapq import heappop, heappush

import msgspec

from tocsin_collector.desk.due import DueRow
from tocsin_collector.desk.schedule import Result, is_due


class Head(msgspec.Struct):
    """A lane's oldest due notice. behind: id of the oldest row known to wait behind it, 0 for none."""

    row: DueRow
    due_ms: int
    is_out: bool = False
    behind: int = 0


class Lanes:
    """has_more: there may be due rows that were not read."""

    def __init__(self, lanes_max: int) -> None:
        self.has_more = True
        self._cursor = 0
        self._again = 0  # rows from this id on are to be read again, 0: none
        self._lanes_max = lanes_max
        self._heads: dict[str, Head] = {}
        self._queue: list[tuple[int, int, str]] = []  # heap of (due_ms, row id, key); may hold what no longer waits

    def __len__(self) -> int:
        return len(self._heads)

    @property
    def wants_rows(self) -> bool:
        """At `lanes_max` nothing more is read until a lane gets free: the rest waits in the database."""
        return self.has_more and len(self._heads) < self._lanes_max

    def rescan(self, start: int) -> None:
        """Rows from `start` on may have become due. Also while rows are being read."""
        self._again = min(self._again or start, start)
        self.has_more = True

    def begin(self) -> int:
        """Rows from here on are read next, and given to `take`."""
        if self._again:
            self._cursor = min(self._cursor, self._again)
        self._again = 0
        self.has_more = False
        return self._cursor

    def take(self, rows: Sequence[DueRow], *, is_full: bool) -> list[int]:
        """Rows in order of id. is_full: there may be more. Returns ids of dead rows that are worth one more try."""
        revived: dict[int, None] = {}
        for row in rows:
            head = self._heads.get(row.key)
            if row.is_front_dead:
                # Something new has happened since it was given up: what it holds back is worth another try.
                if row.created_ms > row.front_ms:
                    revived[row.front] = None
            elif head is not None and head.row.id < row.id:
                head.behind = min(head.behind or row.id, row.id)
            elif row.front:
                self.rescan(row.front)  # it has become due again behind our back
            elif head is None and len(self._heads) >= self._lanes_max:
                self.rescan(row.id)
                break
            elif head is None:
                self._wait(Head(row, row.next_ms))
            elif row.id < head.row.id and not head.is_out:
                self._wait(Head(row, row.next_ms, behind=head.row.id))
            self._cursor = row.id + 1
        self.has_more |= is_full
        return list(revived)

    def ready(self, now_ms: int, count: int, *, is_probe: bool = False) -> list[DueRow]:
        """At most `count` heads to be sent now, longest due first. is_probe: even when none is due yet."""
        rows: list[DueRow] = []
        while len(rows) < count and (head := self._first()) is not None and (is_probe or is_due(head.due_ms, now_ms)):
            heappop(self._queue)
            head.is_out = True
            rows.append(head.row)
        return rows

    def settle(self, row: DueRow, result: Result) -> None:
        """The result is durable."""
        head = self._heads[row.key]
        assert head.is_out, row.id
        assert head.row.id == row.id, (head.row.id, row.id)
        if result.state == "due":
            head.row = msgspec.structs.replace(row, attempts=result.attempts)
            head.due_ms, head.is_out = result.at_ms, False
            self._wait(head)
            return
        del self._heads[row.key]
        if head.behind:
            self.rescan(head.behind)

    def hurry(self, now_ms: int) -> None:
        """The channel works again: what waited for that need not wait for its own time."""
        waiting = [head for head in self._heads.values() if not head.is_out]
        self._queue = []
        for head in waiting:
            head.due_ms = min(head.due_ms, now_ms)
            self._wait(head)

    def next_due_ms(self) -> int | None:
        head = self._first()
        return None if head is None else head.due_ms

    def _wait(self, head: Head) -> None:
        self._heads[head.row.key] = head
        heappush(self._queue, (head.due_ms, head.row.id, head.row.key))

    def _first(self) -> Head | None:
        """The head that is due first."""
        while self._queue:
            due_ms, id, key = self._queue[0]
            head = self._heads.get(key)
            if head is not None and not head.is_out and (head.due_ms, head.row.id) == (due_ms, id):
                return head
            heappop(self._queue)
        return None
