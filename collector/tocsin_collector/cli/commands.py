"""The `tocsin` command's tree: one group, and one line for each command.

Importing it needs the collector's extra; `operator.py` says so where that is missing.
"""

from importlib import import_module
from importlib.metadata import version

import click

from tocsin_collector.cli import account, figures, hosts, incidents, tokens
from tocsin_collector.cli.remote import Failed
from tocsin_proto.exits import USAGE


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(version("tocsin"), prog_name="tocsin")
def cli() -> None:
    """Ask a Tocsin collector: hosts, values, incidents, availability."""


# Without a --help of its own: the demo's says which options it takes.
@cli.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False}, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def demo(arguments: tuple[str, ...]) -> None:
    """Play the main job on this machine: collector, agent, simulated devices, a story."""
    try:
        # By name: it comes with simulated devices and the agent, which no other command needs.
        play = import_module("tocsin_collector.demo.story").main
    except ModuleNotFoundError as missing:
        if (missing.name or "").startswith("tocsin_collector.demo"):
            raise Failed(
                USAGE, "no-demo", "this installation has no demo", "install the whole distribution"
            ) from missing
        raise
    raise SystemExit(play(list(arguments)))


COMMANDS = (
    account.login,
    account.logout,
    hosts.hosts,
    hosts.get,
    incidents.incident,
    tokens.token,
    figures.availability,
    figures.status,
)
for _command in COMMANDS:
    cli.add_command(_command)
