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
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

import click
import msgspec

from tocsin_agent import release
from tocsin_proto import exits

if TYPE_CHECKING:
    from tocsin_agent.config import AgentSettings
    from tocsin_agent.sampler import Target
    from tocsin_agent.status import Status
    from tocsin_proto.settings import Loaded

F = TypeVar("F", bound=Callable[..., Any])

EXTRA = "pip install tocsin[agent]"
CERTIFICATE_SOON_MS = 7 * 86_400_000  # it is renewed ten days before


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
            raise Failure(
                f"this host is not enrolled ({folder / identity.FOLDER} is empty): run `tocsin-agent enrol --token-file FILE`",
                exits.EX_CONFIG,
            )
        try:
            code = app.run(loaded, path, folder, who, os.environ)
        except SpoolBusyError as error:
            raise Failure(str(error), exits.PROBLEM) from error
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
        raise click.BadParameter(f'"{probe}" is not watched here, known are: {known}', param_hint="PROBE")
    results = asyncio.run(trial.tried(chosen))
    if as_json:
        _print_json(all(one.problem is None for one in results), {"probes": results})
    else:
        trial.show(results)
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
            raise Failure(f"{path}: {error}", exits.EX_CONFIG) from error
    if print_effective:
        from tocsin_proto.settings_print import effective

        click.echo(effective(loaded), nl=False)
    else:
        click.echo(f"{path}: good", err=True)


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
            raise Failure(str(error), exits.REFUSED if error.refused else exits.UNREACHABLE) from error
    click.echo(f"enrolled as {who.agent}; identity in {folder / identity.FOLDER}", err=True)
    _write_first_settings(path, who.collector)


@cli.command()
@common
@as_json
def status(path: Path | None, state: Path | None, as_json: bool) -> None:
    """What the running agent does: connection, queue, last ack, certificate, failing probes."""
    folder = _state(path or _default_path(), state)
    from tocsin_agent import status as running

    try:
        now = running.ask(folder)
    except (OSError, msgspec.DecodeError) as error:
        raise _fail(f"the agent on {folder} cannot be asked: {error}", exits.PROBLEM, as_json) from error
    if now is None:
        raise _fail(f"no agent runs on {folder}", exits.PROBLEM, as_json)
    if as_json:
        _print_json(now.connected, now)
    else:
        _print_status(now)
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
        click.echo(f"tocsin-agent {facts['version']} (protocol {PROTOCOL_MIN} to {PROTOCOL_MAX})")


def main() -> None:
    cli(prog_name="tocsin-agent")


# ------------------------------------------------------------------------------------------------------ settings


class Failure(Exception):
    """One line for the person at the terminal, and the exit code."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


@contextmanager
def _failing() -> Iterator[None]:
    from tocsin_agent.identity import EnrolError

    try:
        yield
    except Failure as failure:
        raise _fail(str(failure), failure.code) from failure
    except EnrolError as error:
        raise _fail(str(error), exits.EX_CONFIG) from error


@contextmanager
def _extra_needed() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("tocsin"):
            raise
        raise _fail(f"{error.name} is not installed: {EXTRA}", exits.USAGE) from error


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
        click.echo(f"{path} is there already and stays as it is", err=True)
        return
    from tocsin_proto.settings_print import render

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x") as file:
            file.write(f"collector = {render(collector)}\n")
    except OSError as error:
        text = f"{path} cannot be written ({error.strerror}): write `collector = {render(collector)}` into it"
        raise _fail(text, exits.PROBLEM) from error
    click.echo(f"{path} written", err=True)


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


def _print_status(now: "Status") -> None:
    lines = [
        ("agent", f"{now.agent or 'not named yet'}, version {now.version}, pid {now.pid}"),
        ("collector", f"{now.collector}: {now.uplink}"),
        ("last ack", f"{_ago(now.now_ms - now.last_ack_ms)} ago" if now.last_ack_ms else "never since the start"),
        ("queue", f"{now.backlog_frames} frames, {now.backlog_bytes} bytes; {now.dropped_frames} dropped"),
        ("certificate", _until(now.certificate_expires_ms, now.now_ms)),
        ("watching", f"{now.targets} targets, {now.series} series; {now.overruns} overruns"),
    ]
    for name, text in lines:
        click.echo(f"{name + ':':<13}{text}")
    if now.certificate_problem:
        click.echo(f"{'':<13}not renewed: {now.certificate_problem}")
    if now.assignment_etag:
        click.echo(f"{'assignment:':<13}{now.assignment_etag}")
    for reason in now.refused:
        click.echo(f"{'refused:':<13}{reason}")
    for key, problem in sorted(now.problems.items()):
        click.echo(f"{'problem:':<13}{key}: {problem}")
    if not now.connected:
        click.echo("the collector does not answer: what is measured waits in the queue", err=True)


def _ago(ms: int) -> str:
    from tocsin_proto.units import Duration

    return str(Duration(max(0, ms) // 1000 * 1000))


def _until(expires_ms: int, now_ms: int) -> str:
    if not expires_ms:
        return "unknown"
    day = datetime.fromtimestamp(expires_ms / 1000, UTC).date().isoformat()
    if expires_ms <= now_ms:
        return f"expired on {day}: enrol again"
    return f"good until {day}" + (", soon" if expires_ms - now_ms < CERTIFICATE_SOON_MS else "")


def _print_json(ok: bool, data: Any, error: dict[str, Any] | None = None) -> None:
    envelope = {"ok": ok, "data": data} if error is None else {"ok": ok, "data": data, "error": error}
    click.echo(msgspec.json.encode(envelope).decode())
