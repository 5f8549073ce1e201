"""collector.toml, typed: every key, its default, and where the file is found.

Not the registry and not the rules (`registry_file`, `rules_file`): those are data about the plant, this is about the
collector itself. Invariant: a key that is not a field here is an error that names file and line, and every field here is
documented in config/collector.toml (a test compares the two).
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from tocsin_collector.core.model import Settings
from tocsin_proto import settings
from tocsin_proto.settings import Duration, Loaded, Problem, SettingsError, Size

ENV_PREFIX = "TOCSIN_COLLECTOR"
CHANNELS_MAX = 100
# sun_path holds 108 bytes with its final NUL; a longer path fails only at bind(), long after the start.
SOCKET_PATH_MAX = 107


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of all tables: frozen, and strict about what it does not know."""


class Ingest(Table, frozen=True):
    """Where agents stream to. mTLS only."""

    listen: str = "0.0.0.0:7443"
    agents_max: int = 2_000  # streams at once; one more is refused with a code


class Enrol(Table, frozen=True):
    """Where a host gets its certificate, with a one-use token."""

    listen: str = "0.0.0.0:7444"


class Web(Table, frozen=True):
    """The pages and the API, in a process of their own."""

    enabled: bool = True
    listen: str = "127.0.0.1:8080"
    url: str = ""  # what people type; https:// here means a proxy in front of us ends TLS
    session: Duration = Duration("12h")
    lang: Literal["en", "zh_CN"] = "en"  # of people who chose none
    certificate: str = ""  # PEM files, relative to this file: with both, the pages are https
    key: str = ""


class Store(Table, frozen=True):
    """The database and the journal in front of it."""

    journal_keep: Duration = Duration("48h")
    journal_max: Size = Size("8GiB")
    incidents_keep: Duration = Duration("400d")  # from their closing on
    start_afresh: bool = False  # when the database is damaged: set it aside and begin an empty one


class Engine(Table, frozen=True):
    """The engine's numbers, in words."""

    silent_after: Duration = Duration("45s")
    hold: Duration = Duration("15s")
    reopen_within: Duration = Duration("5m")
    close_after: Duration = Duration("24h")
    past_max: Duration = Duration("7d")
    future_max: Duration = Duration("5m")

    def to_settings(self) -> Settings:
        return Settings(
            silent_after_ms=int(self.silent_after),
            hold_ms=int(self.hold),
            reopen_within_ms=int(self.reopen_within),
            close_after_ms=int(self.close_after),
            past_ms_max=int(self.past_max),
            future_ms_max=int(self.future_max),
        )


class Channel(Table, frozen=True):
    """One receiver of notices. The secret that signs them is read from a file, never written here."""

    id: str
    url: str
    secret_file: str
    kind: Literal["webhook"] = "webhook"
    lang: str = "en"
    timeout: Duration = Duration("10s")


class Log(Table, frozen=True):
    format: Literal["auto", "console", "logfmt", "json"] = "auto"
    level: Literal["debug", "info", "warning", "error"] = "info"


class CollectorConfig(Table, frozen=True):
    """collector.toml as a whole."""

    state: str = ""  # empty: /var/lib/tocsin-collector, or below $XDG_STATE_HOME for a user who is not root
    names: tuple[str, ...] = ()  # how agents reach this machine; the first stands in enrolment tokens
    registry: str = "registry"  # folder, relative to this file
    rules: str = "rules"
    secrets: str = ""  # folder of secret_file; empty: $CREDENTIALS_DIRECTORY, else secrets/ in the state folder
    ingest: Ingest = Ingest()
    enrol: Enrol = Enrol()
    web: Web = Web()
    store: Store = Store()
    engine: Engine = Engine()
    channel: tuple[Channel, ...] = ()
    log: Log = Log()


class Address(NamedTuple):
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Paths(NamedTuple):
    """Where everything of one collector lies."""

    file: Path
    state: Path
    registry: Path
    rules: Path
    secrets: Path

    @property
    def database(self) -> Path:
        return self.state / "tocsin.db"

    @property
    def snapshots(self) -> Path:
        return self.state / "snapshots"

    @property
    def authority(self) -> Path:
        return self.state / "ca"

    @property
    def control(self) -> Path:
        return self.state / "control.sock"

    @property
    def ports(self) -> Path:
        return self.state / "ports.json"


def load(path: Path, environ: Mapping[str, str]) -> Loaded[CollectorConfig]:
    """collector.toml, then collector.d/*.toml beside it, then TOCSIN_COLLECTOR__*. Raises SettingsError."""
    loaded = settings.load(
        CollectorConfig, path, drop_in=path.with_suffix(".d"), env_prefix=ENV_PREFIX, environ=environ
    )
    check(loaded)
    return loaded


def parse(text: str, filename: str) -> Loaded[CollectorConfig]:
    """The same from a text. Raises SettingsError."""
    loaded = settings.parse(CollectorConfig, text, filename)
    check(loaded)
    return loaded


def check(loaded: Loaded[CollectorConfig]) -> None:
    """What types alone cannot say. Raises SettingsError."""
    config = loaded.value
    problems: list[tuple[str, str]] = []
    for key, listen in (
        ("ingest.listen", config.ingest.listen),
        ("enrol.listen", config.enrol.listen),
        ("web.listen", config.web.listen),
    ):
        try:
            parse_address(listen)
        except ValueError as error:
            problems.append((key, str(error)))
    if config.web.url and not config.web.url.startswith(("http://", "https://")):
        problems.append(("web.url", f'"{config.web.url}" is no address of a page, write "https://tocsin.example"'))
    if bool(config.web.certificate) != bool(config.web.key):
        given, other = ("certificate", "key") if config.web.certificate else ("key", "certificate")
        problems.append((f"web.{given}", f"needs web.{other} beside it"))
    for key, number, low in (
        ("ingest.agents_max", config.ingest.agents_max, 1),
        ("web.session", int(config.web.session), 60_000),
        ("engine.silent_after", int(config.engine.silent_after), 5_000),
        ("store.incidents_keep", int(config.store.incidents_keep), 86_400_000),
    ):
        if number < low:
            said = f"{number} ms, at least {low} ms" if key != "ingest.agents_max" else f"{number}, at least {low}"
            problems.append((key, f"is too small: {said}"))
    problems += _check_channels(config.channel)
    if problems:
        raise SettingsError([Problem(loaded.origin(key), key, problem) for key, problem in problems])


def _check_channels(channels: tuple[Channel, ...]) -> list[tuple[str, str]]:
    problems = []
    if len(channels) > CHANNELS_MAX:
        problems.append(("channel", f"{len(channels)} channels, at most {CHANNELS_MAX} are allowed"))
    seen: set[str] = set()
    for index, channel in enumerate(channels):
        at = f"channel[{index}]"
        if channel.id in seen:
            problems.append((f"{at}.id", f'"{channel.id}" stands twice; every channel needs an id of its own'))
        seen.add(channel.id)
        if not channel.url.startswith(("http://", "https://")):
            problems.append((f"{at}.url", f'"{channel.url}" cannot be called, write "https://desk.example/tocsin"'))
    return problems


def parse_address(text: str) -> Address:
    """ "host:port" or "[v6]:port". Port 0: any that is free. ValueError says what would be right."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65_535:
        raise ValueError(f'"{text}" has no port, write "0.0.0.0:7443"')
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f'"{text}": an IPv6 address stands in brackets, write "[::]:{port}"')
    return Address(host or "0.0.0.0", int(port))


def with_state(config: CollectorConfig, state: Path) -> CollectorConfig:
    """The same with another state folder: the command line wins over a file that names none."""
    return msgspec.structs.replace(config, state=str(state))


def default_file(environ: Mapping[str, str], *, is_root: bool) -> Path:
    """Where collector.toml is looked for when nobody says so."""
    if is_root:
        return Path("/etc/tocsin/collector.toml")
    base = environ.get("XDG_CONFIG_HOME") or str(Path(environ.get("HOME", "/")) / ".config")
    return Path(base) / "tocsin" / "collector.toml"


def paths(config: CollectorConfig, file: Path, environ: Mapping[str, str], *, is_root: bool) -> Paths:
    """All places, absolute. SettingsError when the control socket's path would be too long for the kernel."""
    home = file.absolute().parent
    state = home / config.state if config.state else _default_state(environ, is_root=is_root)
    secrets = config.secrets or environ.get("CREDENTIALS_DIRECTORY") or str(state / "secrets")
    found = Paths(file.absolute(), state, home / config.registry, home / config.rules, home / secrets)
    if len(os.fsencode(found.control)) > SOCKET_PATH_MAX:
        problem = f"the path of its control socket has more than {SOCKET_PATH_MAX} bytes, choose a shorter folder"
        raise SettingsError([Problem(str(file), "state", problem)])
    return found


def _default_state(environ: Mapping[str, str], *, is_root: bool) -> Path:
    if "STATE_DIRECTORY" in environ:  # systemd's StateDirectory=, the only place a DynamicUser may write
        return Path(environ["STATE_DIRECTORY"].split(":")[0])
    if is_root:
        return Path("/var/lib/tocsin-collector")
    base = environ.get("XDG_STATE_HOME") or str(Path(environ.get("HOME", "/")) / ".local" / "state")
    return Path(base) / "tocsin-collector"
