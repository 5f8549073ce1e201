"""What of an Assignment this agent does, what it refuses, and why. Pure but for the cache file.

Not the running of probes (`devices.py`). Invariant: the local file wins - over a device it names itself, and over kinds it
does not accept; nothing assigned can name a file or a program of this machine.
"""

import os
from collections.abc import Collection, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import msgspec
import structlog

from tocsin_proto import settings_check
from tocsin_proto.limits import REFUSED_MAX
from tocsin_proto.records import AssignedDevice, Assignment, Record

log = structlog.get_logger(__name__)

DEVICES_MAX = 2000  # that one agent polls; the collector spreads more over several agents
CACHE_BYTES_MAX = 16 * 1024 * 1024

# Kind -> "module:Class" of its settings.
SETTINGS: dict[str, str] = {"snmp": "tocsin_agent.probes.snmp:SnmpSettings"}


class Device(Record, frozen=True):
    """One device to poll. `settings` is a value of its kind's settings class; equal devices need no restart."""

    id: str
    kind: str
    address: str
    settings: msgspec.Struct
    credential_file: str = ""  # of a local device; assigned ones name credentials only


class Decision(NamedTuple):
    devices: tuple[Device, ...]
    refused: tuple[str, ...]


def decide(assignment: Assignment, accept: Collection[str], local: Collection[str]) -> Decision:
    """Which assigned devices are polled. `accept`: kinds the local file allows; `local`: ids of its own devices."""
    devices: dict[str, Device] = {}
    refused: list[str] = []
    for assigned in assignment.devices:
        try:
            if len(devices) >= DEVICES_MAX:
                raise ValueError(f"more than {DEVICES_MAX} devices")
            if assigned.id in devices:
                raise ValueError("assigned twice")
            devices[assigned.id] = _admitted(assigned, accept, local)
        except ValueError as reason:
            refused.append(f"device {assigned.id}: {reason}")
    if len(refused) > REFUSED_MAX:
        refused[REFUSED_MAX - 1 :] = [f"and {len(refused) - REFUSED_MAX + 1} more"]
    return Decision(tuple(devices.values()), tuple(line[:1000] for line in refused))


def _admitted(assigned: AssignedDevice, accept: Collection[str], local: Collection[str]) -> Device:
    if assigned.kind not in SETTINGS:
        raise ValueError(f"{assigned.kind} is not known to this agent's version")
    if assigned.kind not in accept:
        raise ValueError(f"{assigned.kind} is not accepted here (assignment.accept)")
    if assigned.id in local:
        raise ValueError("the agent's own file has a device of this id")
    if not assigned.address:
        raise ValueError("no address")
    return Device(assigned.id, assigned.kind, assigned.address, settings_of(assigned.kind, assigned.settings))


def settings_of(kind: str, raw: bytes) -> msgspec.Struct:
    """The settings of a device from JSON. ValueError says what is wrong and what would be right."""
    try:
        data = msgspec.json.decode(raw, type=dict[str, object])
    except msgspec.DecodeError as error:
        raise ValueError(f"{kind} settings: {error}") from None
    return converted(kind, data)


def converted(kind: str, data: Mapping[str, object]) -> msgspec.Struct:
    type_ = _settings_class(kind)
    findings = settings_check.check(type_, data)
    if findings:
        raise ValueError("; ".join(f"{settings_check.dotted((kind, *path))}: {what}" for path, what in findings))
    return settings_check.convert(data, type_)


def _settings_class(kind: str) -> type[msgspec.Struct]:
    module, _, name = SETTINGS[kind].partition(":")
    found: type[msgspec.Struct] = getattr(import_module(module), name)
    return found


# ------------------------------------------------------------------------------------------------- the cache


def load(path: Path) -> Assignment | None:
    """What was assigned before the last stop; None when there is nothing, or nothing readable."""
    try:
        with path.open("rb") as file:
            raw = file.read(CACHE_BYTES_MAX + 1)
        if len(raw) > CACHE_BYTES_MAX:
            raise ValueError("too large")
        return msgspec.json.decode(raw, type=Assignment)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        # The collector sends it again with its Welcome: losing the cache costs a moment, not data.
        log.warning("cached assignment is not readable", path=str(path), error=str(error))
        return None


def save(path: Path, assignment: Assignment) -> None:
    """Whole or not at all. An error is logged: the assignment holds for this run either way."""
    new = path.with_suffix(".new")
    try:
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.encode(assignment))
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except OSError as error:
        log.warning("assignment could not be cached", path=str(path), error=str(error))


def ids(devices: Sequence[Device]) -> frozenset[str]:
    return frozenset(device.id for device in devices)
