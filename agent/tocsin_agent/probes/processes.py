"""How many processes run, and for the configured names how many, how much CPU and how much memory.

Not a process list: without configured names one directory is counted and no process is looked at.
"""

import time
from collections.abc import AsyncIterator, Iterator

import psutil

from tocsin_agent.config import HostSettings
from tocsin_agent.globs import Globs
from tocsin_agent.probes import Column, Family, Measurement

COUNT = (Column("process.count", "1"),)
NAMED = (*COUNT, Column("process.cpu_ratio", "1"), Column("process.memory_bytes", "By"))
# A process number may come back under another name between two rounds: now and then every name is read again.
ROUNDS_BETWEEN_NAMES = 6


class ProcessesProbe:
    def __init__(self, host: HostSettings) -> None:
        self._all = Family("process", COUNT, host.interval).of("all")
        self._named = Family("process", NAMED, host.interval)
        self._wanted = {pattern: Globs([pattern]) for pattern in host.processes}
        self._names: dict[int, str] = {}
        self._cpu_s: dict[tuple[int, float], float] = {}
        self._last_s = 0.0
        self._round = 0

    async def collect(self) -> AsyncIterator[Measurement]:
        pids = psutil.pids()
        yield Measurement(self._all[0], len(pids))
        if not self._wanted:
            return
        self._learn(pids)
        now_s = time.monotonic()
        elapsed_s, self._last_s = now_s - self._last_s, now_s
        spent, self._cpu_s = self._cpu_s, {}
        for pattern, globs in self._wanted.items():
            count, cpu_s, memory, known = 0, 0.0, 0, False
            for process in self._matching(globs):
                facts = _facts(process)
                if facts is None:
                    continue
                created, used_s, rss = facts
                key = (process.pid, created)
                self._cpu_s[key] = used_s
                count += 1
                memory += rss
                if key in spent:
                    known = True
                    cpu_s += used_s - spent[key]
            counted, cpu_ratio, memory_bytes = self._named.of(pattern)
            yield Measurement(counted, count)
            yield Measurement(memory_bytes, memory)
            if known or not count:
                yield Measurement(cpu_ratio, max(0.0, cpu_s) / elapsed_s if known else 0.0)

    def _learn(self, pids: list[int]) -> None:
        """The names of all processes; known ones are believed for a few rounds."""
        known = self._names if self._round % ROUNDS_BETWEEN_NAMES else {}
        self._round += 1
        names: dict[int, str] = {}
        for pid in pids:
            name = known.get(pid)
            if name is None:
                try:
                    name = psutil.Process(pid).name()
                except psutil.Error:
                    continue  # gone, or not for our eyes
            names[pid] = name
        self._names = names

    def _matching(self, globs: Globs) -> Iterator[psutil.Process]:
        for pid, name in self._names.items():
            if name in globs:
                try:
                    yield psutil.Process(pid)
                except psutil.Error:
                    continue


def _facts(process: psutil.Process) -> tuple[float, float, int] | None:
    """(start, CPU seconds, resident bytes); None when it is gone, a zombie or not for our eyes."""
    try:
        with process.oneshot():
            if process.status() == psutil.STATUS_ZOMBIE:
                return None
            times = process.cpu_times()
            return process.create_time(), times.user + times.system, process.memory_info().rss
    except psutil.Error:
        return None
