"""The catalogue of series: ids, names, and the hot columns as a structure of arrays.

Ids are dense and never used again; the series of a new layout get consecutive ids, gauges first, so that a whole section
is one slice of every column. Scalar code reads and writes the same columns through memoryviews (`m_*`), which is three
times cheaper than indexing an array.
"""

import math
import sys
from collections.abc import Sequence
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from tocsin_collector.core.model import SeriesAdded
from tocsin_collector.core.rules import NO_RULES, QUIET_MAX, Compiled

# Flags of a series. A series with any flag is never quiet.
FRESH = 1  # no sample yet
ACTIVE = 2  # a rule has a level pending, raised or clearing
WATCHED = 4  # its component waits for evidence: the next sample has to be looked at

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Counts = NDArray[np.uint64]
Bytes = NDArray[np.uint8]
Flags = NDArray[np.bool_]

T = TypeVar("T", bound=np.generic)
V = TypeVar("V")


class Column(Protocol[V]):
    """Single elements of a column, as Python numbers."""

    def __getitem__(self, sid: int, /) -> V: ...
    def __setitem__(self, sid: int, value: V, /) -> None: ...


SeriesKey = tuple[str, str, tuple[tuple[str, str], ...]]  # device, metric, labels


COLUMNS = ("last_ms", "value", "raw", "low", "high", "flags")


class Catalogue:
    """All series. Columns (capacity,) grow by doubling; `count` of them are in use.

    last_ms: event time of the newest sample; value: that sample (a counter's rate per second);
    raw: a counter's newest reading; low, high: the quiet band; flags: see above; rules: indices per series.
    """

    def __init__(self) -> None:
        self.count = 0
        self.info: list[SeriesAdded] = []
        self.agent: list[str] = []  # who reports the series now
        self.rules: list[tuple[int, ...]] = []
        self.ids: dict[SeriesKey, int] = {}
        self._allocate(1024)

    def _allocate(self, capacity: int) -> None:
        """Columns of `capacity`, with what the old ones held; memoryviews go with them."""
        self.last_ms: Ints = self._grown("last_ms", np.zeros(capacity, np.int64))
        self.value: Floats = self._grown("value", np.full(capacity, np.nan))
        self.raw: Counts = self._grown("raw", np.zeros(capacity, np.uint64))
        self.low: Floats = self._grown("low", np.full(capacity, -QUIET_MAX))
        self.high: Floats = self._grown("high", np.full(capacity, QUIET_MAX))
        self.flags: Bytes = self._grown("flags", np.full(capacity, FRESH, np.uint8))
        self.m_last_ms: Column[int] = memoryview(self.last_ms)  # type: ignore[arg-type]
        self.m_value: Column[float] = memoryview(self.value)  # type: ignore[arg-type]
        self.m_raw: Column[int] = memoryview(self.raw)  # type: ignore[arg-type]
        self.m_low: Column[float] = memoryview(self.low)  # type: ignore[arg-type]
        self.m_high: Column[float] = memoryview(self.high)  # type: ignore[arg-type]
        self.m_flags: Column[int] = memoryview(self.flags)  # type: ignore[arg-type]

    def _grown(self, name: str, column: NDArray[T]) -> NDArray[T]:
        if self.count:
            column[: self.count] = getattr(self, name)[: self.count]
        return column

    def add(self, info: SeriesAdded, compiled: Compiled = NO_RULES) -> None:
        """Take in a series; its id must be the next one."""
        assert info.id == self.count, (info.id, self.count)
        if self.count == len(self.last_ms):
            self._allocate(2 * len(self.last_ms))
        self.info.append(info)
        self.agent.append(info.agent)
        self.ids[(info.device, info.metric, info.labels)] = info.id
        self.rules.append(())
        self.count += 1
        self.compile(info.id, compiled)

    def compile(self, sid: int, compiled: Compiled) -> None:
        """Give a series its rules (again)."""
        self.rules[sid] = compiled.rules
        low, high = compiled.low, compiled.high
        if compiled.must_see:  # quiet while it stays what it is: which the next sample tells
            low = high = math.nan
        self.m_low[sid], self.m_high[sid] = low, high

    def retire(self, sid: int) -> None:
        """The name of this series goes to another one, which has another kind, unit or other states."""
        info = self.info[sid]
        del self.ids[(info.device, info.metric, info.labels)]
        self.compile(sid, NO_RULES)

    def is_current(self, sid: int) -> bool:
        """Does the series still hold its name?"""
        info = self.info[sid]
        return self.ids.get((info.device, info.metric, info.labels)) == sid


class Span:
    """The series of a layout that have consecutive ids, gauges first, and their columns as views.

    Made once, where slicing would cost every section anew. quiet, test, numbers, delta: room for the filter, (n,).
    newest_ms, evenly: what the whole of last_ms holds, as a time and as bytes, when nobody has written to it since.
    """

    __slots__ = (
        "base", "counted", "counter_last_ms", "counter_raw", "delta", "elapsed", "evenly", "flags", "gauges_n", "high",
        "last_ms", "low", "measured", "newest_ms", "numbers", "quiet", "rates", "rose", "start", "stop", "test", "unflagged",
        "value",
    )  # fmt: skip

    def __init__(self, start: int, stop: int, gauges_n: int) -> None:
        self.start, self.stop, self.gauges_n = start, stop, gauges_n
        self.base: Ints | None = None  # the column that the views are of
        self.quiet: Flags = np.empty(stop - start, np.bool_)
        self.test: Flags = np.empty(stop - start, np.bool_)
        self.rose = self.test[gauges_n:]
        self.counted = self.quiet[gauges_n:]
        self.numbers: Floats = np.empty(stop - start)
        self.measured, self.rates = self.numbers[:gauges_n], self.numbers[gauges_n:]
        self.delta: Counts = np.empty(stop - start - gauges_n, np.uint64)
        self.elapsed: NDArray[np.float64] = np.empty(())
        self.unflagged = bytes(stop - start)
        self.newest_ms, self.evenly = 0, b""

    def look(self, catalogue: Catalogue) -> None:
        """Make the views again when the columns have grown."""
        if self.base is catalogue.last_ms:
            return
        self.base = catalogue.last_ms
        part = slice(self.start, self.stop)
        self.last_ms, self.value = catalogue.last_ms[part], catalogue.value[part]
        self.low, self.high, self.flags = catalogue.low[part], catalogue.high[part], catalogue.flags[part]
        self.counter_last_ms = self.last_ms[self.gauges_n :]
        self.counter_raw = catalogue.raw[self.start + self.gauges_n : self.stop]

    def is_even(self) -> bool:
        """Were all of them heard of last at newest_ms?"""
        return self.last_ms.tobytes() == self.evenly

    def commit(self, numbers: Floats, raw: Counts, at_ms: int) -> None:
        """One sample of each, as if none mattered."""
        self.last_ms.fill(at_ms)
        self.value[:] = numbers
        if len(raw):
            self.counter_raw[:] = raw
        self.newest_ms = at_ms
        self.evenly = at_ms.to_bytes(8, sys.byteorder, signed=True) * (self.stop - self.start)


class LayoutMap:
    """Where the samples of one layout go.

    declared: series id per position as the agent declared it; ids: the same, negative where the agent may not report it.
    gauges, counters: the ids of each kind; span: all of them, where they are consecutive.
    watched: ids whose silence in event time matters, and how long each may be silent.
    """

    __slots__ = (
        "counters", "counters_n", "declared", "gauges", "ids", "is_counter", "is_whole", "last_used", "span", "watch_gap_ms",
        "watched",
    )  # fmt: skip

    def __init__(self, declared: Sequence[int], ids: Sequence[int], is_counter: Sequence[bool]) -> None:
        self.declared = tuple(declared)
        self.ids: Ints = np.array(ids, np.int64)
        self.is_counter = np.array(is_counter, np.bool_)
        self.is_whole = bool((self.ids >= 0).all())
        self.gauges: Ints = self.ids[~self.is_counter]
        self.counters: Ints = self.ids[self.is_counter]
        self.counters_n = len(self.counters)
        self.span = _span(np.concatenate((self.gauges, self.counters)), len(self.gauges))
        self.watched: Ints = np.empty(0, np.int64)
        self.watch_gap_ms: Ints = np.empty(0, np.int64)
        self.last_used = 0


def _span(ids: Ints, gauges_n: int) -> Span | None:
    if len(ids) and ids[0] >= 0 and bool((np.diff(ids) == 1).all()):
        return Span(int(ids[0]), int(ids[-1]) + 1, gauges_n)
    return None
