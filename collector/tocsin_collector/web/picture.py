"""What is watched and how it is doing, put together from registry, ledger and incidents. Pure.

Not queries (`store/read.py`) and not markup. Invariant: every device of the registry is in the picture
exactly once; a device without a ledger is unknown, never up.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from tocsin_collector.core.model import (
    LIVE_STATES,
    TOLD_STATES,
    Config,
    Device,
    Incident,
    IncidentState,
    Severity,
    Site,
)
from tocsin_collector.store.rows import Component
from tocsin_collector.wording import WORST_FIRST


def unseen(device: str) -> Component:
    """The state of what has no ledger yet."""
    return Component(device, "unknown", 0, "")


class Host(NamedTuple):
    """A device as people see it."""

    device: Device
    now: Component
    incidents: int  # open ones
    cause: Incident | None  # the live incident that put it into this state
    worst: Severity | None

    @property
    def id(self) -> str:
        return self.device.id

    @property
    def is_behind(self) -> bool:
        """Down, and explained by another device that is."""
        return self.now.state == "down" and self.cause is not None and bool(self.cause.suppressed_by)


class SiteGroup(NamedTuple):
    site: Site
    hosts: tuple[Host, ...]  # worst first, then by id
    counts: dict[str, int]  # state word -> devices


class Picture(NamedTuple):
    groups: tuple[SiteGroup, ...]
    told: tuple[Incident, ...]  # worst first, then oldest
    quiet: tuple[Incident, ...]  # held and suppressed
    counts: dict[str, int]

    @property
    def hosts(self) -> list[Host]:
        return [host for group in self.groups for host in group.hosts]

    def named_by_state(self) -> dict[str, list[str]]:
        """state word -> ids of its devices, those first in line whose incident is worst. "behind": explained by another."""
        named: dict[str, list[str]] = {}
        for host in sorted(self.hosts, key=lambda host: (-(host.worst.rank if host.worst else 0), host.now.since_ms)):
            named.setdefault("behind" if host.is_behind else host.now.state, []).append(host.id)
        return named


def picture(config: Config | None, now: Mapping[str, Component], incidents: Iterable[Incident]) -> Picture:
    """`now` by component; `incidents` may hold any, only live ones are shown."""
    live = [incident for incident in incidents if incident.state in LIVE_STATES]
    told = sorted((i for i in live if i.state in TOLD_STATES), key=lambda i: (-i.severity.rank, i.opened_ms, i.id))
    quiet = sorted((i for i in live if i.state not in TOLD_STATES), key=lambda i: (i.opened_ms, i.id))
    by_key = {incident.key: incident for incident in live}
    by_device: dict[str, list[Incident]] = {}
    for incident in told:
        by_device.setdefault(incident.device, []).append(incident)
    registry = config.registry if config else None
    groups: dict[str, list[Host]] = {site.id: [] for site in (registry.sites if registry else ())}
    for device in registry.devices if registry else ():
        own = by_device.get(device.id, [])
        state = now.get(device.id) or unseen(device.id)
        cause = by_key.get(state.cause)
        groups.setdefault(device.site, []).append(
            Host(device, state, len(own), cause, own[0].severity if own else None)
        )
    sites = {site.id: site for site in (registry.sites if registry else ())}
    shown = tuple(_group(sites.get(id) or Site(id), hosts) for id, hosts in groups.items() if hosts)
    return Picture(shown, tuple(told), tuple(quiet), _counts(host for group in shown for host in group.hosts))


def lead(told: Sequence[Incident]) -> Incident | None:
    """The incident to speak of first: worst, not taken before taken, oldest."""
    return min(
        told,
        key=lambda i: (-i.severity.rank, i.state is IncidentState.ACKNOWLEDGED, i.opened_ms),
        default=None,
    )


def _group(site: Site, hosts: list[Host]) -> SiteGroup:
    hosts.sort(key=lambda host: (_rank(host.now.state), host.is_behind, host.id))
    return SiteGroup(site, tuple(hosts), _counts(hosts))


def _counts(hosts: Iterable[Host]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for host in hosts:
        counts[host.now.state] = counts.get(host.now.state, 0) + 1
    return {state: counts[state] for state in WORST_FIRST if state in counts}


def _rank(state: str) -> int:
    return WORST_FIRST.index(state) if state in WORST_FIRST else len(WORST_FIRST)
