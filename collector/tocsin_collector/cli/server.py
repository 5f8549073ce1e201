"""The command `tocsin-collector`: arguments in, text out, an exit code that always means the same.

Not the collector (`app.py`). Talk goes to stderr, what was asked for to stdout. Invariant: importing this loads neither gRPC
nor NumPy nor cryptography; each command imports what it needs, and says which extra to install when it is not there.
"""

import asyncio
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version as installed_version
from pathlib import Path
from socket import gethostname
from typing import TYPE_CHECKING, Any

import click

from tocsin_collector.i18n import DOMAIN, LOCALE, N_
from tocsin_proto import exits
from tocsin_proto.words import Told, Words, localize

if TYPE_CHECKING:
    from tocsin_collector.config import CollectorConfig, Paths
    from tocsin_collector.foundation import Foundation
    from tocsin_proto.settings import Loaded

EXTRA = "pip install 'tocsin[collector]'"
PASSWORD_FILE_BYTES_MAX = 4096
WORDS = Words(DOMAIN, LOCALE)
t = WORDS.t
# What `init` makes.
PARTS = [N_("settings"), N_("registry"), N_("rules"), N_("secrets"), N_("certificate authority"), N_("store")]
PARTS += [N_("administrator")]

config_option = click.option(
    "--config", "file", type=click.Path(path_type=Path), metavar="FILE", help="The settings file, collector.toml."
)
state_option = click.option(
    "--state",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The state folder. Without --config, settings are DIR/collector.toml.",
)


class CommandError(Told):
    """Ends the command with `code`. The text says where, what, and what would be right."""

    def __init__(self, code: int, text: str, /, **facts: object) -> None:
        super().__init__(text, **facts)
        self.code = code


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """The Tocsin collector: listens to agents, opens incidents, keeps the availability record."""


@cli.command()
@config_option
@state_option
@click.option("--name", "names", multiple=True, help="How agents reach this machine; may be given several times.")
@click.option("--admin", default="admin", show_default=True, help="Name of the first administrator.")
@click.option(
    "--admin-password-file",
    type=click.File("rb"),
    metavar="FILE",
    help="The administrator's password; - is stdin. Without it one is made and shown once.",
)
def init(file: Path | None, state: Path | None, names: tuple[str, ...], admin: str, admin_password_file: Any) -> None:
    """Make settings, certificate authority, store and first administrator. Again: adds what is missing."""
    with _failing():
        from tocsin_collector import foundation
        from tocsin_proto import logs

        logs.configure(level="error")  # what was made is told below, in words for people
        file = _file(file, state)
        if state:
            state.mkdir(parents=True, exist_ok=True, mode=0o700)
        password = _password(admin_password_file)
        wanted = names or tuple(dict.fromkeys((gethostname(), "localhost", "127.0.0.1")))
        settings = foundation.write_settings(file, str(state.absolute()) if state else "", wanted)
        loaded, paths = _load(file, state)
        if not loaded.value.names:
            raise CommandError(
                exits.EX_CONFIG,
                "{file}: names: missing, write names = {names} and run `init` again",
                file=file,
                names=_toml(wanted),
            )
        if names and set(names) != set(loaded.value.names):
            raise CommandError(
                exits.PROBLEM,
                "{place}: names: the file says {names}; change it there and run `init` again",
                place=loaded.origin("names"),
                names=_toml(loaded.value.names),
            )
        laid = asyncio.run(
            foundation.lay(
                loaded.value, paths, admin=admin, password=password, clock=lambda: time.time_ns() // 1_000_000
            )
        )
        _tell(foundation.Foundation((settings, *laid.made), laid.password), loaded.value, file, admin)


@cli.command()
@config_option
@state_option
def run(file: Path | None, state: Path | None) -> None:
    """Serve agents and people, until stopped."""
    with _failing():
        from tocsin_collector import app
        from tocsin_proto import logs

        os.umask(0o077)  # database, keys and snapshots are nobody else's to read
        loaded, paths = _load(_file(file, state), state)
        logs.configure(loaded.value.log.format, loaded.value.log.level)
        asyncio.run(app.run(loaded.value, paths, os.environ))


@cli.group("config")
def config_group() -> None:
    """The settings."""


@config_group.command()
@config_option
@state_option
@click.option("--print-effective", is_flag=True, help="Every value in force with the place it comes from.")
def check(file: Path | None, state: Path | None, print_effective: bool) -> None:
    """Check settings, registry and rules, without a running collector."""
    with _failing():
        from tocsin_collector import configuration
        from tocsin_proto import settings_print

        loaded, paths = _load(_file(file, state), state)
        sources = configuration.read(loaded.value, paths)
        config = configuration.compose(sources, configuration.enrolled_in(paths.database), None)
        if print_effective:
            click.echo(settings_print.effective(loaded), nl=False)
            for rule in config.rules:
                click.echo(f"# rule {rule.id}: {rule.metric}, {'built in' if rule.is_built_in else paths.rules}")
        registry = config.registry
        click.echo(
            t(
                "{file}: sound; {sites} sites, {devices} devices, {rules} rules",
                file=paths.file,
                sites=len(registry.sites),
                devices=len(registry.devices),
                rules=len(config.rules),
            ),
            err=True,
        )


@cli.command()
def version() -> None:
    """Which version this is."""
    click.echo(f"tocsin-collector {installed_version('tocsin')}")


def main() -> None:
    WORDS.use()
    localize(cli, WORDS)
    try:
        cli.main(prog_name="tocsin-collector", standalone_mode=False)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(exits.INTERRUPTED)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(exits.INTERRUPTED)
    except CommandError as error:
        click.echo(f"tocsin-collector: {WORDS.of(error)}", err=True)
        sys.exit(error.code)


# ------------------------------------------------------------------------------------------------------------- helpers


# By name, because the modules that define them are imported only by the commands that need them.
EXIT_CODES = {
    "SettingsError": exits.EX_CONFIG,
    "StoreError": exits.EX_CONFIG,
    "AuthorityError": exits.EX_CONFIG,
    "AccountError": exits.USAGE,
    "ControlError": exits.PROBLEM,
    "OSError": exits.PROBLEM,
}


@contextmanager
def _failing() -> Iterator[None]:
    """What the world does wrong, as one clear message and a code. Our own mistakes keep their traceback."""
    try:
        yield
    except CommandError:
        raise
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("tocsin"):
            raise
        raise CommandError(exits.USAGE, "{name} is not installed: {install}", name=error.name, install=EXTRA) from error
    except Exception as error:
        code = next((EXIT_CODES[kind.__name__] for kind in type(error).__mro__ if kind.__name__ in EXIT_CODES), None)
        if code is None:
            raise
        raise CommandError(code, WORDS.of(error)) from error


def _file(file: Path | None, state: Path | None) -> Path:
    """Where the settings are: as said, in the state folder that was named, or in the usual place."""
    from tocsin_collector.config import default_file

    if file is not None:
        return file
    return state / "collector.toml" if state else default_file(os.environ, is_root=_is_root())


def _load(file: Path, state: Path | None) -> "tuple[Loaded[CollectorConfig], Paths]":
    """Settings and places. `--state` must not contradict the file."""
    from tocsin_collector import config

    loaded = config.load(file, os.environ)
    paths = config.paths(loaded.value, file, os.environ, is_root=_is_root())
    if state is not None and state.absolute() != paths.state:
        if loaded.is_written("state"):
            raise CommandError(
                exits.EX_CONFIG,
                "{place}: state: the file says {written}, the command {said}; name one of the two",
                place=loaded.origin("state"),
                written=paths.state,
                said=state.absolute(),
            )
        paths = config.paths(config.with_state(loaded.value, state.absolute()), file, os.environ, is_root=_is_root())
    return loaded, paths


def _is_root() -> bool:
    return os.geteuid() == 0


def _password(file: Any) -> str:
    """The first line of the file, "" without a file."""
    if file is None:
        return ""
    raw: bytes = file.read(PASSWORD_FILE_BYTES_MAX + 1)
    if len(raw) > PASSWORD_FILE_BYTES_MAX:
        raise CommandError(
            exits.USAGE,
            "{file}: has more than {count} bytes, it should hold one line",
            file=file.name,
            count=PASSWORD_FILE_BYTES_MAX,
        )
    try:
        password = raw.decode().splitlines()[0].strip() if raw.strip() else ""
    except UnicodeDecodeError as error:
        raise CommandError(
            exits.USAGE, "{file}: is not UTF-8, it should hold one line of text", file=file.name
        ) from error
    if not password:
        raise CommandError(exits.USAGE, "{file}: is empty, its first line is the password", file=file.name)
    return password


def _toml(names: tuple[str, ...]) -> str:
    from tocsin_proto.settings_print import render

    return render(names)


def _tell(laid: "Foundation", config: "CollectorConfig", file: Path, admin: str) -> None:
    """One block: what was made, what was there, what to do next."""
    for made in laid.made:
        said = t("made   {what}: {where}") if made.is_new else t("there  {what}: {where}")
        click.echo(said.format(what=t(made.what), where=made.where))
    if laid.password:
        click.echo("\n" + t("Password of {admin}, shown this once: {password}", admin=admin, password=laid.password))
    if any(made.is_new for made in laid.made):
        page = config.web.url or f"http://{config.web.listen}"
        click.echo("\n" + t("Next: {command}", command=f"tocsin-collector run --config {file}"))
        click.echo(t("then log in at {page}, or: {command}", page=page, command=f"tocsin login {page}"))
    else:
        click.echo("\n" + t("Everything is there already; nothing was changed."))
