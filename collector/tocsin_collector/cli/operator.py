"""`tocsin`: what an operator asks a collector from a terminal.

Speaks to the API only, with the saved login (`remote.py`); everything it prints goes through `output.py`. Invariant: with
`--json` stdout is one envelope {ok, code, data, error}, whatever happens; the exit codes are those of `tocsin_proto.exits`.
"""

import os
import sys

import click

from tocsin_collector.cli import output
from tocsin_proto.exits import INTERRUPTED, OK, USAGE


def main() -> None:
    """The `tocsin` command."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Runs one command; every ending is an exit code."""
    as_json = "--json" in arguments
    try:
        from tocsin_collector.cli.commands import cli
        from tocsin_collector.cli.remote import Failed
        from tocsin_collector.cli.shared import Shared
    except ModuleNotFoundError as missing:
        if (missing.name or "").startswith("tocsin"):
            raise
        return _failed(USAGE, "extra", f"{missing.name} is not installed", "pip install 'tocsin[collector]'", as_json)
    try:
        result = cli.main(arguments, prog_name="tocsin", standalone_mode=False, obj=Shared())
        return result if isinstance(result, int) else OK
    except Failed as failed:
        return _failed(failed.exit_code, failed.code, failed.message, failed.hint, as_json)
    except SystemExit as ending:
        return ending.code if isinstance(ending.code, int) else OK
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return USAGE
    except click.ClickException as error:
        hint = f"{error.ctx.command_path} --help" if isinstance(error, click.UsageError) and error.ctx else ""
        return _failed(error.exit_code, "usage", error.format_message(), hint, as_json)
    except (click.Abort, KeyboardInterrupt):
        return _failed(INTERRUPTED, "interrupted", "interrupted", "", as_json)
    except BrokenPipeError:
        # The reader, perhaps `head`, has seen enough; stdout must not complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK


def _failed(exit_code: int, code: str, text: str, hint: str, as_json: bool) -> int:
    if as_json:
        output.envelope_error(exit_code, code, text, hint)
    click.echo(output.safe(f"tocsin: {text}" + (f" ({hint})" if hint else "")), err=True)
    return exit_code
