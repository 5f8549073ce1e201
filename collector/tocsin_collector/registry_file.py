"""The folder registry/: what people write about sites and devices, read into model.Registry.

Not the questions one asks of a registry (`core/registry.py`). Invariant: what this returns passes `core.registry.check`, or it
raises with file, line and key of everything that is wrong.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec

from tocsin_collector.core import registry as core
from tocsin_collector.core.model import Device, Registry, Site, SnmpAccess
from tocsin_proto import settings
from tocsin_proto.settings import Duration, Loaded, Problem, SettingsError

FILES_MAX = 1_000
ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
# Metrics and labels may carry anything; what names a thing in URLs, keys and commands may not.
ID_RULE = (
    "an id has letters, digits, dot, dash and underscore, starts with a letter or digit, and has at most 63 characters"
)
INTERVAL_MS_MIN = 1_000


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of all tables: frozen, and strict about what it does not know."""


class SiteTable(Table, frozen=True):
    id: str
    name: str | dict[str, str] = ""
    zone: str = "UTC"
    lines: tuple[str, ...] = ()
    cell: int = 0


class SnmpTable(Table, frozen=True):
    """How the agent asks the device. The credential is a name that the agent's own files resolve."""

    version: str = "2c"
    credential: str = "public"
    port: int = 161
    profile: str = ""
    interval: Duration = Duration("60s")
    timeout: Duration = Duration("2s")
    retries: int = 1


class DeviceTable(Table, frozen=True):
    id: str
    site: str
    name: str | dict[str, str] = ""
    line: str = ""
    address: str = ""
    kind: str = "device"
    parents: tuple[str, ...] = ()
    watched_by: str = ""
    snmp: SnmpTable | None = None
    owner: str = ""
    tags: dict[str, str] = {}


class RegistryTable(Table, frozen=True):
    """One file. Sites and devices may stand in any number of files, in any order."""

    site: tuple[SiteTable, ...] = ()
    device: tuple[DeviceTable, ...] = ()


class Origins(NamedTuple):
    """Where each id was written: (kind, id) -> the file it was read from and the key of its table there."""

    tables: dict[tuple[str, str], tuple[Loaded[RegistryTable], str]]

    def problem(self, path: str, problem: str) -> Problem:
        """A problem of the core ("device.sw-1.parents") with the place in the files."""
        kind, _, rest = path.partition(".")
        name, field = (rest, "") if (kind, rest) in self.tables else rest.rpartition(".")[::2]
        if (kind, name) not in self.tables:
            return Problem("registry", path, problem)
        loaded, key = self.tables[kind, name]
        return Problem(loaded.origin(f"{key}.{field}" if field else key), path, problem)


class RegistryFiles(NamedTuple):
    """What the files say. `registry.version` is 0: versions are given where a registry is put in force."""

    registry: Registry
    origins: Origins


def read(folder: Path) -> RegistryFiles:
    """All *.toml of the folder, in the order of their names; no folder is an empty registry. Raises SettingsError.

    References are not checked here: a parent may be a host that enrols later. `problems_of` does, over the whole.
    """
    problems: list[Problem] = []
    files: list[Loaded[RegistryTable]] = []
    for path in toml_files(folder):
        try:
            files.append(settings.parse(RegistryTable, settings.read_text(path), str(path)))
        except SettingsError as error:
            problems += error.problems
    if problems:
        raise SettingsError(problems)
    return assemble(files)


def assemble(files: Iterable[Loaded[RegistryTable]]) -> RegistryFiles:
    """Join parsed files. Raises SettingsError with every id that is malformed or stands twice, and every bad field."""
    sites: list[Site] = []
    devices: list[Device] = []
    origins = Origins({})
    problems: list[Problem] = []
    for loaded in files:
        for index, site in enumerate(loaded.value.site):
            key = f"site[{index}]"
            problems += [
                Problem(loaded.origin(f"{key}.{field}"), f"site.{site.id}.{field}", text)
                for field, text in _site_problems(site)
            ]
            problems += _place(origins, "site", site.id, loaded, key)
            sites.append(to_site(site))
        for index, device in enumerate(loaded.value.device):
            key = f"device[{index}]"
            problems += [
                Problem(loaded.origin(f"{key}.{field}"), f"device.{device.id}.{field}", text)
                for field, text in _device_problems(device)
            ]
            problems += _place(origins, "device", device.id, loaded, key)
            devices.append(to_device(device))
    if problems:
        raise SettingsError(problems)
    return RegistryFiles(Registry(sites=tuple(sites), devices=tuple(devices)), origins)


def problems_of(registry: Registry, origins: Origins) -> list[Problem]:
    """What the core finds wrong, with file and line."""
    return [origins.problem(found.path, found.problem) for found in core.check(registry)]


def to_site(table: SiteTable) -> Site:
    return Site(table.id, _by_language(table.name), table.zone, table.lines, table.cell)


def to_device(table: DeviceTable) -> Device:
    return Device(
        id=table.id,
        site=table.site,
        name=_by_language(table.name),
        line=table.line,
        address=table.address,
        kind=table.kind,
        parents=table.parents,
        watched_by=table.watched_by,
        snmp=to_access(table.snmp) if table.snmp else None,
        owner=table.owner,
        tags=table.tags,
    )


def to_access(table: SnmpTable) -> SnmpAccess:
    return SnmpAccess(
        version=table.version,
        credential=table.credential,
        port=table.port,
        profile=table.profile,
        interval_ms=int(table.interval),
        timeout_ms=int(table.timeout),
        retries=table.retries,
    )


def toml_files(folder: Path) -> list[Path]:
    """The *.toml of a folder by name. A folder that is not there has none. Raises SettingsError beyond FILES_MAX."""
    if not folder.is_dir():
        return []
    found = sorted(path for path in folder.iterdir() if path.suffix == ".toml" and path.is_file())
    if len(found) > FILES_MAX:
        problem = f"{len(found)} files, at most {FILES_MAX} are read; put several sites into one file"
        raise SettingsError([Problem(str(folder), "", problem)])
    return found


def _by_language(name: str | dict[str, str]) -> dict[str, str]:
    """A plain string is the name in every language: pages fall back to English."""
    if isinstance(name, dict):
        return name
    return {"en": name} if name else {}


def _place(origins: Origins, kind: str, name: str, loaded: Loaded[RegistryTable], key: str) -> list[Problem]:
    if (kind, name) in origins.tables:
        before, at = origins.tables[kind, name]
        problem = f"stands twice, the first time at {before.origin(at)}; every id may stand once"
        return [Problem(loaded.origin(f"{key}.id"), f"{kind}.{name}", problem)]
    origins.tables[kind, name] = (loaded, key)
    return []


def _site_problems(site: SiteTable) -> list[tuple[str, str]]:
    problems = _id_problems(site.id)
    try:
        ZoneInfo(site.zone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        problems.append(("zone", f'"{site.zone}" is no time zone, write one like "Asia/Shanghai" or "Europe/Berlin"'))
    if site.cell < 0:
        problems.append(("cell", f"{site.cell} is negative; leave it out for the only cell"))
    return problems


def _device_problems(device: DeviceTable) -> list[tuple[str, str]]:
    problems = _id_problems(device.id)
    if device.address and re.search(r"[\s/@]", device.address):
        problems.append(("address", f'"{device.address}" is no address, write a host name or an IP, without a port'))
    if device.id in device.parents:
        problems.append(("parents", "a device cannot stand behind itself"))
    if device.snmp:
        problems += [(f"snmp.{field}", problem) for field, problem in _snmp_problems(device.snmp)]
    return problems


def _snmp_problems(snmp: SnmpTable) -> list[tuple[str, str]]:
    problems = []
    if snmp.version not in ("1", "2c"):
        known = 'SNMPv3 is not supported yet, use "2c"' if snmp.version == "3" else 'write "2c" or "1"'
        problems.append(("version", f'"{snmp.version}" cannot be used: {known}'))
    if not 1 <= snmp.port <= 65_535:
        problems.append(("port", f"{snmp.port} is no port, it is a number from 1 to 65535"))
    if not 0 <= snmp.retries <= 5:
        problems.append(("retries", f"{snmp.retries} is out of range, it is a number from 0 to 5"))
    if snmp.interval < INTERVAL_MS_MIN:
        problems.append(("interval", f'{int(snmp.interval)} ms is too short, the shortest is "1s"'))
    elif snmp.timeout * (snmp.retries + 1) > snmp.interval:
        waited = snmp.timeout * (snmp.retries + 1)
        problems.append(
            (
                "timeout",
                f"a silent device would be waited for {waited} ms, longer than its interval; shorten the timeout",
            )
        )
    return problems


def _id_problems(name: str) -> list[tuple[str, str]]:
    return [] if ID.fullmatch(name) else [("id", f'"{name}" cannot be used: {ID_RULE}')]
