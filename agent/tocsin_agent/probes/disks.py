"""Work of every whole disk since boot: bytes, requests and busy time.

Not filesystems (`filesystems.py`) and not partitions: their work is their disk's.
"""

from collections.abc import AsyncIterator
from pathlib import Path

import psutil

from tocsin_agent.config import HostSettings
from tocsin_agent.globs import Globs
from tocsin_agent.probes import INSTANCES_MAX, Column, Family, Measurement, ProbeError
from tocsin_proto.records import SeriesKind

COLUMNS = (
    Column("diskio.read_bytes", "By", SeriesKind.COUNTER64),
    Column("diskio.write_bytes", "By", SeriesKind.COUNTER64),
    Column("diskio.reads", "1", SeriesKind.COUNTER64),
    Column("diskio.writes", "1", SeriesKind.COUNTER64),
    Column("diskio.busy_ms", "ms", SeriesKind.COUNTER64),
)
BLOCK = Path("/sys/block")  # Linux: the whole disks; elsewhere the system lists nothing but disks


class DisksProbe:
    def __init__(self, host: HostSettings) -> None:
        self._family = Family("disk", COLUMNS, host.interval)
        self._ignored = Globs(host.disks.ignore)
        self._names: frozenset[str] = frozenset()
        self._disks: tuple[str, ...] = ()

    async def collect(self) -> AsyncIterator[Measurement]:
        # nowrap=False: the collector knows wraps and resets; psutil's own bookkeeping would hide them.
        counters = psutil.disk_io_counters(perdisk=True, nowrap=False) or {}
        if counters.keys() != self._names:
            self._names = frozenset(counters)
            self._disks = tuple(name for name in sorted(counters) if _whole(name) and name not in self._ignored)
        for name in self._disks[:INSTANCES_MAX]:
            read_bytes, write_bytes, reads, writes, busy_ms = self._family.of(name)
            now = counters[name]
            yield Measurement(read_bytes, now.read_bytes)
            yield Measurement(write_bytes, now.write_bytes)
            yield Measurement(reads, now.read_count)
            yield Measurement(writes, now.write_count)
            if (busy := getattr(now, "busy_time", None)) is not None:
                yield Measurement(busy_ms, busy)
        if len(self._disks) > INSTANCES_MAX:
            raise ProbeError(f"{len(self._disks)} disks, {INSTANCES_MAX} are watched: see host.disks.ignore")


def _whole(name: str) -> bool:
    # Linux writes "cciss!c0d0" in /sys for the device "cciss/c0d0".
    return not BLOCK.is_dir() or (BLOCK / name.replace("/", "!")).exists()
