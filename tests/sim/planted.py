"""Bugs planted into the simulated world, and nowhere else: whoever cannot find these would not find real ones either.

Each takes away one promise that a law stands on, as plausibly as a mistake would. `PLANTED` says within how many seeds
the invariants must find it.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, NamedTuple

from tests.sim.world import Flaws

from tocsin_agent.spool import Spool
from tocsin_collector import recovery
from tocsin_collector.batch import Batch, Batcher, entry_of
from tocsin_collector.core.agents import Agent
from tocsin_collector.core.engine import Engine
from tocsin_collector.core.intake import Admission
from tocsin_collector.core.model import Effect, Notice
from tocsin_collector.core.topology import Topology
from tocsin_collector.store.base import Statements, Transaction


class Planted(NamedTuple):
    """law: what must notice it. within: so many seeds from `first` on at most. plant: puts it in place.

    first: near a seed that shows it, so that the test need not play many that do not.
    """

    law: str
    within: int
    plant: Callable[[], AbstractContextManager[Flaws]]
    first: int = 0


class _PromisesEarly(Batcher):
    """What is stepped counts as durable."""

    def seal(self, batch: Batch) -> None:
        super().seal(batch)
        self._committed |= batch.marks
        for done, seq in batch.done:
            done(seq)


class _AdmitsAll(Batcher):
    """No high-water check: whatever arrives is applied."""

    def admit(self, agent: str, spool_id: bytes, seq: int, follows: int) -> Admission:
        self._admitted[agent, spool_id] = max(seq, self._admitted.get((agent, spool_id), 0))
        return Admission.ACCEPT


class _PromisesAdmitted(Batcher):
    """Hello is answered from what was admitted, not from what is durable."""

    def committed(self, agent: str, spool_id: bytes) -> int:
        return self.high_water(agent, spool_id)


class _ForgetsMarks(Batcher):
    """A restart begins without the high-water marks."""

    def __init__(self, engine: Any, marks: Any = (), **position: int) -> None:
        super().__init__(engine, (), **position)

    def adopt(self, agent: str, spool_id: bytes, first_unacked: int) -> bool:
        return False


class _GoesOn(Spool):
    """After an unclean start the old id goes on, with the next number behind what is on the disk."""

    def _adopt(self, now_ms: int) -> None:
        found = self._found()
        if not found:
            super()._adopt(now_ms)
            return
        self._active = found[-1]
        self._opened_at = self._active.last_seq


async def _replay_and_emit(store: Any, engine: Engine) -> tuple[int, int]:
    """Replay, and what it says is told once more."""
    replayed = 0
    for row in await store.read_journal(engine.offset + 1, 1 << 40):
        replayed += 1
        told = [effect for effect in engine.step(entry_of(row)) if isinstance(effect, Notice)]
        for notice in told:
            await store.commit(Transaction(operations=[partial(_tell_again, notice, row.offset)]))
    return replayed, 0


async def _tell_again(notice: Notice, offset: int, statements: Statements) -> None:
    await statements.execute(
        'INSERT OR IGNORE INTO outbox (channel, "key", incident, ordinal, kind, idempotency_key, created_ms, body)'
        " SELECT channel, \"key\", incident, ordinal, kind, idempotency_key || ':again', created_ms, body FROM outbox"
        " WHERE incident = ? AND ordinal = ?",
        (notice.incident, notice.ordinal),
    )


_tick = Engine._tick


def _tick_without_holes(self: Engine, now_ms: int, out: list[Effect]) -> None:
    """The collector's own absence counts as silence of the agents."""
    self.last_tick_ms = 0
    _tick(self, now_ms, out)


@contextmanager
def _flaws(**flaws: Any) -> Iterator[Flaws]:
    yield Flaws(**flaws)


@contextmanager
def _patched(owner: Any, name: str, value: Any) -> Iterator[Flaws]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield Flaws()
    finally:
        setattr(owner, name, before)


PLANTED = {
    "ack before commit": Planted("L1", 10, lambda: _flaws(batcher=_PromisesEarly)),
    "no high-water check": Planted("L2", 10, lambda: _flaws(batcher=_AdmitsAll)),
    "replay that emits": Planted("L3|L5", 10, lambda: _patched(recovery, "_replay", _replay_and_emit)),
    "spool id used again after an unclean start": Planted("L2", 30, lambda: _flaws(open_spool=_GoesOn.open), first=17),
    "silence judged while the collector was down": Planted(
        "causeless", 10, lambda: _patched(Engine, "_tick", _tick_without_holes)
    ),
    "welcome from what is admitted, not durable": Planted("L1", 40, lambda: _flaws(batcher=_PromisesAdmitted)),
    "marks forgotten at a restart": Planted("L2", 10, lambda: _flaws(batcher=_ForgetsMarks)),
    "late messages move event time": Planted(
        "L3", 60, lambda: _patched(Agent, "_settled", lambda self, mono: mono), first=50
    ),
    "suppression forgotten": Planted("L5", 20, lambda: _patched(Topology, "explained_by", lambda self, device: "")),
}
