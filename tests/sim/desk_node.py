"""Delivery in the simulated world: the outbox's real order, policy and statements, and a receiver with its moods.

Only the tasks are played. The receiver drops what it has by its idempotency key, as the contract of the webhook says; what is
left must alternate per incident key.
"""

import random
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from tocsin_collector.batch import OperationItem
from tocsin_collector.core.model import Notice
from tocsin_collector.desk import due, schedule
from tocsin_collector.desk.base import Outcome, Verdict
from tocsin_collector.desk.due import DueRow
from tocsin_collector.desk.lanes import Lanes
from tocsin_collector.desk.schedule import Breaker, Pace, Result
from tocsin_collector.store.base import Answer, Statements
from tocsin_collector.store.inline import run_inline

if TYPE_CHECKING:
    from tests.sim.collector_node import CollectorNode

CHANNEL = "desk"


@dataclass
class Receiver:
    """Whoever is told. mood: how often an attempt fails before, and after, it was taken."""

    refuses: float = 0.0
    stays_silent: float = 0.0
    calls: int = 0
    notices: dict[str, Notice] = field(default_factory=dict)  # by idempotency key, in order of arrival

    def take(self, key: str, notice: Notice, rng: random.Random) -> Outcome:
        self.calls += 1
        if rng.random() < self.refuses:
            return Outcome(Verdict.RETRY, "HTTP 503")
        self.notices.setdefault(key, notice)
        if rng.random() < self.stays_silent:
            return Outcome(Verdict.UNCERTAIN, "no answer")
        return Outcome(Verdict.OK)


class DeskNode:
    """One life of the delivery worker, which ends with its collector's."""

    def __init__(self, node: "CollectorNode", receiver: Receiver, rng: random.Random) -> None:
        self._node = node
        self._receiver = receiver
        self._rng = rng
        self._pace = Pace(retry_ms_max=8_000, pause_ms=1_000, pause_ms_max=8_000)
        self._lanes = Lanes(self._pace.lanes_max)
        self._breaker = Breaker()
        self._in_flight = 0
        self._timer = 0

    @property
    def is_alive(self) -> bool:
        return self._node.is_up and self._node.desk is self

    def wake(self) -> None:
        self._lanes.has_more = True
        self._work()

    def _work(self) -> None:
        agenda, pace = self._node.agenda, self._pace
        if self._lanes.wants_rows:
            self._read()
        places = schedule.places(self._breaker, self._in_flight, agenda.now_ms, pace)
        for row in self._lanes.ready(agenda.now_ms, places, is_probe=self._breaker.is_open):
            self._in_flight += 1
            agenda.after(self._rng.randint(1, 300), self._attempt, row)
        next_ms = self._lanes.next_due_ms()
        if next_ms is not None and not self._in_flight:
            self._timer += 1
            agenda.after(max(next_ms, self._breaker.until_ms) - agenda.now_ms, self._again, self._timer)

    def _again(self, timer: int) -> None:
        if self.is_alive and timer == self._timer:
            self._work()

    def _read(self) -> None:
        start, limit = self._lanes.begin(), self._pace.page_rows

        async def read() -> list[DueRow]:
            return await self._node.store._connection.whole(lambda c: due.read_due(c, CHANNEL, start, limit))

        rows = run_inline(read())
        revived = self._lanes.take(rows, is_full=len(rows) == limit)
        assert not revived, "nothing is ever refused for good in this world"

    def _attempt(self, row: DueRow) -> None:
        """The call is on its way: the receiver gets it even when the collector has died meanwhile."""
        notice = msgspec.json.decode(row.body, type=Notice)
        outcome = self._receiver.take(row.idempotency_key, notice, self._rng)
        self._node.agenda.after(self._rng.randint(1, 300), self._answered, row, outcome)

    def _answered(self, row: DueRow, outcome: Outcome) -> None:
        if not self.is_alive:
            return
        now_ms = self._node.agenda.now_ms
        self._in_flight -= 1
        was_open = self._breaker.is_open
        self._breaker = schedule.observe(self._breaker, outcome, now_ms, self._pace)
        if was_open and not self._breaker.is_open:
            self._lanes.hurry(now_ms)
        result = schedule.judge(row.attempts, outcome, now_ms, self._rng.random(), self._pace)

        async def record(statements: Statements) -> None:
            await due.record(statements, CHANNEL, [(row, result)], now_ms)

        self._node.offer(OperationItem(record, partial(self._settled, row, result)))

    def _settled(self, row: DueRow, result: Result, answer: Answer) -> None:
        assert answer.error is None, answer.error
        self._lanes.settle(row, result)
        self._work()
