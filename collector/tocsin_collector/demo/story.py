"""`tocsin demo`: a story of four scenes, played on a real collector with a real agent, told as Tocsin sees it.

Not the processes (`stage.py`) and not the judgement (`figures.py`). Invariant: what is told comes from the API; the story
itself only gives orders to the devices, and waits.
"""

import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from typing import Any

import click
import msgspec

from tocsin_collector.cli import output, remote
from tocsin_collector.demo import figures, plant
from tocsin_collector.demo.figures import BEHIND_KEYS, DISK_KEY, PORT_KEY, SWITCH_KEY, Books, Found
from tocsin_collector.demo.stage import ADMIN, Stage, StageError
from tocsin_collector.i18n import LANGUAGES, N_, Language, language, negotiate
from tocsin_proto import exits

SECONDS = 90
SECONDS_MIN = 15
LOOK_EVERY_S = 0.25
WIND_UP_S = 5.0  # kept of --seconds for the figures and for ending everything
SCENE_S_MAX = 60.0  # without --headless
PAUSE_S = 6.0  # between scenes, for people who watch the page
AGAIN_S = 240.0
HOVER = (0.88, 0.93, 0.87, 0.94, 0.89, 0.92)  # around a limit of 0.90 that is clear below 0.85
HEALTHY_DISK, FULL_DISK = 0.72, 0.94
NEEDED = ("pysnmp", "psutil", "grpc", "cryptography")

STEPS = {
    "devices": N_("Starting three simulated devices that answer SNMP ..."),
    "collector": N_("Starting the collector ..."),
    "agent": N_("Enrolling this host with a one-time token, starting its agent ..."),
}


class Lost(Exception):
    """What should have been seen was not, in time."""


@click.command(add_help_option=False)
@click.option("--headless", is_flag=True, help="Play once, judge, end: for scripts.")
@click.option(
    "--seconds",
    type=click.IntRange(SECONDS_MIN, 3600),
    default=SECONDS,
    show_default=True,
    help="With --headless: it ends within so many.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object as the last line of stdout, talk on stderr.")
@click.option("--port", type=click.IntRange(0, 65_535), default=0, help="Of the pages; by default any that is free.")
@click.option("--lang", type=click.Choice(sorted(LANGUAGES)), default=None, help="Language.")
@click.help_option("-h", "--help")
def demo(headless: bool, seconds: int, as_json: bool, port: int, lang: str | None) -> int:
    """Play the main job on this machine: collector, agent, simulated devices, a story."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise remote.Failed(exits.USAGE, "extra", f"{missing[0]} is not installed", "pip install 'tocsin[all]'")
    environ = os.environ
    chosen = language(negotiate(lang, environ.get("LC_ALL"), environ.get("LC_MESSAGES"), environ.get("LANG")))
    talk = Talk(chosen, to_stderr=as_json)
    began_s = time.monotonic()
    with ends_by_signal():
        try:
            with Stage(port=port, lang=chosen.code, on_step=lambda step: talk(STEPS[step])) as stage:
                stage.start()
                return _play(stage, talk, began_s + seconds - WIND_UP_S if headless else 0.0, as_json)
        except StageError as error:
            raise remote.Failed(exits.PROBLEM, "demo", str(error)) from error
        except KeyboardInterrupt:
            talk(N_("Stopped; nothing is left running."))
            return exits.INTERRUPTED if headless else exits.OK


def main(arguments: list[str]) -> int:
    """The command; its exit code. click's own exceptions and remote.Failed are the caller's to show."""
    code = demo.main(arguments, prog_name="tocsin demo", standalone_mode=False)
    return code if isinstance(code, int) else exits.OK


def _play(stage: Stage, talk: "Talk", end_s: float, as_json: bool) -> int:
    """end_s 0: for people, until they stop it."""
    talk(N_("First sample in the collector after {n} s."), n=f"{stage.first_sample_s:.1f}")
    talk.block(*_welcome(stage, talk.language, is_headless=bool(end_s)))
    story = Story(stage, talk, end_s)
    lost = story.once()
    if not end_s:
        while True:
            talk(N_("Press Enter to play it again, Ctrl-C to stop. It plays again by itself now and then."))
            _wait_for_enter(stage, AGAIN_S)
            Story(stage, talk, end_s).once()
    return _judge(stage, talk, story, lost, as_json)


def _judge(stage: Stage, talk: "Talk", story: "Story", lost: str, as_json: bool) -> int:
    """The figures, what is wrong with them, and the exit code."""
    try:
        samples = int(stage.metric("tocsin_samples_total"))
        books = Books(stage.api, stage.started_ms, time.time_ns() // 1_000_000)
    except remote.Failed as error:
        raise StageError(f"collector: {error}") from error
    result = figures.result(books, stage.receiver.notices, samples, story.found)
    wrong = [*([lost] if lost else []), *figures.problems(books, result, stage.receiver.refused, talk.language.t)]
    for other in books.faults:
        if other.incident["device"] not in figures.STORY_DEVICES:
            talk(N_("Also seen on this host, no part of the story: {says}"), says=other.incident["says"])
    if wrong:
        for line in wrong:
            click.echo(output.safe(f"tocsin demo: {line}"), err=True)
    else:
        talk(
            N_(
                "The story came out right: {opened} incidents opened and resolved, {folded} repetitions folded, "
                "{suppressed} held back, {told} signed notices verified, not one millisecond of the record missing."
            ),
            opened=result.incidents_opened,
            folded=result.duplicates_folded,
            suppressed=result.suppressed,
            told=result.notices_opened + result.notices_resolved,
        )
    if as_json:
        click.echo(msgspec.json.encode(result).decode())
    return exits.PROBLEM if wrong else exits.OK


# -------------------------------------------------------------------------------------------------------------- story


class Story:
    """The four scenes. `found`: the faults as they were detected."""

    def __init__(self, stage: Stage, talk: "Talk", end_s: float) -> None:
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
                    raise StageError(f"collector: {error}") from error
            if time.monotonic() >= end_s:
                raise Lost(self._talk.language.t("not seen in time: {what}", what=self._talk.language.t(what)))
            time.sleep(LOOK_EVERY_S)

    def _pause(self) -> None:
        if not self._end_s:
            time.sleep(PAUSE_S)


# ------------------------------------------------------------------------------------------------------------- talking


class Talk:
    """Lines for people, in their language; on stderr where stdout belongs to a program."""

    def __init__(self, language: Language, *, to_stderr: bool) -> None:
        self.language = language
        self._to_stderr = to_stderr

    def __call__(self, text: str, /, **facts: object) -> None:
        click.echo(output.safe(self.language.t(text, **facts)), err=self._to_stderr)

    def detail(self, text: str, /, **facts: object) -> None:
        click.echo(f"   {output.safe(self.language.t(text, **facts))}", err=self._to_stderr)

    def scene(self, text: str, /, **facts: object) -> None:
        click.echo(err=self._to_stderr)
        self(text, **facts)

    def block(self, title: str, pairs: list[tuple[str, str]]) -> None:
        wide = max(output.width(name) for name, _ in pairs)
        lines = [title, *(f"  {name}{' ' * (wide - output.width(name))}  {text}" for name, text in pairs)]
        rule = "-" * max(map(output.width, lines))
        for line in ("", rule, *lines, rule):
            click.echo(output.safe(line), err=self._to_stderr)


def _welcome(stage: Stage, language: Language, *, is_headless: bool) -> tuple[str, list[tuple[str, str]]]:
    t = language.t
    who = {"name": ADMIN, "password": stage.secrets.password}
    return t("Tocsin runs on this machine, on loopback only."), [
        (t("Page"), stage.url),
        (t("Log in"), t("{name}, password {password} (of this run only)", **who)),
        (t("To come"), t("a port goes down, a disk hovers around its limit, a switch is lost, all recovers")),
        (t("To stop"), t("it ends by itself") if is_headless else t("Ctrl-C; nothing is left behind")),
    ]


def _wait_for_enter(stage: Stage, timeout_s: float) -> None:
    """Until Enter, or until it is time. A stdin that is no terminal says nothing."""
    end_s = time.monotonic() + timeout_s
    while (left_s := end_s - time.monotonic()) > 0:
        stage.check()
        if not sys.stdin or not sys.stdin.isatty():
            time.sleep(min(1.0, left_s))
        elif select.select([sys.stdin], [], [], min(1.0, left_s))[0]:
            sys.stdin.readline()
            return


@contextmanager
def ends_by_signal() -> Iterator[None]:
    """SIGTERM and SIGHUP end the demo as Ctrl-C does; while it ends, a further one changes nothing."""

    def interrupt(number: int, frame: object) -> None:
        for one in ends:
            signal.signal(one, signal.SIG_IGN)
        raise KeyboardInterrupt

    ends = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, interrupt) for number in ends}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
