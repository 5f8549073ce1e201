"""Since when this host runs."""

import time
from collections.abc import AsyncIterator

import psutil

from tocsin_agent.config import HostSettings
from tocsin_agent.probes import Column, Family, Measurement

COLUMNS = (Column("system.uptime_seconds", "s"), Column("system.boot_time_seconds", "s"))


class SystemProbe:
    def __init__(self, host: HostSettings) -> None:
        self._series = Family("", COLUMNS, host.interval).of("")

    async def collect(self) -> AsyncIterator[Measurement]:
        uptime, boot_time = self._series
        booted = psutil.boot_time()
        # CLOCK_BOOTTIME does not jump when somebody sets the wall clock; where there is none, the difference must do.
        clock = getattr(time, "CLOCK_BOOTTIME", None)
        yield Measurement(uptime, time.clock_gettime(clock) if clock is not None else max(0.0, time.time() - booted))
        yield Measurement(boot_time, booted)
