"""`tocsin availability` and `tocsin status`: figures of a component, and of the collector itself."""

from typing import Any
from urllib.parse import quote

import click

from tocsin_collector import wording
from tocsin_collector.cli import output
from tocsin_collector.cli.shared import Shared, common, moment_ms, now_ms, shared_of
from tocsin_collector.i18n import N_


@click.command()
@click.argument("component")
@click.option(
    "--from", "from_", default="24h", show_default=True, help="2026-11-01, 2026-11-01T06:00, or how long ago: 7d"
)
@click.option("--to", default="", help="the same; default: now")
@common
@shared_of
def availability(shared: Shared, component: str, from_: str, to: str) -> None:
    """The six sums of COMPONENT's ledger over a period, to the millisecond."""
    now = now_ms()
    with shared.collector() as collector:
        found = collector.get(
            f"/availability/{quote(component, safe='')}",
            from_=moment_ms(from_, now, shared.zone),
            to=moment_ms(to, now, shared.zone) if to else now,
        )
    if shared.as_json:
        output.envelope(found)
        return
    t = shared.language.t
    ratio = t("not known") if found["ratio"] is None else wording.availability(found["ratio"])
    output.facts(
        (
            (t("Component"), found["component"]),
            (t("Period"), f"{shared.at(found['from_ms'])} - {shared.at(found['to_ms'])}"),
            *(
                (t(word), f"{wording.duration(shared.language, found[f'{state}_ms'])} ({found[f'{state}_ms']} ms)")
                for state, word in wording.STATES.items()
            ),
            (t("Available"), ratio),
            (t("Coverage"), wording.availability(found["coverage"])),
            (t("Revision"), found["revision"]),
        )
    )


@click.command()
@common
@shared_of
def status(shared: Shared) -> None:
    """How the collector itself is."""
    with shared.collector() as collector:
        found = collector.get("/status")
    if shared.as_json:
        output.envelope(found)
        return
    plain = [(name, value) for name, value in found.items() if not isinstance(value, (list, dict))]
    output.facts([(name[:-3], shared.at(value)) if name.endswith("_ms") else (name, value) for name, value in plain])
    t, agents = shared.language.t, found.get("agents")
    if isinstance(agents, list) and agents:
        click.echo()
        output.table(
            (t("Agent"), t("Site"), t("Version"), t("Connection"), t("Heard"), t("Lag")),
            [
                (
                    one["name"],
                    one.get("site", ""),
                    one.get("version", ""),
                    t(_connection(one)),
                    shared.age(one.get("last_received_ms", 0)),
                    wording.duration(shared.language, one.get("lag_ms", 0)),
                )
                for one in agents
            ],
        )
    elif not agents:
        output.say(t("No agent has been heard of yet."))


def _connection(agent: dict[str, Any]) -> str:
    if agent.get("is_revoked"):
        return N_("revoked")
    if agent.get("catching_up"):
        return N_("catching up")
    return N_("connected") if agent.get("is_connected") else N_("not connected")
