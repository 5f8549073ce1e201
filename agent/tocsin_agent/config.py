"""What an operator may write into agent.toml: every key, its type, its default, and what is wrong with a bad value.

Not the reading of files (`tocsin_proto.settings`). Invariant: every key here stands in `config/agent.toml` with its
default (a test holds both together), and a file with one line, the collector's address, is a whole configuration.
"""

import os
import sys
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

import msgspec

from tocsin_agent.probes import HOST_PROBES
from tocsin_proto.limits import NAME_CHARS_MAX
from tocsin_proto.settings import Duration, Loaded, Size, load

PORT = 7443
ENV_PREFIX = "TOCSIN_AGENT"
KINDS = ("snmp",)  # what a collector can assign to this version of the agent
INTERVAL_MS_MIN = 1000
SPOOL_BYTES_MIN = 1024 * 1024

FILESYSTEMS_IGNORE = (
    *("tmpfs", "devtmpfs", "squashfs", "iso9660", "erofs", "/run/**", "/snap/**", "/var/snap/**"),
    *("/var/lib/docker/**", "/var/lib/containers/**", "/var/lib/kubelet/**"),
)
DISKS_IGNORE = ("loop*", "ram*", "zram*", "sr*", "fd*", "dm-*")
INTERFACES_IGNORE = ("lo", "lo0", "ifb*", "veth*", "cali*", "flannel*", "cni*", "docker*", "br-*", "virbr*", "vnet*")


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of all tables: a misspelt key is an error, never ignored."""


def _at_least(key: str, value: Duration | Size, least: Duration | Size) -> None:
    if value < least:
        raise ValueError(f'{key}: "{value}" is too small, at least "{least}"')


def _one_of(key: str, value: str, known: tuple[str, ...]) -> None:
    if value in known:
        return
    close = get_close_matches(value, known, 1)
    hint = f'did you mean "{close[0]}"?' if close else f"expected one of {', '.join(known)}"
    raise ValueError(f'{key}: "{value}" is not known here, {hint}')


class FilesystemsSettings(Settings, frozen=True):
    ignore: tuple[str, ...] = FILESYSTEMS_IGNORE
    deadline: Duration = Duration("2s")

    def __post_init__(self) -> None:
        _at_least("deadline", self.deadline, Duration("100ms"))


class DisksSettings(Settings, frozen=True):
    ignore: tuple[str, ...] = DISKS_IGNORE


class InterfacesSettings(Settings, frozen=True):
    ignore: tuple[str, ...] = INTERFACES_IGNORE


class SensorsSettings(Settings, frozen=True):
    deadline: Duration = Duration("5s")

    def __post_init__(self) -> None:
        _at_least("deadline", self.deadline, Duration("100ms"))


class HostSettings(Settings, frozen=True):
    interval: Duration = Duration("10s")
    off: tuple[str, ...] = ()
    processes: tuple[str, ...] = ()
    services: tuple[str, ...] = ()
    filesystems: FilesystemsSettings = FilesystemsSettings()
    disks: DisksSettings = DisksSettings()
    interfaces: InterfacesSettings = InterfacesSettings()
    sensors: SensorsSettings = SensorsSettings()

    def __post_init__(self) -> None:
        _at_least("interval", self.interval, Duration(INTERVAL_MS_MIN))
        for name in self.off:
            _one_of("off", name, HOST_PROBES)
        for name in self.services:
            if name.startswith("-") or not name or any(char.isspace() for char in name):
                raise ValueError(f'services: "{name}" is no unit name, write one such as "sshd.service"')


class SpoolSettings(Settings, frozen=True):
    size_max: Size = Size("256MiB")
    age_max: Duration = Duration("7d")
    segment: Size = Size("4MiB")
    sync_every: Duration = Duration("1s")

    def __post_init__(self) -> None:
        _at_least("size_max", self.size_max, Size(SPOOL_BYTES_MIN))
        _at_least("age_max", self.age_max, Duration("1m"))
        _at_least("segment", self.segment, Size("256KiB"))
        _at_least("sync_every", self.sync_every, Duration("100ms"))
        if self.segment * 2 > self.size_max:
            raise ValueError(f'segment: "{self.segment}" is more than half of size_max, "{self.size_max}"')


class UplinkSettings(Settings, frozen=True):
    first_retry_max: Duration = Duration("10s")


class AssignmentSettings(Settings, frozen=True):
    accept: tuple[str, ...] = KINDS

    def __post_init__(self) -> None:
        for kind in self.accept:
            _one_of("accept", kind, KINDS)


class CredentialsSettings(Settings, frozen=True):
    folder: str = ""


class LogSettings(Settings, frozen=True):
    format: Literal["auto", "console", "logfmt", "json"] = "auto"
    level: Literal["debug", "info", "warning", "error"] = "info"


class LocalSnmp(Settings, frozen=True):
    """One `[[snmp]]` table: a device that this agent polls whatever the collector assigns."""

    id: str
    address: str
    community_file: str
    port: int = 161
    version: Literal["1", "2c"] = "2c"
    profile: str = ""
    interval: Duration = Duration("30s")
    timeout: Duration = Duration("2s")
    retries: int = 1

    def __post_init__(self) -> None:
        if not 0 < len(self.id) <= NAME_CHARS_MAX:
            raise ValueError(f"id: {len(self.id)} characters, expected 1 to {NAME_CHARS_MAX}")
        if not self.address:
            raise ValueError('address: empty, write a host name or an address such as "192.0.2.1"')
        if not 0 < self.port < 65536:
            raise ValueError(f"port: {self.port}, expected 1 to 65535")
        if not 0 <= self.retries <= 10:
            raise ValueError(f"retries: {self.retries}, expected 0 to 10")
        _at_least("interval", self.interval, Duration(INTERVAL_MS_MIN))
        _at_least("timeout", self.timeout, Duration("100ms"))


class AgentSettings(Settings, frozen=True):
    collector: str = ""
    state: str = ""
    host: HostSettings = HostSettings()
    spool: SpoolSettings = SpoolSettings()
    uplink: UplinkSettings = UplinkSettings()
    assignment: AssignmentSettings = AssignmentSettings()
    credentials: CredentialsSettings = CredentialsSettings()
    log: LogSettings = LogSettings()
    snmp: tuple[LocalSnmp, ...] = ()

    def __post_init__(self) -> None:
        if self.collector:
            collector_address(self.collector)
        ids = [device.id for device in self.snmp]
        for device_id in ids:
            if ids.count(device_id) > 1:
                raise ValueError(f'snmp: two devices have the id "{device_id}", each needs its own')


def read(path: Path, environ: Mapping[str, str]) -> Loaded[AgentSettings]:
    """The file, its drop-ins (`agent.d/*.toml` beside it) and the environment. SettingsError lists what is wrong."""
    return load(AgentSettings, path, drop_in=path.with_suffix(".d"), env_prefix=ENV_PREFIX, environ=environ)


def collector_address(written: str) -> str:
    """ "host:port"; the port may be left out. ValueError says what would be right."""
    host, colon, port = written.rpartition(":")
    if not colon or written.endswith("]"):
        host, port = written, str(PORT)
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise ValueError(f'collector: "{written}", write an IPv6 address in brackets: "[{written}]:{PORT}"')
    if not host or "/" in host or any(char.isspace() for char in host) or not port.isascii() or not port.isdigit():
        raise ValueError(f'collector: "{written}" is no address, write one such as "collector.plant.example:{PORT}"')
    if not 0 < int(port) < 65536:
        raise ValueError(f"collector: port {port}, expected 1 to 65535")
    return f"{host}:{port}"


def default_path(environ: Mapping[str, str]) -> Path:
    """/etc for root, the XDG folder for everyone else."""
    return _folder(environ, Path("/etc/tocsin"), "XDG_CONFIG_HOME", ".config") / "agent.toml"


def state_folder(settings: AgentSettings, environ: Mapping[str, str]) -> Path:
    """Where identity, spool and the cached assignment live: what is written, else systemd's, else the usual place."""
    if settings.state:
        return Path(settings.state).expanduser()
    if given := environ.get("STATE_DIRECTORY"):
        return Path(given.partition(":")[0])
    if sys.platform != "win32" and os.geteuid() == 0:
        return Path("/var/lib/tocsin-agent")  # where the systemd unit looks, so that an enrolment by hand is found
    return _folder(environ, Path(), "XDG_STATE_HOME", ".local/state") / "agent"


def _folder(environ: Mapping[str, str], system: Path, variable: str, beneath_home: str) -> Path:
    if sys.platform == "win32":
        return Path(environ.get("ProgramData", "C:/ProgramData")) / "Tocsin"
    if os.geteuid() == 0:
        return system
    return Path(environ.get(variable) or Path.home() / beneath_home) / "tocsin"
