"""What is in force: registry files, rules, enrolled hosts and the engine's numbers, composed into one model.Config.

Not the reading of files (`registry_file`, `rules_file`) and not the journal. Invariant: a Config that comes out of here passes
`core.registry.check`, and its version rises exactly when its content changed, so that putting it in force twice is nothing.
"""

import hashlib
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import msgspec

from tocsin_collector import registry_file, rules_file
from tocsin_collector.config import CollectorConfig, Paths
from tocsin_collector.core.model import Config, Device, Registry, Rule, Settings, Site, SnmpAccess
from tocsin_collector.registry_file import Origins, RegistryFiles
from tocsin_proto import records
from tocsin_proto.codec import WireError, encode_collector
from tocsin_proto.limits import DEVICES_MAX
from tocsin_proto.settings import Duration, Problem, SettingsError

DEFAULT_SITE = "default"  # where a host belongs that was enrolled without a site, when there is not exactly one


class Enrolled(NamedTuple):
    """A row of the table `agent`, as far as the registry cares."""

    name: str
    site: str
    hostname: str = ""
    is_revoked: bool = False


def enrolled_in(database: Path) -> list[Enrolled]:
    """The table as a running or stopped collector left it; nobody without a database. Reads only."""
    if not database.exists():
        return []
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    try:
        rows = connection.execute("SELECT name, site, hostname, revoked_ms FROM agent ORDER BY name").fetchall()
    except sqlite3.OperationalError:
        return []  # no table yet: `init` was cut off
    finally:
        connection.close()
    return [Enrolled(name, site, hostname, bool(revoked_ms)) for name, site, hostname, revoked_ms in rows]


class Sources(NamedTuple):
    """What the files say, before the enrolled hosts are joined in."""

    files: RegistryFiles
    rules: tuple[Rule, ...]
    settings: Settings


class SnmpSettings(msgspec.Struct, frozen=True, omit_defaults=True):
    """SnmpAccess in the registry's words: what an agent finds in AssignedDevice.settings."""

    version: str
    credential: str
    port: int
    interval: str
    timeout: str
    retries: int
    profile: str = ""  # left out: chosen by the agent


def read(config: CollectorConfig, paths: Paths) -> Sources:
    """Read and check all files. Raises SettingsError with the problems of registry and rules together."""
    problems: list[Problem] = []
    files = RegistryFiles(Registry(), Origins({}))
    rules: tuple[Rule, ...] = ()
    try:
        files = registry_file.read(paths.registry)
    except SettingsError as error:
        problems += error.problems
    try:
        rules = rules_file.read(paths.rules)
    except SettingsError as error:
        problems += error.problems
    if problems:
        raise SettingsError(problems)
    return Sources(files, rules, config.engine.to_settings())


def compose(sources: Sources, enrolled: Iterable[Enrolled], in_force: Config | None) -> Config:
    """The Config of these sources; `in_force` itself when nothing changed. Raises SettingsError, and then nothing changes.

    A host that enrolled is a device of its site, merged with the registry's stanza of the same id if there is one.
    """
    registry = _join(sources.files.registry, sorted(enrolled))
    origins = sources.files.origins
    problems = registry_file.problems_of(registry, origins)
    problems += [origins.problem(path, problem) for path, problem in _beyond_an_agent(registry)]
    if problems:
        raise SettingsError(problems)
    config = Config(registry=registry, rules=sources.rules, settings=sources.settings)
    if in_force is not None and digest(in_force) == digest(config):
        return in_force
    version = (in_force.registry.version if in_force else 0) + 1
    return msgspec.structs.replace(config, registry=msgspec.structs.replace(registry, version=version))


def digest(config: Config) -> bytes:
    """The content, whatever its version. Sites, devices and rules count in the order of their ids: files may be sorted anew."""
    registry = msgspec.structs.replace(
        config.registry,
        version=0,
        sites=tuple(sorted(config.registry.sites, key=lambda site: site.id)),
        devices=tuple(sorted(config.registry.devices, key=lambda device: device.id)),
    )
    rules = tuple(sorted(config.rules, key=lambda rule: rule.id))
    content = Config(registry=registry, rules=rules, settings=config.settings)
    return hashlib.blake2b(msgspec.msgpack.encode(content, order="deterministic"), digest_size=16).digest()


def assignments(registry: Registry) -> dict[str, records.Assignment]:
    """agent -> what it is to watch, for every agent of the registry."""
    polled = _polled(registry)
    return {device.id: _assignment(polled.get(device.id, [])) for device in registry.devices if device.is_agent}


def assignment(registry: Registry, agent: str) -> records.Assignment:
    """What `agent` is to watch beyond its own host. The etag is the content's hash; nothing to watch has one too."""
    return _assignment(_polled(registry).get(agent, []))


def _polled(registry: Registry) -> dict[str, list[Device]]:
    """agent -> the devices that it asks by SNMP."""
    polled: dict[str, list[Device]] = {}
    for device in registry.devices:
        if device.snmp is not None and device.watched_by != device.id:
            polled.setdefault(device.watched_by, []).append(device)
    return polled


def _assignment(polled: Iterable[Device]) -> records.Assignment:
    devices = tuple(
        records.AssignedDevice(device.id, device.address, "snmp", snmp_settings(device.snmp))
        for device in sorted(polled, key=lambda device: device.id)
        if device.snmp is not None
    )
    content = hashlib.blake2b(msgspec.msgpack.encode(devices), digest_size=8)
    return records.Assignment(etag=content.hexdigest(), devices=devices)


def snmp_settings(access: SnmpAccess) -> bytes:
    """JSON in the registry's words, durations with their unit."""
    return msgspec.json.encode(
        SnmpSettings(
            version=access.version,
            credential=access.credential,
            port=access.port,
            profile=access.profile,
            interval=str(Duration(access.interval_ms)),
            timeout=str(Duration(access.timeout_ms)),
            retries=access.retries,
        )
    )


def _beyond_an_agent(registry: Registry) -> list[tuple[str, str]]:
    """(path, problem) of what no agent could be told, or may not be: judged here, while the old configuration still holds.

    Also for agents that have yet to enrol: their enrolment must not be what fails.
    """
    problems = []
    for device in registry.devices:
        if device.is_agent and (device.snmp is not None or device.watched_by not in ("", device.id)):
            said = f"a host with an agent of its own speaks for itself, {device.watched_by} cannot watch it too"
            problems.append(
                (f"device.{device.id}.watched_by", f"{said}; revoke that agent, or give the device another id")
            )
    for agent, polled in _polled(registry).items():
        # Named is the first device that is too much, in the order of the files: that is where someone was writing.
        if len(polled) > DEVICES_MAX:
            said = f"{agent} is given {len(polled)} devices, at most {DEVICES_MAX} are allowed"
            problems.append((f"device.{polled[DEVICES_MAX].id}.watched_by", f"{said}; give some to another agent"))
            continue
        try:
            encode_collector(_assignment(polled))
        except WireError as error:
            problems.append(_unsendable(agent, polled, error))
    return problems


def _unsendable(agent: str, polled: list[Device], error: WireError) -> tuple[str, str]:
    """The one device that cannot be sent as it is written, or else the list as a whole."""
    for device in polled:
        try:
            encode_collector(_assignment([device]))
        except WireError as own:
            return f"device.{device.id}", f"{own.path.rpartition('.')[2]}: {own.problem}"
    said = f"the {len(polled)} devices of {agent} together make too large a message ({error.problem})"
    return f"device.{polled[-1].id}.watched_by", f"{said}; give some to another agent"


def _join(registry: Registry, enrolled: list[Enrolled]) -> Registry:
    """Registry and enrolled hosts in one. Sites that only a token named are added, so that no host is without one."""
    sites = {site.id: site for site in registry.sites}
    devices = {device.id: device for device in registry.devices}
    only_site = registry.sites[0].id if len(registry.sites) == 1 else DEFAULT_SITE
    # A host whose certificate was revoked stays only where the registry still leans on it.
    leaned_on = {parent for device in registry.devices for parent in device.parents}
    for host in enrolled:
        written = devices.get(host.name)
        if written is not None:
            devices[host.name] = msgspec.structs.replace(written, is_agent=not host.is_revoked)
            continue
        if host.is_revoked and host.name not in leaned_on:
            continue
        site = host.site or only_site
        sites.setdefault(site, Site(id=site))
        devices[host.name] = Device(id=host.name, site=site, kind="server", is_agent=not host.is_revoked)
    # People write down what stands behind an agent before it enrols: until then it is a device of which nothing is known.
    for device in registry.devices:
        if device.watched_by in leaned_on and device.watched_by not in devices:
            devices[device.watched_by] = Device(id=device.watched_by, site=device.site, kind="server")
    return Registry(sites=tuple(sites.values()), devices=tuple(devices.values()))
