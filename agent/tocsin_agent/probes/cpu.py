"""CPU time per core and overall, as shares of the time since the last round.

Not load (`load.py`). Invariant: the shares of "all" come from the sums over cores, never from an average of ratios.
"""

from collections.abc import AsyncIterator, Sequence
from typing import Any

import psutil

from tocsin_agent.config import HostSettings
from tocsin_agent.probes import Column, Family, Measurement

# Guest time is part of user time already (proc(5)): counting it again would make more than 100 %.
DOUBLE = ("guest", "guest_nice")
ALL = ("cpu.used_ratio", "cpu.user_ratio", "cpu.system_ratio", "cpu.iowait_ratio", "cpu.steal_ratio")


class CpuProbe:
    def __init__(self, host: HostSettings) -> None:
        self._all = Family("cpu", [Column(metric, "1") for metric in ALL], host.interval)
        self._core = Family("cpu", [Column("cpu.used_ratio", "1")], host.interval)
        self._last: Sequence[Any] = psutil.cpu_times(percpu=True)

    async def collect(self) -> AsyncIterator[Measurement]:
        now = psutil.cpu_times(percpu=True)
        last, self._last = self._last, now
        if len(now) != len(last):
            return  # a core came or went: the next round compares like with like
        spent = [_spent(before, after) for before, after in zip(last, now, strict=True)]
        for core, one in enumerate(spent):
            if total := sum(one.values()):
                yield Measurement(self._core.of(str(core))[0], _used(one) / total)
        overall = {name: sum(one[name] for one in spent) for name in spent[0]}
        if total := sum(overall.values()):
            used, user, system, iowait, steal = self._all.of("all")
            yield Measurement(used, _used(overall) / total)
            yield Measurement(user, (overall["user"] + overall.get("nice", 0.0)) / total)
            kernel = overall["system"] + overall.get("irq", 0.0) + overall.get("softirq", 0.0)
            yield Measurement(system, kernel / total)
            if "iowait" in overall:
                yield Measurement(iowait, overall["iowait"] / total)
            if "steal" in overall:
                yield Measurement(steal, overall["steal"] / total)


def _spent(before: Any, after: Any) -> dict[str, float]:
    """Seconds per sort of time. The kernel lets iowait run backwards now and then: never below zero."""
    names = [name for name in after._fields if name not in DOUBLE]
    return {name: max(0.0, getattr(after, name) - getattr(before, name)) for name in names}


def _used(spent: dict[str, float]) -> float:
    return sum(spent.values()) - spent["idle"] - spent.get("iowait", 0.0)
