"""`tocsin incident`: list, show, act, ask why."""

from typing import Any
from urllib.parse import quote

import click

from tocsin_collector import wording
from tocsin_collector.cli import output
from tocsin_collector.cli.shared import LIST_MAX, Shared, common, done, shared_of
from tocsin_collector.i18n import N_


@click.group()
def incident() -> None:
    """Incidents: list, show, act, ask why."""


@incident.command("ls")
@click.option("--state", default="told", help="told (default), live, quiet, all, or one state")
@click.option("--device", default="", help="only this device")
@click.option("--site", default="", help="only this site")
@click.option("--severity", type=click.Choice(list(wording.SEVERITIES)), help="this one or graver")
@click.option("--limit", type=click.IntRange(1, LIST_MAX), default=100, show_default=True)
@common
@shared_of
def incident_ls(shared: Shared, state: str, device: str, site: str, severity: str | None, limit: int) -> None:
    """List them, newest first."""
    with shared.collector() as collector:
        found = collector.all("/incidents", limit, state=state, device=device, site=site, severity=severity)
    if shared.as_json:
        output.envelope(found)
        return
    t = shared.language.t
    if not found:
        output.say(t("None."))
        return
    output.table(
        (t("Severity"), t("ID"), t("State"), t("Age"), t("Device"), t("What")),
        [
            (
                shared.word(wording.SEVERITIES, one["severity"]),
                one["id"],
                shared.word(wording.INCIDENT_STATES, one["state"]),
                shared.age(one["opened_ms"]),
                one["device"],
                one["says"],
            )
            for one in found
        ],
        [one["severity"] for one in found],
    )


@incident.command("show")
@click.argument("id")
@common
@shared_of
def incident_show(shared: Shared, id: str) -> None:
    """One incident with its timeline and who was told."""
    with shared.collector() as collector:
        detail = collector.get(f"/incidents/{quote(id, safe='')}")
    if shared.as_json:
        output.envelope(detail)
        return
    _incident(shared, detail["incident"])
    _steps(shared, shared.language.t("Timeline"), detail["timeline"])
    _deliveries(shared, detail["deliveries"])


@incident.command("why")
@click.argument("id")
@common
@shared_of
def incident_why(shared: Shared, id: str) -> None:
    """Why it was opened, held back, told: every decision with its facts."""
    with shared.collector() as collector:
        why = collector.get(f"/incidents/{quote(id, safe='')}/why")
    if shared.as_json:
        output.envelope(why)
        return
    t, found = shared.language.t, why["incident"]
    _incident(shared, found)
    output.facts(((t("Rule"), found["rule"]), (t("Key"), found["key"])))
    _steps(shared, t("Decision"), why["decision"])
    if why["evidence"]:
        output.say(f"\n{t('Evidence')} {found['metric']}".strip())
        for sample in why["evidence"]:
            output.say(f"  {shared.at(sample['time_ms'])}  {sample['text']}")
    if why["explained_by"]:
        parent = why["explained_by"]
        output.say(t("Held back because of {id}: {says}", id=parent["id"], says=parent["says"]))
    elif found["suppressed_by"]:
        output.say(t("explained by {id}", id=found["suppressed_by"]))
    for child in why["explains"]:
        output.say(t("It holds back {id}: {says}", id=child["id"], says=child["says"]))
    _deliveries(shared, why["deliveries"])


def _incident(shared: Shared, found: dict[str, Any]) -> None:
    t = shared.language.t
    output.say(found["says"])
    state = shared.word(wording.INCIDENT_STATES, found["state"])
    output.facts(
        (
            (t("ID"), found["id"]),
            (t("State"), f"{state}, {shared.word(wording.SEVERITIES, found['severity'])}"),
            (t("Device"), found["device"]),
            (t("Began"), f"{shared.at(found['opened_ms'])} ({shared.age(found['opened_ms'])})"),
            (t("Ended"), shared.at(found["resolved_ms"]) if found["resolved_ms"] else ""),
            (t("Seen"), shared.language.tn("once", "{n} times", found["occurrences"])),
            (t("Taken by"), found["acknowledged_by"]),
        )
    )


def _steps(shared: Shared, title: str, steps: list[dict[str, Any]]) -> None:
    click.echo()
    output.say(title)
    for step in steps:
        output.say(f"  {shared.at(step['at_ms'])}  {step['text']}")


def _deliveries(shared: Shared, deliveries: list[dict[str, Any]]) -> None:
    t = shared.language.t
    click.echo()
    output.say(t("Delivery") if deliveries else t("Nobody was told."))
    for one in deliveries:
        state = shared.word(wording.DELIVERY_STATES, one["state"])
        error = f": {one['last_error']}" if one["last_error"] and one["state"] != "sent" else ""
        when = shared.at(one["delivered_ms"]) if one["delivered_ms"] else ""
        output.say(f"  {one['channel']}  {shared.word(wording.NOTICE_KINDS, one['kind'])}  {state} {when}{error}")


def _act(shared: Shared, id: str, kind: str, text: str, said: str) -> None:
    with shared.collector() as collector:
        answer = collector.post(f"/incidents/{quote(id, safe='')}/{kind}", {"text": text})
    done(shared, answer, shared.language.t(said, id=id))


message = click.option("-m", "--message", "text", default="", help="something to say with it")


@incident.command("ack")
@click.argument("id")
@message
@common
@shared_of
def incident_ack(shared: Shared, id: str, text: str) -> None:
    """Say that you are on it."""
    _act(shared, id, "acknowledge", text, N_("{id} is acknowledged."))


@incident.command("resolve")
@click.argument("id")
@message
@common
@shared_of
def incident_resolve(shared: Shared, id: str, text: str) -> None:
    """Say that it is over."""
    _act(shared, id, "resolve", text, N_("{id} is resolved."))


@incident.command("close")
@click.argument("id")
@message
@common
@shared_of
def incident_close(shared: Shared, id: str, text: str) -> None:
    """Nothing more to say about it."""
    _act(shared, id, "close", text, N_("{id} is closed."))


@incident.command("comment")
@click.argument("id")
@click.argument("text")
@common
@shared_of
def incident_comment(shared: Shared, id: str, text: str) -> None:
    """Add TEXT to its timeline."""
    _act(shared, id, "comment", text, N_("Added to {id}."))
