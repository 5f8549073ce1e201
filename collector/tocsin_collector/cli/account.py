"""`tocsin login` and `logout`: a password once, then a token in a file of the user's own."""

import os
import sys
from pathlib import Path

import click

from tocsin_collector.cli import output, remote
from tocsin_collector.cli.shared import Shared, common, done, shared_of
from tocsin_proto.exits import REFUSED, USAGE


@click.command()
@click.argument("url")
@click.option("--user", help="account name; asked for when missing")
@click.option(
    "--password-file", type=click.Path(dir_okay=False, path_type=Path), help="file with the password, - for stdin"
)
@click.option("--ca", type=click.Path(exists=True, dir_okay=False), help="PEM file of the authority to trust")
@common
@shared_of
def login(shared: Shared, url: str, user: str | None, password_file: Path | None, ca: str | None) -> None:
    """Log in to the collector at URL; the token is kept for the other commands."""
    url = url.rstrip("/")
    if not url.startswith(("http://", "https://")):
        raise click.UsageError(f'"{url}" is no address of a collector, write "https://collector.example:8443"')
    name = user or click.prompt("User", err=True)
    password = _password(password_file)
    authority = str(Path(ca).absolute()) if ca else ""
    with remote.Collector(remote.Login(url, "", ca=authority), shared.language.tag) as collector:
        granted = collector.post("/login", {"name": name, "password": password})
    file = remote.login_file(os.environ)
    remote.save(remote.Login(url, granted["token"], name, authority), file)
    if shared.as_json:
        output.envelope({"url": url, "user": name, "role": granted["role"], "expires_ms": granted["expires_ms"]})
    else:
        output.say(
            shared.language.t("Logged in to {url} as {name} ({role}).", url=url, name=name, role=granted["role"])
        )


def _password(file: Path | None) -> str:
    """From the file, the pipe on stdin, or a prompt that does not echo; never from an argument. One line."""
    if file is not None and str(file) != "-":
        try:
            return file.read_text(encoding="utf-8").split("\n")[0].rstrip("\r")
        except (OSError, UnicodeDecodeError) as error:
            raise remote.Failed(USAGE, "password-file", f"{file}: {error}") from error
    if file is not None or not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\r\n")
    return str(click.prompt("Password", hide_input=True, err=True))


@click.command()
@common
@shared_of
def logout(shared: Shared) -> None:
    """End the session and forget its token."""
    file = remote.login_file(os.environ)
    try:
        with shared.collector() as collector:
            collector.post("/logout")
    except remote.Failed as failed:
        if failed.exit_code != REFUSED:  # refused: the session has ended already
            raise
    finally:
        file.unlink(missing_ok=True)
    done(shared, {}, shared.language.t("Logged out."))
