"""Which notice of a channel comes next: one lane per incident key, one notice of a lane at a time, in order of id.

Not I/O and not policy. A lane exists here only while its first due notice does; what waits behind it stays in the
database. The invariants: of a lane only its oldest due notice is ever handed out, and it stays handed out until `settle`;
a lane with a dead opening or closing hands out nothing. So per key opens and closes alternate as they were written.
"""

from collections.abc import Iterable, Sequence

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
    """cursor: rows from this id on are to be read. has_more: there may be some."""

    def __init__(self, lanes_max: int) -> None:
        self.cursor = 0
        self.has_more = True
        self._lanes_max = lanes_max
        self._heads: dict[str, Head] = {}

    def __len__(self) -> int:
        return len(self._heads)

    @property
    def wants_rows(self) -> bool:
        """At `lanes_max` nothing more is read until a lane gets free: the rest waits in the database."""
        return self.has_more and len(self._heads) < self._lanes_max

    def rescan(self, start: int) -> None:
        """Rows from `start` on may have become due."""
        self.cursor = min(self.cursor, start)
        self.has_more = True

    def take(self, rows: Sequence[DueRow], *, is_full: bool) -> list[int]:
        """Rows as read from `cursor` on, in order of id. is_full: there may be more. Returns dead rows worth one more try."""
        revived: dict[int, None] = {}
        for row in rows:
            head = self._heads.get(row.key)
            if row.blocker:
                # Something new has happened since it was given up: what it holds back is worth another try.
                if row.created_ms > row.blocker_ms:
                    revived[row.blocker] = None
            elif head is None:
                if len(self._heads) >= self._lanes_max:
                    self.rescan(row.id)
                    return list(revived)
                self._heads[row.key] = Head(row, row.next_ms)
            elif row.id > head.row.id:
                head.behind = min(head.behind or row.id, row.id)
            elif row.id < head.row.id and not head.is_out:
                self._heads[row.key] = Head(row, row.next_ms, behind=head.row.id)
            self.cursor = row.id + 1
        self.has_more |= is_full
        return list(revived)

    def ready(self, now_ms: int, count: int, *, is_probe: bool = False) -> list[DueRow]:
        """At most `count` heads to be sent now, longest due first. is_probe: even when none is due yet."""
        waiting = [head for head in self._waiting() if is_probe or is_due(head.due_ms, now_ms)]
        waiting.sort(key=lambda head: (head.due_ms, head.row.id))
        for head in waiting[:count]:
            head.is_out = True
        return [head.row for head in waiting[:count]]

    def settle(self, row: DueRow, result: Result) -> None:
        """The result is durable."""
        head = self._heads[row.key]
        assert head.is_out, row.id
        assert head.row.id == row.id, (head.row.id, row.id)
        if result.state == "due":
            head.row = msgspec.structs.replace(row, attempts=result.attempts)
            head.due_ms, head.is_out = result.at_ms, False
            return
        del self._heads[row.key]
        if head.behind:
            self.rescan(head.behind)

    def hurry(self, now_ms: int) -> None:
        """The channel works again: what waited for that need not wait for its own time."""
        for head in self._waiting():
            head.due_ms = min(head.due_ms, now_ms)

    def next_due_ms(self) -> int | None:
        return min((head.due_ms for head in self._waiting()), default=None)

    def _waiting(self) -> Iterable[Head]:
        return (head for head in self._heads.values() if not head.is_out)
