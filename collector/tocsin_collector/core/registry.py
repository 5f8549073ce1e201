"""Questions that the registry answers: is it sound, who watches what, which devices stand behind which.

The records themselves are in `model`; reading files is a shell's work. Nothing here changes a registry.
"""

from collections.abc import Iterable
from difflib import get_close_matches
from graphlib import CycleError, TopologicalSorter
from typing import NamedTuple

from tocsin_collector.core.model import Device, Registry

DEVICES_MAX = 100_000
PARENTS_MAX = 16


class Problem(NamedTuple):
    """Something wrong at `path` ("device.sw-1.parents"), and what would be right."""

    path: str
    problem: str


def check(registry: Registry) -> list[Problem]:
    """Everything that is wrong with it; an empty list means it may be put in force."""
    problems = [
        *_doubles("site", (s.id for s in registry.sites)),
        *_doubles("device", (d.id for d in registry.devices)),
    ]
    sites = {site.id: site for site in registry.sites}
    devices = {device.id: device for device in registry.devices}
    if len(devices) > DEVICES_MAX:
        problems.append(Problem("device", f"{len(devices)} devices, at most {DEVICES_MAX} are allowed"))
    for device in registry.devices:
        at = f"device.{device.id}"
        if device.site not in sites:
            problems.append(Problem(f"{at}.site", _unknown("site", device.site, sites)))
        elif device.line and device.line not in sites[device.site].lines:
            problems.append(
                Problem(f"{at}.line", _unknown(f"line of {device.site}", device.line, sites[device.site].lines))
            )
        if len(device.parents) > PARENTS_MAX:
            problems.append(
                Problem(f"{at}.parents", f"{len(device.parents)} parents, at most {PARENTS_MAX} are allowed")
            )
        for parent in device.parents:
            if parent not in devices:
                problems.append(Problem(f"{at}.parents", _unknown("device", parent, devices)))
        if device.snmp and not device.watched_by:
            problems.append(Problem(f"{at}.watched_by", "missing: name the agent that asks this device by SNMP"))
        if device.snmp and not device.address:
            problems.append(Problem(f"{at}.address", "missing: SNMP needs an address"))
    return problems + _cycles(devices)


def may_speak_for(registry: Registry) -> dict[str, frozenset[str]]:
    """agent -> the device ids it may report on: itself and what it watches (law 9)."""
    allowed: dict[str, set[str]] = {}
    for device in registry.devices:
        if device.is_agent:
            allowed.setdefault(device.id, set()).add(device.id)
        if device.watched_by:
            allowed.setdefault(device.watched_by, {device.watched_by}).add(device.id)
    return {agent: frozenset(ids) for agent, ids in allowed.items()}


def children(registry: Registry) -> dict[str, tuple[str, ...]]:
    """parent id -> ids of the devices directly behind it."""
    behind: dict[str, list[str]] = {}
    for device in registry.devices:
        for parent in device.parents:
            behind.setdefault(parent, []).append(device.id)
    return {parent: tuple(ids) for parent, ids in behind.items()}


def _doubles(what: str, ids: Iterable[str]) -> list[Problem]:
    seen: set[str] = set()
    problems = []
    for name in ids:
        if name in seen:
            problems.append(Problem(f"{what}.{name}", "stands twice; every id may stand once"))
        seen.add(name)
    return problems


def _unknown(what: str, name: str, known: Iterable[str]) -> str:
    close = get_close_matches(name, list(known), 1)
    return f'unknown {what} "{name}"' + (f', did you mean "{close[0]}"?' if close else "")


def _cycles(devices: dict[str, Device]) -> list[Problem]:
    try:
        TopologicalSorter({d.id: [p for p in d.parents if p in devices] for d in devices.values()}).prepare()
    except CycleError as error:
        names = error.args[1]
        return [
            Problem(
                f"device.{names[0]}.parents", f"a circle: {' -> '.join(names)}; a device cannot stand behind itself"
            )
        ]
    return []
