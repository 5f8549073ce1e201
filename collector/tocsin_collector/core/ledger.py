"""The availability ledger: what state a component was in, at event time, and how well that is known.

Not the stored record: `Tracker` is the moving end of one component's timeline, and says what to write as Splices;
`splice` is how any store applies one. Three facts make a state: is there evidence, is the component reachable, and
which raised findings impair it.

The invariant: the timeline is a function of the evidence at event time. Ticks only ever write `unknown` from the last
evidence on, and evidence that comes later takes that back (law 3c). Every write is a splice, so a component's rows
tile its life (law 7).
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from tocsin_collector.core.model import ComponentState, Impact, Record, Splice

NO_EVIDENCE = "no evidence"
NOT_SEEN = "not seen yet"


class Row(NamedTuple):
    """One current row of a component's ledger. `end_ms` 0: until further notice."""

    id: int
    start_ms: int
    end_ms: int
    state: str
    cause: str


class Piece(NamedTuple):
    """One row to insert."""

    start_ms: int
    end_ms: int
    state: str
    cause: str


_OPEN_END = 1 << 62
PIECE_MS = 600_000  # of known stretch that is written while catching up
WAITING_MAX = 256  # of a component nobody speaks of any more; beyond it the oldest changes lose their time


def splice(rows: Iterable[Row], new: Splice) -> tuple[list[int], list[Piece]]:
    """Replace [new.start_ms, new.end_ms) in the current `rows` of one component.

    Returns the ids of the rows it supersedes and the pieces to insert: what is left of them at either side, and the new one.
    Rows that do not overlap may be among `rows`; they are left alone.
    """
    start, end = new.start_ms, new.end_ms or _OPEN_END
    if end <= start:
        return [], []
    superseded: list[int] = []
    pieces: list[Piece] = []
    for row in rows:
        row_end = row.end_ms or _OPEN_END
        if row_end <= start or row.start_ms >= end:
            continue
        superseded.append(row.id)
        if row.start_ms < start:
            pieces.append(Piece(row.start_ms, start, row.state, row.cause))
        if row_end > end:
            pieces.append(Piece(end, row.end_ms, row.state, row.cause))
    pieces.append(Piece(start, new.end_ms, new.state.value, new.cause))
    pieces.sort()
    return superseded, pieces


def sums(rows: Sequence[Row], from_ms: int, to_ms: int) -> dict[ComponentState, int]:
    """Milliseconds of each state within [from_ms, to_ms). They sum to the period: what no row covers is unknown."""
    total = dict.fromkeys(ComponentState, 0)
    for row in rows:
        length = min(row.end_ms or _OPEN_END, to_ms) - max(row.start_ms, from_ms)
        if length > 0:
            total[ComponentState(row.state)] += length
    total[ComponentState.UNKNOWN] += max(0, to_ms - from_ms) - sum(total.values())
    return total


_Changed = tuple[int, str, Impact, bool]  # event time, key, impact, raised


class TrackerState(Record, frozen=True):
    """A Tracker as a snapshot holds it."""

    component: str
    window_ms: int
    last_ms: int
    down: tuple[str, ...]
    degraded: tuple[str, ...]
    written: ComponentState
    written_cause: str
    known_from_ms: int
    is_silent: bool
    changed_ms: int
    stretch_ms: int
    waiting: tuple[_Changed, ...]
    ahead: tuple[_Changed, ...]
    before_ahead: tuple[tuple[str, ...], tuple[str, ...]]


class Tracker:
    """The moving end of one component's timeline.

    last_ms: event time of the newest evidence, 0 for none. written: what the ledger's open row says.
    known_from_ms: start of a stretch that is known but not written yet, because the agent is still catching up; 0: none.
    waiting: changes later than the newest evidence, while catching up or silent: whether they fall into a hole is not known.
    ahead: those that were written at once; before_ahead: down and degraded as they were before.
    """

    __slots__ = (
        "ahead", "before_ahead", "changed_ms", "component", "degraded", "down", "is_silent", "known_from_ms", "last_ms",
        "stretch_ms", "waiting", "window_ms", "written", "written_cause",
    )  # fmt: skip

    def __init__(self, component: str, window_ms: int) -> None:
        self.component = component
        self.window_ms = window_ms
        self.last_ms = 0
        self.down: dict[str, None] = {}  # keys of raised findings that take it down, oldest first
        self.degraded: dict[str, None] = {}
        self.written = ComponentState.UNKNOWN
        self.written_cause = NOT_SEEN
        self.known_from_ms = 0
        self.is_silent = False
        self.changed_ms = 0
        self.stretch_ms = 0  # where the present stretch without a hole began: no change reaches back beyond it
        self.waiting: list[_Changed] = []
        self.ahead: list[_Changed] = []
        self.before_ahead: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())

    # ------------------------------------------------------------------------------------------------- what it says

    def begin(self, at_ms: int) -> Splice:
        """The component enters the registry: unknown from here on."""
        return Splice(self.component, at_ms, ComponentState.UNKNOWN, cause=NOT_SEEN)

    def evidence(self, at_ms: int, now_ms: int) -> list[Splice]:
        """Something was heard of the component, true at event time `at_ms`."""
        out: list[Splice] = []
        if at_ms <= self.last_ms:
            return out
        has_hole = self.last_ms == 0 or at_ms - self.last_ms > self.window_ms
        if has_hole and self.last_ms and not self.is_silent:
            out += self._settle(self.last_ms)
            out += self._write(self.last_ms, ComponentState.UNKNOWN, NO_EVIDENCE)
        if has_hole:
            self.known_from_ms = self.stretch_ms = at_ms
        elif self.is_silent:
            self.known_from_ms = self.last_ms
        self.is_silent = False
        self.last_ms = at_ms
        self._overtake(at_ms)
        waiting, self.waiting = self.waiting, []
        for change in waiting:
            out += self.change(*change)
        if self.known_from_ms and at_ms - self.known_from_ms >= PIECE_MS:
            out += self._settle(at_ms)  # in pieces, so that a restart without a snapshot loses little of a long backlog
            self.known_from_ms = at_ms
        if self.known_from_ms and now_ms - at_ms <= self.window_ms:
            start, self.known_from_ms = self.known_from_ms, 0
            out += self._write(start, *self._state())
        return out

    def change(self, at_ms: int, key: str, impact: Impact, is_raised: bool) -> list[Splice]:
        """A finding that impairs the component was raised or has ended at event time `at_ms`."""
        if (self.known_from_ms or self.is_silent) and at_ms > self.last_ms:
            self.waiting.append((at_ms, key, impact, is_raised))
            if len(self.waiting) > WAITING_MAX:
                self._mark(*self.waiting.pop(0)[1:])
            return []
        self._overtake(self.last_ms)
        if at_ms > self.last_ms > 0:
            if not self.ahead:
                self.before_ahead = (tuple(self.down), tuple(self.degraded))
            self.ahead.append((at_ms, key, impact, is_raised))
        before = self._state()
        self._mark(key, impact, is_raised)
        after = self._state()
        at_ms = max(at_ms, self.changed_ms, self.stretch_ms)  # in order, and never back into a hole
        self.changed_ms = at_ms
        if after == before:
            return []
        if self.last_ms == 0 or self.is_silent:
            return []  # nothing is known just now; the next evidence writes the state as it is then
        if not self.known_from_ms:
            return self._write(at_ms, *after)
        if at_ms <= self.known_from_ms:
            return []
        start, self.known_from_ms = self.known_from_ms, at_ms
        return [Splice(self.component, start, before[0], at_ms, before[1])]

    def step_back(self, now_ms: int) -> list[Splice]:
        """The collector's clock was set back: from now on the ledger says what it says, not what a wrong clock wrote ahead."""
        is_ahead = self.changed_ms > now_ms or self.last_ms > now_ms
        self.last_ms, self.changed_ms = min(self.last_ms, now_ms), min(self.changed_ms, now_ms)
        self.stretch_ms, self.known_from_ms = min(self.stretch_ms, now_ms), min(self.known_from_ms, now_ms)
        self.waiting = [(min(change[0], now_ms), *change[1:]) for change in self.waiting]
        self.ahead = [(min(change[0], now_ms), *change[1:]) for change in self.ahead]
        return [Splice(self.component, now_ms, self.written, cause=self.written_cause)] if is_ahead else []

    def recall(self, key: str, impact: Impact) -> None:
        """A finding was raised already when this tracker was made from committed truth."""
        self._mark(key, impact, True)

    def silence(self) -> list[Splice]:
        """Nothing was heard for longer than the window: unknown since the last evidence."""
        if self.is_silent or self.last_ms == 0:
            return []
        out = self._settle(self.last_ms)
        self.is_silent = True
        self._overtake(self.last_ms)
        if self.ahead:
            # They may turn out to be observed after all: then each belongs where it was, not where evidence ended.
            self.down, self.degraded = map(dict.fromkeys, self.before_ahead)
            self.waiting, self.ahead = [*self.ahead, *self.waiting], []
        return out + self._write(self.last_ms, ComponentState.UNKNOWN, NO_EVIDENCE)

    # ---------------------------------------------------------------------------------------------------- its leaves

    def _overtake(self, at_ms: int) -> None:
        """Changes up to `at_ms` are no longer ahead of the evidence, which may have moved on quietly."""
        if not self.ahead:
            return
        passed = [change for change in self.ahead if change[0] <= at_ms]
        self.ahead = [change for change in self.ahead if change[0] > at_ms]
        if self.ahead and passed:
            now = self.down, self.degraded
            self.down, self.degraded = map(dict.fromkeys, self.before_ahead)
            for _, key, impact, is_raised in passed:
                self._mark(key, impact, is_raised)
            self.before_ahead = (tuple(self.down), tuple(self.degraded))
            self.down, self.degraded = now

    def _settle(self, end_ms: int) -> list[Splice]:
        """Write what is known but not written, up to `end_ms`."""
        start, self.known_from_ms = self.known_from_ms, 0
        state, cause = self._state()
        return [Splice(self.component, start, state, end_ms, cause)] if start and end_ms > start else []

    def _write(self, start_ms: int, state: ComponentState, cause: str) -> list[Splice]:
        if (state, cause) == (self.written, self.written_cause):
            return []
        self.written, self.written_cause = state, cause
        return [Splice(self.component, start_ms, state, cause=cause)]

    def _mark(self, key: str, impact: Impact, is_raised: bool) -> None:
        self.down.pop(key, None)
        self.degraded.pop(key, None)
        if is_raised and impact is Impact.DOWN:
            self.down[key] = None
        elif is_raised and impact is Impact.DEGRADED:
            self.degraded[key] = None

    def _state(self) -> tuple[ComponentState, str]:
        if self.down:
            return ComponentState.DOWN, next(iter(self.down))
        if self.degraded:
            return ComponentState.DEGRADED, next(iter(self.degraded))
        return ComponentState.UP, ""

    # ------------------------------------------------------------------------------------------------------ snapshot

    def freeze(self) -> TrackerState:
        return TrackerState(
            self.component, self.window_ms, self.last_ms, tuple(self.down), tuple(self.degraded),
            self.written, self.written_cause, self.known_from_ms, self.is_silent, self.changed_ms,
            self.stretch_ms, tuple(self.waiting), tuple(self.ahead), self.before_ahead,
        )  # fmt: skip

    @classmethod
    def thaw(cls, state: TrackerState) -> "Tracker":
        self = cls(state.component, state.window_ms)
        for name in cls.__slots__:
            setattr(self, name, getattr(state, name))
        self.down = dict.fromkeys(state.down)
        self.degraded = dict.fromkeys(state.degraded)
        self.waiting, self.ahead = list(state.waiting), list(state.ahead)
        return self
