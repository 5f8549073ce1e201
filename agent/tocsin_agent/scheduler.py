"""When which target is due. Pure: the monotonic clock comes in as `now_ms`, nothing is awaited here.

Not the runner of probes: `sampler.py`. Every target has slots on a grid of its interval, shifted by a jitter that is a
hash of its group's name: stable over restarts, spread over the fleet, the same for all that shall go together.
Invariant: a target never runs twice at once; slots that passed meanwhile are counted as overruns, not made up for.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from heapq import heappop, heappush

RUNNING_MAX = 64  # targets that run at once
SILENT_MAX = 16  # ... of those whose device does not answer: waiting for the dead must not delay the living
GRAIN_MS = 1000  # slots fall on whole seconds of the grid, so that what is due in the same second shares a frame
FIRST_WITHIN_MS = 2000  # a new target runs for the first time within this


@dataclass(slots=True)
class _Entry:
    interval_ms: int
    phase_ms: int
    due_ms: int
    running: bool = False
    waiting: bool = False
    silent: bool = False


class Scheduler:
    def __init__(self, *, running_max: int = RUNNING_MAX, silent_max: int = SILENT_MAX) -> None:
        self.overruns = 0
        self._running_max = running_max
        self._silent_max = silent_max
        self._entries: dict[str, _Entry] = {}
        self._heap: list[tuple[int, str]] = []
        self._ready: dict[bool, deque[str]] = {False: deque(), True: deque()}  # by silence, each in order of coming due
        self._running: dict[bool, int] = {False: 0, True: 0}

    def add(self, key: str, interval_ms: int, now_ms: int, *, group: str = "", first_within_ms: int = -1) -> str:
        """A new target; returns its lane, the name of what comes due together.

        `group` shares its jitter (default: the key); the first run is at most `first_within_ms` away.
        """
        assert key not in self._entries, key
        assert interval_ms > 0, interval_ms
        phase_ms = jitter_ms(group or key, interval_ms)
        within_ms = FIRST_WITHIN_MS if first_within_ms < 0 else first_within_ms
        first_ms = now_ms + (phase_ms % within_ms if within_ms else 0)
        self._entries[key] = _Entry(interval_ms, phase_ms, first_ms)
        heappush(self._heap, (first_ms, key))
        return f"{interval_ms}+{phase_ms}"

    def remove(self, key: str) -> None:
        """Forgets a target; whoever runs it stops it."""
        entry = self._entries.pop(key)
        if entry.running:
            self._running[entry.silent] -= 1
        if entry.waiting:
            self._ready[entry.silent].remove(key)

    def hasten(self, key: str, now_ms: int) -> None:
        """Makes a target due at once, whether its device is silent or not; its slots stay where they are."""
        entry = self._entries[key]
        if entry.running or entry.waiting:
            return
        entry.due_ms, entry.silent = now_ms, False
        heappush(self._heap, (now_ms, key))

    def due(self, now_ms: int) -> Iterator[str]:
        """The targets that may start now. The caller calls `started` for each before it takes the next."""
        while self._heap and self._heap[0][0] <= now_ms:
            due_ms, key = heappop(self._heap)
            entry = self._entries.get(key)
            # A removed target leaves its place in the heap behind.
            if entry is not None and entry.due_ms == due_ms and not entry.running and not entry.waiting:
                entry.waiting = True
                self._ready[entry.silent].append(key)
        for silent in (False, True):
            while self._ready[silent] and self._has_slot(silent):
                yield self._ready[silent][0]

    def next_due(self, now_ms: int) -> int | None:
        """When to look again; None: not before somebody adds or finishes something."""
        if any(self._ready[silent] and self._has_slot(silent) for silent in (False, True)):
            return now_ms
        while self._heap:
            due_ms, key = self._heap[0]
            entry = self._entries.get(key)
            if entry is not None and entry.due_ms == due_ms and not entry.running and not entry.waiting:
                return due_ms
            heappop(self._heap)
        return None

    def started(self, key: str) -> None:
        entry = self._entries[key]
        assert entry.waiting, key
        assert not entry.running, key
        self._ready[entry.silent].remove(key)
        self._running[entry.silent] += 1
        entry.waiting, entry.running = False, True

    def finished(self, key: str, now_ms: int, *, silent: bool = False) -> None:
        """The run is over; `silent`: its device did not answer, from now on it queues with the others that do not."""
        entry = self._entries.get(key)
        if entry is None or not entry.running:
            return  # removed while it ran
        self._running[entry.silent] -= 1
        entry.running, entry.silent = False, silent
        self.overruns += max(0, _slots(entry, now_ms) - _slots(entry, entry.due_ms))
        entry.due_ms = _next_slot(entry, now_ms)
        heappush(self._heap, (entry.due_ms, key))

    def _has_slot(self, silent: bool) -> bool:
        if silent and self._running[True] >= self._silent_max:
            return False
        return sum(self._running.values()) < self._running_max


def jitter_ms(name: str, interval_ms: int) -> int:
    """Where in its interval the slots lie: 0 <= jitter < interval, in whole seconds where the interval has any."""
    hashed = int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "big")
    if interval_ms <= GRAIN_MS:
        return 0
    return hashed % (interval_ms // GRAIN_MS) * GRAIN_MS


def _slots(entry: _Entry, now_ms: int) -> int:
    """How many slots of the grid lie at or before `now_ms`."""
    return (now_ms - entry.phase_ms) // entry.interval_ms


def _next_slot(entry: _Entry, now_ms: int) -> int:
    return (_slots(entry, now_ms) + 1) * entry.interval_ms + entry.phase_ms
