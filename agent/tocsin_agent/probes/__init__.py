"""The probe contract: what a probe yields, and the table of all probes.

Not the host around them: `sampler` adds the time stamp, the deadline, the duration, success and isolation.
Invariant: a probe builds a Series once per instance and yields that same object every time, because the framer finds a
series by its identity and never hashes a string per sample.
"""

from collections.abc import AsyncIterator, Sequence
from importlib import import_module
from typing import Any, Protocol

from tocsin_proto.records import Event, Record, Series, SeriesKind

LABEL_CHARS_MAX = 256
INSTANCES_MAX = 1000  # disks, interfaces, sensors ... of one probe; past it the probe fails in part and says so

# Name -> "module:Class". A name is what `[host] off` and `tocsin-agent test NAME` take; modules load when used.
PROBES: dict[str, str] = {
    "cpu": "tocsin_agent.probes.cpu:CpuProbe",
    "load": "tocsin_agent.probes.load:LoadProbe",
    "memory": "tocsin_agent.probes.memory:MemoryProbe",
    "filesystems": "tocsin_agent.probes.filesystems:FilesystemsProbe",
    "disks": "tocsin_agent.probes.disks:DisksProbe",
    "interfaces": "tocsin_agent.probes.interfaces:InterfacesProbe",
    "sensors": "tocsin_agent.probes.sensors:SensorsProbe",
    "system": "tocsin_agent.probes.system:SystemProbe",
    "processes": "tocsin_agent.probes.processes:ProcessesProbe",
    "services": "tocsin_agent.probes.services:ServicesProbe",
    "snmp": "tocsin_agent.probes.snmp:SnmpProbe",
}
HOST_PROBES: tuple[str, ...] = tuple(name for name in PROBES if name != "snmp")


class Measurement(Record, frozen=True, gc=False):
    """One value of one series, now. Counters are whole numbers >= 0; a value that is not known is not yielded."""

    series: Series
    value: float | int


class Probe(Protocol):
    """`collect` is one round: an async generator that yields what it measured and may raise `ProbeError` at its end.

    What was yielded before an error stands. A probe that polls a device may carry `silent: bool`: true while the device
    does not answer, so that the scheduler keeps its polls out of the way of those that do. A probe that holds
    something open may carry `async def close(self) -> None`.
    """

    def collect(self) -> AsyncIterator[Measurement | Event]: ...


class ProbeError(Exception):
    """The round failed, in part or whole, for a reason of the world: one line that says which and what would help."""


class Column(Record, frozen=True, gc=False):
    """What a family measures of each of its instances."""

    metric: str
    unit: str
    kind: SeriesKind = SeriesKind.GAUGE
    states: tuple[tuple[int, str], ...] = ()


class Family:
    """The series of instances of one sort (disks, interfaces ...): one tuple of Series per instance, built once."""

    def __init__(self, label: str, columns: Sequence[Column], interval_ms: int, resource: str = "") -> None:
        self._label = label
        self._columns = tuple(columns)
        self._interval_ms = int(interval_ms)  # a Duration would go into the layout id as "10s"
        self._resource = resource
        self._known: dict[str, tuple[Series, ...]] = {}

    def of(self, instance: str) -> tuple[Series, ...]:
        """The series of one instance, in the order of the columns."""
        known = self._known.get(instance)
        if known is not None:
            return known
        # Names that come and go (containers' interfaces) must not grow this for ever; rebuilt ones have equal content.
        if len(self._known) >= 2 * INSTANCES_MAX:
            self._known.clear()
        # Paths need not be text, and the wire bounds a label.
        text = instance.encode("utf-8", "replace").decode()[:LABEL_CHARS_MAX]
        labels = ((self._label, text),) if self._label else ()
        made = tuple(
            Series(self._resource, column.metric, column.unit, column.kind, labels, self._interval_ms, column.states)
            for column in self._columns
        )
        self._known[instance] = made
        return made


def probe_class(name: str) -> Any:
    """The class behind a name of PROBES. Raises KeyError for an unknown name, ImportError when a library is missing."""
    module, _, attribute = PROBES[name].partition(":")
    return getattr(import_module(module), attribute)
