"""Load average: how many tasks ran or waited, over 1, 5 and 15 minutes, and the 5-minute figure per core."""

from collections.abc import AsyncIterator

import psutil

from tocsin_agent.config import HostSettings
from tocsin_agent.probes import Column, Family, Measurement

MINUTES = ("1", "5", "15")


class LoadProbe:
    def __init__(self, host: HostSettings) -> None:
        self._average = Family("minutes", [Column("load.average", "1")], host.interval)
        self._per_cpu = Family("minutes", [Column("load.per_cpu", "1")], host.interval)

    async def collect(self) -> AsyncIterator[Measurement]:
        loads = dict(zip(MINUTES, psutil.getloadavg(), strict=True))
        for minutes, load in loads.items():
            yield Measurement(self._average.of(minutes)[0], load)
        if cores := psutil.cpu_count():
            yield Measurement(self._per_cpu.of("5")[0], loads["5"] / cores)
