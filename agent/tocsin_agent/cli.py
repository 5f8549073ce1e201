"""The command `tocsin-agent`: arguments in, text or JSON out, an exit code that always means the same.

Not the agent (`app.py`). Data go to stdout, talk and errors to stderr. Invariant: importing this loads neither gRPC nor
psutil: each command imports what it needs, and says which extra to install when it is not there.
"""

import asyncio
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

import click
import msgspec

from tocsin_agent import release
from tocsin_proto import exits
from tocsin_proto.words import Told, Words, localize

if TYPE_CHECKING:
    from tocsin_agent.config import AgentSettings
    from tocsin_agent.sampler import Target
    from tocsin_proto.settings import Loaded

F = TypeVar("F", bound=Callable[..., Any])

EXTRA = "pip install tocsin[agent]"
WORDS = Words("tocsin-agent", Path(__file__).parent / "locale")
t = WORDS.t


def common(command: F) -> F:
    command = click.option(
        "--config", "path", type=click.Path(path_type=Path), metavar="FILE", help="The settings file."
    )(command)
    return click.option(
        "--state", type=click.Path(path_type=Path), metavar="DIR", help="Where identity and spool are kept."
    )(command)


as_json = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """The Tocsin agent: watches this host and the devices near it, and tells its collector."""


@cli.command()
@common
def run(path: Path | None, state: Path | None) -> None:
    """Watch and report, until stopped."""
    loaded, path, folder = _settings(path, state)
    with _extra_needed(), _failing():
        from tocsin_agent import app, identity
        from tocsin_agent.spool import SpoolBusyError

        who = identity.load(folder / identity.FOLDER)
        if who is None:
            raise CommandError(
                exits.EX_CONFIG,
                "this host is not enrolled ({folder} is empty): run `tocsin-agent enrol --token-file FILE`",
                folder=folder / identity.FOLDER,
            )
        try:
            code = app.run(loaded, path, folder, who, os.environ)
        except SpoolBusyError as error:
            raise CommandError(exits.PROBLEM, str(error)) from error
    sys.exit(code)


@cli.command()
@common
@as_json
@click.argument("probe", required=False)
def test(path: Path | None, state: Path | None, probe: str | None, as_json: bool) -> None:
    """Run every probe, or only PROBE, once; print what it measures and send nothing.

    PROBE is a host probe ("cpu", "filesystems" ...) or the id of a device.
    """
    loaded, path, folder = _settings(path, state, is_needed=False)
    with _extra_needed():
        from tocsin_agent import trial

        targets = _targets(loaded.value, path, folder)
    chosen = [one for one in targets if probe is None or probe in _names(one)]
    if not chosen:
        known = ", ".join(sorted({_names(one)[-1] for one in targets}))
        raise click.BadParameter(
            t('"{probe}" is not watched here, known are: {known}', probe=probe, known=known), param_hint="PROBE"
        )
    results = asyncio.run(trial.tried(chosen))
    if as_json:
        _print_json(all(one.problem is None for one in results), {"probes": results})
    else:
        trial.show(results, t)
    sys.exit(exits.OK if all(one.problem is None for one in results) else exits.PROBLEM)


@cli.group(name="config")
def config_group() -> None:
    """Look at the settings."""


@config_group.command()
@common
@click.option("--print-effective", is_flag=True, help="Every key in force, and where it was written.")
def check(path: Path | None, state: Path | None, print_effective: bool) -> None:
    """Check the settings without starting anything."""
    loaded, path, _ = _settings(path, state)
    with _extra_needed(), _failing():
        from tocsin_agent.credentials import Credentials
        from tocsin_agent.devices import local_devices, make_probe

        try:
            for device in local_devices(loaded.value.snmp):
                make_probe(device, Credentials(()))
        except ValueError as error:
            raise CommandError(exits.EX_CONFIG, f"{path}: {error}") from error
    if print_effective:
        from tocsin_proto.settings_print import effective

        click.echo(effective(loaded), nl=False)
    else:
        click.echo(t("{path}: good", path=path), err=True)


@cli.command()
@common
@click.option("--token-file", type=click.File("r"), default="-", help="The token; by default standard input.")
def enrol(path: Path | None, state: Path | None, token_file: IO[str]) -> None:
    """Trade a one-time token for this host's certificate.

    The token is made by `tocsin token create`. It is never given on the command line, where every user could see it.
    """
    path = path or _default_path()
    folder = _state(path, state)
    with _extra_needed(), _failing():
        from tocsin_agent import identity

        try:
            who = identity.enrol(identity.read_token(token_file), folder / identity.FOLDER, socket.gethostname()[:255])
        except identity.EnrolError as error:
            code = exits.REFUSED if error.refused else exits.UNREACHABLE
            raise CommandError(code, WORDS.of(error)) from error
    said = t("enrolled as {agent}; identity in {folder}", agent=who.agent, folder=folder / identity.FOLDER)
    click.echo(said, err=True)
    _write_first_settings(path, who.collector)


@cli.command()
@common
@as_json
def status(path: Path | None, state: Path | None, as_json: bool) -> None:
    """What the running agent does: connection, queue, last ack, certificate, failing probes."""
    folder = _state(path or _default_path(), state)
    from tocsin_agent import status as running
    from tocsin_agent import status_view

    try:
        now = running.ask(folder)
    except (OSError, msgspec.DecodeError) as error:
        said = t("the agent on {folder} cannot be asked: {error}", folder=folder, error=error)
        raise _fail(said, exits.PROBLEM, as_json) from error
    if now is None:
        raise _fail(t("no agent runs on {folder}", folder=folder), exits.PROBLEM, as_json)
    if as_json:
        _print_json(now.connected, now)
    else:
        status_view.show(now, t)
    sys.exit(exits.OK if now.connected else exits.UNREACHABLE)


@cli.command()
@as_json
def version(as_json: bool) -> None:
    """The version of this agent and of the wire protocol it speaks."""
    from tocsin_proto.records import PROTOCOL_MAX, PROTOCOL_MIN

    facts = {"version": release.version(), "protocol_min": PROTOCOL_MIN, "protocol_max": PROTOCOL_MAX}
    if as_json:
        _print_json(True, facts)
    else:
        said = "tocsin-agent {version} (protocol {protocol_min} to {protocol_max})"
        click.echo(t(said, **facts))


def main() -> None:
    WORDS.use()
    localize(cli, WORDS)
    cli(prog_name="tocsin-agent")


# ------------------------------------------------------------------------------------------------------ settings


class CommandError(Told):
    """One line for the person at the terminal, and the exit code."""

    def __init__(self, code: int, text: str, /, **facts: object) -> None:
        super().__init__(text, **facts)
        self.code = code


@contextmanager
def _failing() -> Iterator[None]:
    from tocsin_agent.identity import EnrolError

    try:
        yield
    except CommandError as failure:
        raise _fail(WORDS.of(failure), failure.code) from failure
    except EnrolError as error:
        raise _fail(WORDS.of(error), exits.EX_CONFIG) from error


@contextmanager
def _extra_needed() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("tocsin"):
            raise
        said = t("{name} is not installed: {install}", name=error.name, install=EXTRA)
        raise _fail(said, exits.USAGE) from error


def _fail(text: str, code: int, as_json: bool = False) -> SystemExit:
    if as_json:
        _print_json(False, None, {"code": code, "message": text})
    click.echo(text, err=True)
    return SystemExit(code)


def _settings(
    path: Path | None, state: Path | None, *, is_needed: bool = True
) -> tuple["Loaded[AgentSettings]", Path, Path]:
    """The settings, where they were read, and the state folder. Not `is_needed`: on a new host the defaults do."""
    from tocsin_agent import config
    from tocsin_proto.settings import SettingsError, parse

    is_default, path = path is None, path or _default_path()
    environ = dict(os.environ)
    if state is not None:
        environ[f"{config.ENV_PREFIX}__STATE"] = str(state)
    try:
        if is_default and not is_needed and not path.exists():
            loaded = parse(config.AgentSettings, "", str(path))
        else:
            loaded = config.read(path, environ)
    except SettingsError as error:
        raise _fail(str(error), exits.EX_CONFIG) from error
    return loaded, path, config.state_folder(loaded.value, environ)


def _state(path: Path, state: Path | None) -> Path:
    """The state folder, for commands that work without a settings file as well."""
    from tocsin_agent import config

    if state is not None:
        return state
    if path.exists():
        return _settings(path, None)[2]
    written = os.environ.get(f"{config.ENV_PREFIX}__STATE", "")
    return config.state_folder(config.AgentSettings(state=written), os.environ)


def _default_path() -> Path:
    from tocsin_agent import config

    return config.default_path(os.environ)


def _write_first_settings(path: Path, collector: str) -> None:
    """One line is a whole configuration; a file that is there is never touched."""
    if path.exists():
        click.echo(t("{path} is there already and stays as it is", path=path), err=True)
        return
    from tocsin_proto.settings_print import render

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x") as file:
            file.write(f"collector = {render(collector)}\n")
    except OSError as error:
        said = t(
            "{path} cannot be written ({why}): write `{line}` into it",
            path=path,
            why=error.strerror,
            line=f"collector = {render(collector)}",
        )
        raise _fail(said, exits.PROBLEM) from error
    click.echo(t("{path} written", path=path), err=True)


# -------------------------------------------------------------------------------------------------------- test


def _targets(settings: "AgentSettings", path: Path, folder: Path) -> list["Target"]:
    from tocsin_agent import app, assignment
    from tocsin_agent.credentials import Credentials
    from tocsin_agent.devices import device_target, local_devices

    credentials = Credentials(app.credential_folders(settings, path, os.environ))
    local = local_devices(settings.snmp)
    cached = assignment.load(folder / "assignment.json")
    assigned = assignment.decide(cached, settings.assignment.accept, assignment.ids(local)).devices if cached else ()
    devices = [device_target(device, credentials) for device in (*local, *assigned)]
    return [*app.host_targets(settings.host), *devices]


def _names(one: "Target") -> tuple[str, str]:
    """ "host/cpu" is asked for as "host/cpu" or as "cpu"."""
    return one.key, one.key.partition("/")[2]


# ------------------------------------------------------------------------------------------------------ output


def _print_json(ok: bool, data: Any, error: dict[str, Any] | None = None) -> None:
    envelope = {"ok": ok, "data": data} if error is None else {"ok": ok, "data": data, "error": error}
    click.echo(msgspec.json.encode(envelope).decode())
