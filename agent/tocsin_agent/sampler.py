"""Runs the probes that are due, each alone under its deadline, and hands what they measured to the framer.

Not the timing (`scheduler.py`) and not the cutting into frames (`framer.py`).
Invariant: whatever one probe does - fail, hang, yield nonsense - every other target keeps its slots, and the failure is
itself a measurement: `probe.ok` 0.
"""

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol

import structlog

from tocsin_agent.framer import Framer, FrameSink
from tocsin_agent.probes import Measurement, Probe, ProbeError
from tocsin_agent.scheduler import Scheduler
from tocsin_proto.records import Clock, Heartbeat, Series, SeriesKind

log = structlog.get_logger(__name__)

FLUSH_MS = 1000  # between two flushes at least, and how long a measurement waits for slower ones at most
HEARTBEAT_MS = 10_000  # every flush carries a heartbeat; without any for this long one goes alone
BEAT_MS_MAX = 10_000  # the loop turns at least this often: the watchdog hangs on it
PROBLEM_CHARS_MAX = 500

OK_STATES = ((1, "ok"), (0, "failed"))


class Clocks(Protocol):
    def wall_ms(self) -> int: ...
    def mono_ms(self) -> int: ...
    def now(self) -> Clock: ...


class Spool(FrameSink, Protocol):
    @property
    def backlog_bytes(self) -> int: ...
    @property
    def dropped_frames(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Target:
    """One probe of one thing. `group` names what is sampled together: it shares the jitter and the layouts."""

    key: str
    group: str
    probe: Probe
    interval_ms: int
    deadline_ms: int
    ok: Series
    duration: Series
    first_within_ms: int = -1


def target(
    key: str, probe: Probe, interval_ms: int, *, group: str = "", name: str = "", resource: str = "", first_ms: int = -1
) -> Target:
    """A Target with the two series that tell how its probe fares, labelled with `name` (default: the key)."""
    labels = (("probe", name or key),)
    # A host probe must be done before its next slot; a slow device may take longer, and its overruns are counted.
    interval_ms = int(interval_ms)
    deadline_ms = max(interval_ms, 30_000) if resource else interval_ms
    return Target(
        key,
        group or key,
        probe,
        interval_ms,
        deadline_ms,
        Series(resource, "probe.ok", "1", SeriesKind.STATE, labels, interval_ms, OK_STATES),
        Series(resource, "probe.duration_seconds", "s", SeriesKind.GAUGE, labels, interval_ms),
        first_ms,
    )


class Sampler:
    def __init__(
        self,
        spool: Spool,
        clocks: Clocks,
        *,
        beat: Callable[[], None] = lambda: None,
        beat_ms_max: int = BEAT_MS_MAX,
        flushed: Callable[[], None] = lambda: None,
        scheduler: Scheduler | None = None,
        framer: Framer | None = None,
    ) -> None:
        """`beat` is called each time the loop turns, at least every `beat_ms_max`; `flushed` after frames went to the spool."""
        self.framer = framer or Framer()
        self.scheduler = scheduler or Scheduler()
        self.probe_errors = 0
        self.problems: dict[str, str] = {}  # by target key: what is wrong with it now
        self._spool = spool
        self._clocks = clocks
        self._beat = beat
        self._beat_ms_max = beat_ms_max
        self._flushed = flushed
        self._targets: dict[str, Target] = {}
        self._lanes: dict[str, str] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._asked: dict[str, list[asyncio.Future[bool]]] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._wake = asyncio.Event()
        self._waiting_ms: int | None = None  # since when the framer holds something
        self._flushed_ms = clocks.mono_ms() - HEARTBEAT_MS

    @property
    def targets(self) -> dict[str, Target]:
        return dict(self._targets)

    def add(self, new: Target) -> None:
        self._targets[new.key] = new
        self._lanes[new.key] = self.scheduler.add(
            new.key, new.interval_ms, self._clocks.mono_ms(), group=new.group, first_within_ms=new.first_within_ms
        )
        self._wake.set()

    def remove(self, key: str) -> None:
        """Ends a target at once; its probe is closed behind the scenes."""
        gone = self._targets.pop(key)
        self._lanes.pop(key)
        self.problems.pop(key, None)
        self._answer(key, False)
        self.scheduler.remove(key)
        if (running := self._running.pop(key, None)) is not None:
            running.cancel()
        if self._tasks is not None:
            self._tasks.create_task(_close(gone), name=f"close {key}")
        self._wake.set()

    async def ask(self, key: str) -> Probe | None:
        """Runs a target now, or waits for the run that is under way; None when it was removed meanwhile."""
        one = self._targets.get(key)
        if one is None:
            return None
        self.scheduler.hasten(key, self._clocks.mono_ms())
        self._wake.set()
        asked: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._asked.setdefault(key, []).append(asked)
        return one.probe if await asked else None

    async def run(self) -> None:
        """Until cancelled. What was measured by then is flushed by whoever cancelled (`flush`)."""
        try:
            async with asyncio.TaskGroup() as self._tasks:
                while True:
                    self._beat()
                    now_ms = self._clocks.mono_ms()
                    self._start_due(now_ms)
                    if self._is_flush_due(now_ms):
                        self.flush()
                    await self._rest()
        finally:
            self._tasks = None
            for one in self._targets.values():
                await _close(one)

    def flush(self) -> None:
        """Everything measured so far goes to the spool, with a heartbeat."""
        now = self._clocks.now()
        heartbeat = Heartbeat(
            self._spool.backlog_bytes, self._spool.dropped_frames, self.probe_errors, self.scheduler.overruns
        )
        self._waiting_ms = None
        self._flushed_ms = now.mono_ms
        if self.framer.flush(self._spool, now, heartbeat):
            self._flushed()

    def _start_due(self, now_ms: int) -> None:
        assert self._tasks is not None
        for key in self.scheduler.due(now_ms):
            self.scheduler.started(key)
            self._running[key] = self._tasks.create_task(self._round(self._targets[key]), name=f"probe {key}")

    def _is_flush_due(self, now_ms: int) -> bool:
        at_ms = self._flush_at_ms()
        return at_ms is not None and now_ms >= at_ms

    def _flush_at_ms(self) -> int:
        """When to flush next, as things stand. While probes run, both data and heartbeat wait for them a little."""
        patience_ms = FLUSH_MS if self._running else 0
        at_ms = self._flushed_ms + HEARTBEAT_MS + patience_ms
        if self._waiting_ms is not None:
            at_ms = min(at_ms, self._waiting_ms + patience_ms)
        return max(at_ms, self._flushed_ms + FLUSH_MS)

    async def _rest(self) -> None:
        """Until something is due, or something happened."""
        now_ms = self._clocks.mono_ms()
        due_ms = self.scheduler.next_due(now_ms)
        until_ms = min(self._flush_at_ms(), now_ms + self._beat_ms_max, *(() if due_ms is None else (due_ms,)))
        self._wake.clear()
        if until_ms <= now_ms:
            await asyncio.sleep(0)
            return
        try:
            async with asyncio.timeout((until_ms - now_ms) / 1000):
                await self._wake.wait()
        except TimeoutError:
            pass

    async def _round(self, one: Target) -> None:
        started_ms = self._clocks.mono_ms()
        problem: str | None = None
        try:
            problem = await self._collect(one)
        finally:
            # Removed meanwhile, perhaps added again under the same key: then this is nobody's round any more.
            if self._targets.get(one.key) is one:
                now_ms = self._clocks.mono_ms()
                self._running.pop(one.key, None)
                self.scheduler.finished(one.key, now_ms, silent=getattr(one.probe, "silent", False))
                self._wake.set()
        if self._targets.get(one.key) is one:
            self._judge(one, problem)
            wall_ms = self._clocks.wall_ms()
            self._put(one, Measurement(one.ok, int(problem is None)), wall_ms)
            self._put(one, Measurement(one.duration, (now_ms - started_ms) / 1000), wall_ms)
            self._answer(one.key, True)

    async def _collect(self, one: Target) -> str | None:
        """One round of the probe into the framer. None when all is well, or the first thing that was wrong."""
        problem: str | None = None
        deadline = asyncio.timeout(one.deadline_ms / 1000)
        try:
            async with deadline, aclosing(_generator(one.probe)) as yielded:
                async for item in yielded:
                    if isinstance(item, Measurement):
                        refused = self._put(one, item, self._clocks.wall_ms())
                        problem = problem or refused
                    else:
                        self.framer.event(item)
                        self._notice()
        except ProbeError as error:
            return str(error)
        except Exception as error:  # the task's edge: one probe's bug must not end the others
            if deadline.expired():
                return f"did not end within {one.deadline_ms / 1000:g} s"
            log.debug("probe raised", target=one.key, exc_info=True)
            return f"{type(error).__name__}: {error}"
        return problem

    def _put(self, one: Target, item: Measurement, wall_ms: int) -> str | None:
        refused = self.framer.put(self._lanes.get(one.key, one.group), item.series, item.value, wall_ms)
        self._notice()
        return refused

    def _notice(self) -> None:
        if self._waiting_ms is None:
            self._waiting_ms = self._clocks.mono_ms()
            self._wake.set()

    def _answer(self, key: str, is_done: bool) -> None:
        for asked in self._asked.pop(key, ()):
            if not asked.done():
                asked.set_result(is_done)

    def _judge(self, one: Target, problem: str | None) -> None:
        """Counts, and says in the log when it changes; that it still is so is told by `probe.ok`."""
        before = self.problems.pop(one.key, None)
        if problem is not None:
            self.probe_errors += 1
            problem = self.problems[one.key] = problem[:PROBLEM_CHARS_MAX]
            if problem != before:
                log.warning("probe failed", target=one.key, problem=problem)
        elif before is not None:
            log.info("probe recovered", target=one.key)


def _generator(probe: Probe) -> Any:
    """`collect` is written as an async generator; `aclosing` wants its type said."""
    return probe.collect()


async def _close(one: Target) -> None:
    close = getattr(one.probe, "close", None)
    if close is None:
        return
    try:
        await close()
    except Exception:  # the target is gone either way
        log.warning("probe did not close cleanly", target=one.key, exc_info=True)
