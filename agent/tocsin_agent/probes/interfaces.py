"""Every network interface of this host: traffic, errors, discards, whether it is up, and its speed."""

from collections.abc import AsyncIterator

import psutil

from tocsin_agent.config import HostSettings
from tocsin_agent.globs import Globs
from tocsin_agent.probes import INSTANCES_MAX, Column, Family, Measurement, ProbeError
from tocsin_proto.records import SeriesKind

COUNTED = (
    ("if.in_bytes", "By", "bytes_recv"),
    ("if.out_bytes", "By", "bytes_sent"),
    ("if.in_packets", "1", "packets_recv"),
    ("if.out_packets", "1", "packets_sent"),
    ("if.in_errors", "1", "errin"),
    ("if.out_errors", "1", "errout"),
    ("if.in_discards", "1", "dropin"),
    ("if.out_discards", "1", "dropout"),
)
COLUMNS = (
    *(Column(metric, unit, SeriesKind.COUNTER64) for metric, unit, _ in COUNTED),
    Column("if.oper_status", "1", SeriesKind.STATE, ((1, "up"), (2, "down"))),
    Column("if.speed_bps", "bit/s"),
)
FIELDS = tuple(field for _, _, field in COUNTED)
UP, DOWN = 1, 2
SPEED_UNKNOWN_MBPS = (0, 65535)  # what drivers say when they do not know


class InterfacesProbe:
    def __init__(self, host: HostSettings) -> None:
        self._family = Family("interface", COLUMNS, host.interval)
        self._ignored = Globs(host.interfaces.ignore)

    async def collect(self) -> AsyncIterator[Measurement]:
        counters = psutil.net_io_counters(pernic=True, nowrap=False)
        facts = psutil.net_if_stats()
        names = [name for name in sorted(counters.keys() | facts.keys()) if name not in self._ignored]
        for name in names[:INSTANCES_MAX]:
            *counted, oper_status, speed_bps = self._family.of(name)
            if name in counters:
                now = counters[name]
                for series, field in zip(counted, FIELDS, strict=True):
                    yield Measurement(series, getattr(now, field))
            if name in facts:
                fact = facts[name]
                yield Measurement(oper_status, UP if fact.isup else DOWN)
                if fact.speed not in SPEED_UNKNOWN_MBPS:
                    yield Measurement(speed_bps, fact.speed * 1_000_000)
        if len(names) > INSTANCES_MAX:
            raise ProbeError(f"{len(names)} interfaces, {INSTANCES_MAX} are watched: see host.interfaces.ignore")
