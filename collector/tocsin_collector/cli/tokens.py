"""`tocsin token`: how a new host is let in."""

from typing import Any
from urllib.parse import quote

import click

from tocsin_collector.cli import output
from tocsin_collector.cli.shared import LIST_MAX, Shared, common, done, duration_ms, now_ms, shared_of


@click.group()
def token() -> None:
    """Enrolment tokens: how a new host is let in."""


@token.command("create")
@click.option("--device", default="", help="name the host will have; default: its hostname, and then a device per use")
@click.option("--site", default="", help="site it belongs to")
@click.option("--ttl", default="1h", show_default=True, help="how long it may be used: 30m, 24h, 7d")
@click.option("--uses", type=click.IntRange(1, 1000), default=1, show_default=True)
@common
@shared_of
def token_create(shared: Shared, device: str, site: str, ttl: str, uses: int) -> None:
    """Make one; it is printed this once."""
    wish = {"device": device, "site": site, "ttl_s": duration_ms(ttl) // 1000, "uses": uses}
    with shared.collector() as collector:
        made = collector.post("/tokens", wish)
    if shared.as_json:
        output.envelope(made)
        return
    click.echo(output.safe(made["token"]))  # alone on stdout, so that it can be piped into a file
    talk = shared.language.t("Token {id}: shown this once; tocsin-agent enrol --token-file FILE", id=made["id"])
    click.echo(output.safe(talk), err=True)


@token.command("ls")
@common
@shared_of
def token_ls(shared: Shared) -> None:
    """List them, without their secrets."""
    with shared.collector() as collector:
        found = collector.all("/tokens", LIST_MAX)
    if shared.as_json:
        output.envelope(found)
        return
    t = shared.language.t
    rows = [
        (one["id"], one["device"], one["site"], one["uses_left"], _token_state(shared, one), one["created_by"])
        for one in found
    ]
    output.table((t("ID"), t("Device"), t("Site"), t("Uses left"), t("State"), t("Made by")), rows)


def _token_state(shared: Shared, one: dict[str, Any]) -> str:
    t = shared.language.t
    if one["revoked_ms"]:
        return t("revoked")
    if one["expires_ms"] <= now_ms():
        return t("expired")
    return t("used up") if not one["uses_left"] else t("until {time}", time=shared.at(one["expires_ms"]))


@token.command("revoke")
@click.argument("id")
@common
@shared_of
def token_revoke(shared: Shared, id: str) -> None:
    """End one."""
    with shared.collector() as collector:
        answer = collector.post(f"/tokens/{quote(id, safe='')}/revoke")
    done(shared, answer, shared.language.t("Token {id} is revoked.", id=id))
