"""Memory and swap. `used` counts what is not available to new programs: caches are not "used".

A host without swap yields `swap.total_bytes` 0 and no ratio: nothing of nothing is not a share.
"""

from collections.abc import AsyncIterator

import psutil

from tocsin_agent.config import HostSettings
from tocsin_agent.probes import Column, Family, Measurement
from tocsin_proto.records import SeriesKind

MEMORY = (
    Column("memory.used_ratio", "1"),
    Column("memory.available_bytes", "By"),
    Column("memory.total_bytes", "By"),
)
SWAP = (
    Column("swap.used_ratio", "1"),
    Column("swap.total_bytes", "By"),
    Column("swap.in_bytes", "By", SeriesKind.COUNTER64),
    Column("swap.out_bytes", "By", SeriesKind.COUNTER64),
)


class MemoryProbe:
    def __init__(self, host: HostSettings) -> None:
        self._memory = Family("", MEMORY, host.interval).of("")
        self._swap = Family("", SWAP, host.interval).of("")

    async def collect(self) -> AsyncIterator[Measurement]:
        used, available, total = self._memory
        memory = psutil.virtual_memory()
        if memory.total:
            yield Measurement(used, (memory.total - memory.available) / memory.total)
        yield Measurement(available, memory.available)
        yield Measurement(total, memory.total)
        used, total, swapped_in, swapped_out = self._swap
        swap = psutil.swap_memory()
        if swap.total:
            yield Measurement(used, swap.used / swap.total)
        yield Measurement(total, swap.total)
        yield Measurement(swapped_in, swap.sin)
        yield Measurement(swapped_out, swap.sout)
