"""What the demo found out, and whether it is what should have come out: read from the API and from the receiver only.

Not the story. Invariant: a figure is what somebody outside would count; nothing is taken from what the story expects.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import msgspec

from tocsin_collector.cli import remote
from tocsin_collector.demo import plant
from tocsin_collector.demo.receiver import Notice

INCIDENTS_MAX = 10_000
STATES = ("up", "degraded", "down", "unknown", "maintenance", "outside")
STORY_DEVICES = (plant.SWITCH, plant.SERVER, plant.CONTROLLER)
PORT_KEY = f"interface-down/{plant.SWITCH}/interface={plant.PORT}"
DISK_KEY = f"filesystem-full/{plant.SERVER}/mount={plant.MOUNT}"
SWITCH_KEY = f"device-unreachable/{plant.SWITCH}"
BEHIND_KEYS = (f"device-unreachable/{plant.SERVER}", f"device-unreachable/{plant.CONTROLLER}")


class Found(msgspec.Struct, frozen=True):
    """One fault of the story. detected_after_s: from the order to the device until the incident, by its own record."""

    fault: str
    detected_after_s: float


class Result(msgspec.Struct, frozen=True):
    """The demo in figures: the JSON line. Incidents and notices are those of the story's devices; times are ms."""

    hosts: int
    series: int
    samples_stored: int
    incidents_opened: int
    incidents_resolved: int
    duplicates_folded: int
    suppressed: int
    notices_opened: int
    notices_resolved: int
    ledger_gap_ms: int
    availability: dict[str, dict[str, int]]
    story: tuple[Found, ...]


class Fault(NamedTuple):
    """An incident with the kinds of its decision steps."""

    incident: dict[str, Any]
    kinds: tuple[str, ...]

    @property
    def is_opened(self) -> bool:
        return "opened" in self.kinds

    @property
    def is_over(self) -> bool:
        return self.incident["state"] in ("resolved", "closed")


class Books:
    """Everything that the API says at the end."""

    def __init__(self, api: remote.Collector, started_ms: int, now_ms: int) -> None:
        self.period = (started_ms, now_ms)
        self.hosts: list[dict[str, Any]] = api.all("/hosts", INCIDENTS_MAX)
        self.series = sum(len(api.get(f"/hosts/{host['id']}/values")["items"]) for host in self.hosts)
        self.faults = [_fault(api, one) for one in incidents(api)]
        self.sums = {
            host["id"]: api.get(f"/availability/{host['id']}", from_=started_ms, to=now_ms) for host in self.hosts
        }


def incidents(api: remote.Collector) -> list[dict[str, Any]]:
    """All of them, newest first."""
    return api.all("/incidents", INCIDENTS_MAX, state="all")


def result(books: Books, notices: Iterable[Notice], samples: int, story: Iterable[Found]) -> Result:
    ours = [one for one in books.faults if one.incident["device"] in STORY_DEVICES]
    told = [one.kind for one in notices if one.device in STORY_DEVICES]
    sums = {name: {state: found[f"{state}_ms"] for state in STATES} for name, found in books.sums.items()}
    period_ms = books.period[1] - books.period[0]
    return Result(
        hosts=len(books.hosts),
        series=books.series,
        samples_stored=samples,
        incidents_opened=sum(one.is_opened for one in ours),
        incidents_resolved=sum(one.is_opened and one.is_over for one in ours),
        duplicates_folded=sum(one.incident["occurrences"] - 1 for one in ours),
        suppressed=sum("explained_by_parent" in one.kinds for one in ours),
        notices_opened=told.count("opened"),
        notices_resolved=told.count("resolved"),
        ledger_gap_ms=sum(abs(sum(six.values()) - period_ms) for six in sums.values()),
        availability=sums,
        story=tuple(story),
    )


def problems(books: Books, result: Result, refused: int, t: Callable[..., str]) -> list[str]:
    """What did not come out as the story wants it; empty when it is right. t: the language's."""
    found = []
    by_key: dict[str, list[Fault]] = {}
    for fault in books.faults:
        if fault.incident["device"] in STORY_DEVICES:
            by_key.setdefault(fault.incident["key"], []).append(fault)
    for key in (PORT_KEY, DISK_KEY, SWITCH_KEY):
        ours = by_key.get(key, [])
        if len(ours) != 1 or not ours[0].is_opened:
            found.append(t("{key}: {n} incidents, there should be exactly one that was opened", key=key, n=len(ours)))
        elif not ours[0].is_over:
            found.append(t("{key}: not resolved", key=key))
    for key in BEHIND_KEYS:
        ours = by_key.get(key, [])
        if len(ours) != 1 or "explained_by_parent" not in ours[0].kinds or ours[0].is_opened:
            found.append(
                t("{key}: should be there once, and held back because of {parent}", key=key, parent=plant.SWITCH)
            )
        elif not ours[0].is_over:
            found.append(t("{key}: not ended", key=key))
    for key in by_key.keys() - {PORT_KEY, DISK_KEY, SWITCH_KEY, *BEHIND_KEYS}:
        found.append(t("{key}: an incident that nobody caused", key=key))
    if not result.duplicates_folded:
        found.append(t("no repetition was folded into an incident"))
    if not (result.notices_opened == result.notices_resolved == result.incidents_opened):
        counts = {"opened": result.notices_opened, "resolved": result.notices_resolved}
        found.append(
            t("notices: {opened} opened and {resolved} resolved, they should be as many as incidents", **counts)
        )
    if refused:
        found.append(t("notices: {n} had a signature that is not right", n=refused))
    if result.ledger_gap_ms:
        found.append(t("availability: {n} ms are missing or counted twice", n=result.ledger_gap_ms))
    if not result.availability.get(plant.SWITCH, {}).get("down"):
        found.append(t("availability: {device} was never down", device=plant.SWITCH))
    return found


def _fault(api: remote.Collector, incident: dict[str, Any]) -> Fault:
    why = api.get(f"/incidents/{incident['id']}/why")
    return Fault(why["incident"], tuple(step["kind"] for step in why["decision"]))
