"""`tocsin hosts` and `tocsin get`: what is watched, how it is, what it measures now."""

from typing import Any
from urllib.parse import quote

import click

from tocsin_collector import wording
from tocsin_collector.cli import output, remote
from tocsin_collector.cli.shared import LIST_MAX, Shared, common, shared_of
from tocsin_proto.exits import PROBLEM


@click.group(invoke_without_command=True)
@common
@click.pass_context
def hosts(ctx: click.Context) -> None:
    """Hosts and devices and the state they are in."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(hosts_ls)


@hosts.command("ls")
@click.option("--site", default="", help="only this site")
@click.option("--state", default="", help="only this state: up, degraded, down, unknown, maintenance")
@common
@shared_of
def hosts_ls(shared: Shared, site: str = "", state: str = "") -> None:
    """List them, worst first."""
    with shared.collector() as collector:
        found = collector.all("/hosts", LIST_MAX, site=site, state=state)
    if shared.as_json:
        output.envelope(found)
        return
    if not found:
        output.say(shared.language.t("None."))
        return
    rank = {word: index for index, word in enumerate(wording.WORST_FIRST)}
    found.sort(key=lambda host: (rank.get(host["state"], 0), host["site"], host["id"]))
    t = shared.language.t
    output.table(
        (t("State"), t("For"), t("Device"), t("Site"), t("Kind"), t("Why")),
        [
            (
                shared.word(wording.STATES, host["state"]),
                shared.age(host["since_ms"]),
                host["id"],
                host["site"],
                host["kind"],
                "" if host["state"] == "up" else shared.word(wording.CAUSES, host["cause"]),
            )
            for host in found
        ],
        [host["state"] for host in found],
    )


@hosts.command("show")
@click.argument("host")
@common
@shared_of
def hosts_show(shared: Shared, host: str) -> None:
    """One of them with its newest values."""
    with shared.collector() as collector:
        detail = collector.get(f"/hosts/{quote(host, safe='')}")
    if shared.as_json:
        output.envelope(detail)
        return
    found, t = detail["host"], shared.language.t
    output.facts(
        (
            (t("Device"), found["id"]),
            (t("State"), f"{shared.word(wording.STATES, found['state'])} {shared.age(found['since_ms'])}"),
            (t("Why"), "" if found["state"] == "up" else shared.word(wording.CAUSES, found["cause"])),
            (t("Site"), found["site"]),
            (t("Kind"), found["kind"]),
            (t("Address"), found["address"]),
            (t("Watched by"), found["watched_by"]),
            (t("Depends on"), ", ".join(found["parents"])),
        )
    )
    click.echo()
    _values(shared, detail["values"])


@click.command()
@click.argument("metric")
@click.argument("host")
@common
@shared_of
def get(shared: Shared, metric: str, host: str) -> None:
    """The newest values of METRIC on HOST, one line per instance."""
    with shared.collector() as collector:
        found = collector.get(f"/hosts/{quote(host, safe='')}/values", metric=metric)["items"]
    if not found:
        raise remote.Failed(
            PROBLEM, "no-such-metric", f"{host} has no {metric}", f"tocsin hosts show {host} lists them"
        )
    if shared.as_json:
        output.envelope(found)
    else:
        _values(shared, found)


def _values(shared: Shared, values: list[dict[str, Any]]) -> None:
    t = shared.language.t
    rows = [
        (v["metric"], ", ".join(f"{k}={x}" for k, x in v["labels"].items()), v["text"], shared.age(v["time_ms"]))
        for v in values
    ]
    output.table((t("Metric"), t("Instance"), t("Value"), t("Age")), rows)
