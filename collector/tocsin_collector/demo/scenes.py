"""The four scenes of the demo, told as Tocsin sees them.

Not the processes (`stage.py`) and not the judgement (`figures.py`). Invariant: what is told comes from the API and the
receiver; a scene itself only gives orders to the devices, and waits.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from tocsin_collector.cli import remote
from tocsin_collector.demo import figures, plant
from tocsin_collector.demo.figures import BEHIND_KEYS, DISK_KEY, PORT_KEY, SWITCH_KEY, Found
from tocsin_collector.demo.stage import Stage, StageError
from tocsin_collector.demo.talk import Talk
from tocsin_collector.i18n import N_
from tocsin_proto import exits

LOOK_EVERY_S = 0.25
SCENE_S_MAX = 60.0  # without --headless
PAUSE_S = 6.0  # between scenes, for people who watch the page
HOVER = (0.88, 0.93, 0.87, 0.94, 0.89, 0.92)  # around a limit of 0.90 that is clear below 0.85
HEALTHY_DISK, FULL_DISK = 0.72, 0.94


class Lost(Exception):
    """What should have been seen was not, in time."""


class Story:
    """The four scenes. `found`: the faults as they were detected."""

    def __init__(self, stage: Stage, talk: Talk, end_s: float) -> None:
        self.found: list[Found] = []
        self._stage = stage
        self._talk = talk
        self._end_s = end_s

    def once(self) -> str:
        """Plays it; what was not seen in time, "" when all was."""
        try:
            for scene in (self._devices_up, self._port, self._disk, self._switch, self._recovery):
                scene()
                self._pause()
        except Lost as error:
            self._heal()
            return str(error)
        return ""

    def _devices_up(self) -> None:
        ids = (plant.SWITCH, plant.SERVER, plant.CONTROLLER)
        up = self._until(lambda: self._are_up(ids), N_("all devices up"))
        self._talk(N_("Tocsin watches {n} devices and finds them all up."), n=up)

    def _port(self) -> None:
        self._talk.scene(
            N_("1. Port {port} of the switch {device} loses its cable."), port=plant.PORT, device=plant.SWITCH
        )
        incident = self._fault("port down", PORT_KEY, device=plant.SWITCH, port=plant.PORT_NUMBER, up=False)
        self._seen(incident)

    def _disk(self) -> None:
        self._talk.scene(
            N_("2. The disk {mount} of {device} fills beyond its limit of 90%, and then hovers around it."),
            mount=plant.MOUNT,
            device=plant.SERVER,
        )
        incident = self._fault("disk full", DISK_KEY, device=plant.SERVER, disk=plant.MOUNT, ratio=FULL_DISK)
        self._seen(incident)
        before = incident["occurrences"]
        for ratio in HOVER:
            self._stage.order(device=plant.SERVER, disk=plant.MOUNT, ratio=ratio)
            self._until(partial(self._disk_is, ratio), N_("the disk's new value"))
            self._talk.detail(N_("the disk is {percent}% full"), percent=round(ratio * 100))
        crossings = sum(ratio > 0.90 for ratio in HOVER)

        def folded() -> dict[str, Any] | None:
            (one, *more) = self._live(DISK_KEY) or [{"occurrences": 0}]
            return one if not more and one["occurrences"] >= before + crossings else None

        incident = self._until(folded, N_("the repetitions of the disk's incident"))
        self._talk.detail(
            N_("{n} times above its limit: still the one incident {id}, seen {times} times"),
            n=crossings + 1,
            id=incident["id"],
            times=incident["occurrences"],
        )

    def _switch(self) -> None:
        self._talk.scene(
            N_("3. The switch {device} stops answering, and with it what stands behind it: {behind}."),
            device=plant.SWITCH,
            behind=f"{plant.SERVER}, {plant.CONTROLLER}",
        )
        # The switch first: what stands behind it can never be seen to fail before it.
        incident = self._fault("switch unreachable", SWITCH_KEY, device=plant.SWITCH, answering=False)
        for device in (plant.SERVER, plant.CONTROLLER):
            self._stage.order(device=device, answering=False)
        self._seen(incident)
        for key in BEHIND_KEYS:
            held = self._until(partial(self._suppressed, key), N_("what stands behind the switch held back"))
            why = self._get(f"/incidents/{held['id']}/why")
            reason = next(step["text"] for step in why["decision"] if step["kind"] == "explained_by_parent")
            self._talk.detail(N_("{says} ({id}). {reason}"), says=held["says"], id=held["id"], reason=reason)

    def _recovery(self) -> None:
        self._talk.scene(N_("4. Everything recovers."))
        self._heal()
        self._until(self._all_over, N_("the end of every incident"))
        told = self._until(self._all_told, N_("a notice of every end"))
        ids = (plant.SWITCH, plant.SERVER, plant.CONTROLLER)
        up = self._until(lambda: self._are_up(ids), N_("all devices up"))
        self._talk.detail(
            N_("{n} devices are up, no incident is open, the desk was told {told} times."), n=up, told=told
        )

    def _heal(self) -> None:
        for device in (plant.SWITCH, plant.SERVER, plant.CONTROLLER):
            self._stage.order(device=device, answering=True)
        self._stage.order(device=plant.SWITCH, port=plant.PORT_NUMBER, up=True)
        self._stage.order(device=plant.SERVER, disk=plant.MOUNT, ratio=HEALTHY_DISK)

    # ------------------------------------------------------------------------------------------------------- looking

    def _fault(self, name: str, key: str, **order: Any) -> dict[str, Any]:
        """Gives the order and waits for its incident."""
        ordered_ms = time.time_ns() // 1_000_000
        self._stage.order(**order)
        incident: dict[str, Any] = self._until(lambda: next(iter(self._live(key)), None), key)
        seen_ms = incident["detected_ms"] if incident["detected_ms"] >= ordered_ms else time.time_ns() // 1_000_000
        self.found.append(Found(name, round((seen_ms - ordered_ms) / 1000, 1)))
        return incident

    def _seen(self, incident: dict[str, Any]) -> None:
        self._talk.detail(
            N_("after {n} s Tocsin says: {says} (incident {id})"),
            n=self.found[-1].detected_after_s,
            says=incident["says"],
            id=incident["id"],
        )

    def _live(self, key: str) -> list[dict[str, Any]]:
        return [one for one in self._items("/incidents", state="told") if one["key"] == key]

    def _suppressed(self, key: str) -> dict[str, Any] | None:
        return next((one for one in self._items("/incidents", state="suppressed") if one["key"] == key), None)

    def _all_over(self) -> bool:
        live = self._items("/incidents", state="live")
        return not any(one["device"] in figures.STORY_DEVICES for one in live)

    def _all_told(self) -> int:
        kinds = [one.kind for one in self._stage.receiver.notices if one.device in figures.STORY_DEVICES]
        return len(kinds) if kinds.count("opened") == kinds.count("resolved") else 0

    def _are_up(self, ids: tuple[str, ...]) -> int:
        """How many devices are up, 0 unless all of `ids` are."""
        up = [host["id"] for host in self._items("/hosts") if host["state"] == "up"]
        return len(up) if set(ids) <= set(up) else 0

    def _disk_is(self, ratio: float) -> bool:
        values = self._items(f"/hosts/{plant.SERVER}/values", metric="disk.used_ratio")
        now = [one["value"] for one in values if one["labels"]["mount"] == plant.MOUNT]
        return any(value is not None and abs(value - ratio) < 0.001 for value in now)

    def _items(self, path: str, **query: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._get(path, **query)["items"]
        return found

    def _get(self, path: str, **query: Any) -> Any:
        return self._stage.api.get(path, **query)

    def _until(self, look: Callable[[], Any], what: str) -> Any:
        """What `look` finds, as soon as it finds something. Raises Lost at the end of the time, StageError before."""
        end_s = self._end_s or time.monotonic() + SCENE_S_MAX
        while True:
            self._stage.check()
            try:
                if found := look():
                    return found
            except remote.Failed as error:
                if error.exit_code != exits.UNREACHABLE:  # busy for a moment: asked again until the time is over
                    raise StageError(N_("{part}: {problem}"), part="collector", problem=error) from error
            if time.monotonic() >= end_s:
                raise Lost(self._talk.language.t("not seen in time: {what}", what=self._talk.language.t(what)))
            time.sleep(LOOK_EVERY_S)

    def _pause(self) -> None:
        if not self._end_s:
            time.sleep(PAUSE_S)
