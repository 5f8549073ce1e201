"""The devices this agent polls now: its own from the local file, and what the collector assigned beside them.

Not the decision (`assignment.py`) and not the polling (`probes/snmp.py`). Invariant: what runs equals what was last
wanted; a device whose description did not change keeps its probe, its counters and its place in the schedule.
"""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from tocsin_agent import assignment as assignments
from tocsin_agent.assignment import Device
from tocsin_agent.config import AgentSettings, LocalSnmp
from tocsin_agent.credentials import Credentials, read_secret
from tocsin_agent.probes import Probe, probe_class
from tocsin_agent.sampler import Sampler, Target, target
from tocsin_proto.records import Assignment, AssignmentReport, ProbeAnswer, ProbeRequest

log = structlog.get_logger(__name__)


class Devices:
    def __init__(self, sampler: Sampler, cache: Path) -> None:
        self.report = AssignmentReport("")
        self._sampler = sampler
        self._cache = cache
        self._assignment = Assignment("")
        self._accept: tuple[str, ...] = ()
        self._local: tuple[Device, ...] = ()
        self._credentials = Credentials(())
        self._running: dict[str, Device] = {}

    def configure(self, settings: AgentSettings, credentials: Credentials) -> None:
        """The local file, at start and after each reload. ValueError when a device of it makes no sense."""
        local = local_devices(settings.snmp)
        for device in local:
            make_probe(device, credentials)
        self._accept, self._local, self._credentials = settings.assignment.accept, local, credentials
        self._settle()

    def restore(self) -> None:
        """What was assigned before the last stop holds until the collector says otherwise."""
        cached = assignments.load(self._cache)
        if cached is not None:
            self._assignment = cached
            self._settle()

    def apply(self, assignment: Assignment) -> AssignmentReport:
        """A new assignment: runs and stops what differs, and tells what it refused."""
        if assignment != self._assignment:
            self._assignment = assignment
            assignments.save(self._cache, assignment)
        self._settle()
        return self.report

    async def answer(self, request: ProbeRequest) -> ProbeAnswer:
        """Asks a device now, whatever its schedule, whether it is there."""
        device = self._running.get(request.resource)
        if device is None:
            return ProbeAnswer(request.request, False, f"{request.resource} is not polled by this agent")
        probe = await self._sampler.ask(_key(device))
        if probe is None:
            return ProbeAnswer(request.request, False, f"{request.resource} is not polled any more")
        problem = self._sampler.problems.get(_key(device), "")
        return ProbeAnswer(request.request, not getattr(probe, "silent", False), problem)

    def _settle(self) -> None:
        decision = assignments.decide(self._assignment, self._accept, assignments.ids(self._local))
        refused = list(decision.refused)
        wanted = {device.id: device for device in (*self._local, *decision.devices)}
        for device_id, device in list(self._running.items()):
            if wanted.get(device_id) != device:
                self._sampler.remove(_key(device))
                del self._running[device_id]
        for device_id, device in wanted.items():
            if device_id in self._running:
                continue
            try:
                self._sampler.add(device_target(device, self._credentials))
                self._running[device_id] = device
            except (ValueError, ImportError) as error:
                refused.append(f"device {device_id}: {error}")
        if refused and tuple(refused) != self.report.refused:
            log.warning("devices refused", refused=refused[:20], count=len(refused))
        self.report = AssignmentReport(self._assignment.etag, tuple(refused))


def local_devices(tables: Iterable[LocalSnmp]) -> tuple[Device, ...]:
    """The `[[snmp]]` tables as devices. ValueError."""
    return tuple(
        Device(
            table.id,
            "snmp",
            table.address,
            assignments.converted(
                "snmp",
                {
                    "version": table.version,
                    "credential": "community_file",
                    "port": table.port,
                    "interval": str(table.interval),
                    "timeout": str(table.timeout),
                    "retries": table.retries,
                }
                | ({"profile": table.profile} if table.profile else {}),
            ),
            table.community_file,
        )
        for table in tables
    )


def make_probe(device: Device, credentials: Credentials) -> Probe:
    """ValueError (a profile that does not exist), ImportError (an extra that is not installed)."""
    look_up: Callable[[str], str] = credentials
    if device.credential_file:
        look_up = partial(_from_file, Path(device.credential_file))
    probe: Probe = probe_class(device.kind)(device.id, device.address, device.settings, look_up)
    return probe


def device_target(device: Device, credentials: Credentials) -> Target:
    settings: Any = device.settings
    return target(
        _key(device), make_probe(device, credentials), settings.interval, name=device.kind, resource=device.id
    )


def _from_file(path: Path, _name: str) -> str:
    return read_secret(path)


def _key(device: Device) -> str:
    return f"{device.kind}/{device.id}"
