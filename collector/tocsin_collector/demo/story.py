"""`tocsin demo`: the command. Sets the stage, has the scenes played, says how it came out, and takes everything away again.

Not the processes (`stage.py`), the scenes (`scenes.py`) or the judgement (`figures.py`). Invariant: exit 0 of a headless run
means that the story came out right, and nothing that was started is left.
"""

import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import click
import msgspec

from tocsin_collector.cli import output, remote
from tocsin_collector.demo import figures
from tocsin_collector.demo.figures import Books
from tocsin_collector.demo.scenes import Story
from tocsin_collector.demo.stage import ADMIN, Stage, StageError
from tocsin_collector.demo.talk import Talk
from tocsin_collector.i18n import LANGUAGES, N_, Language, language, negotiate
from tocsin_proto import exits

SECONDS = 90
SECONDS_MIN = 15
WIND_UP_S = 5.0  # kept of --seconds for the figures and for ending everything
AGAIN_S = 240.0
NEEDED = ("pysnmp", "psutil", "grpc", "cryptography")

STEPS = {
    "devices": N_("Starting three simulated devices that answer SNMP ..."),
    "collector": N_("Starting the collector ..."),
    "agent": N_("Enrolling this host with a one-time token, starting its agent ..."),
}


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
            for line in error.said:
                click.echo(output.safe(f"  {line}"), err=True)
            raise remote.Failed(exits.PROBLEM, "demo", chosen.t(error.text, **error.facts)) from error
        except KeyboardInterrupt:
            talk(N_("Stopped; nothing is left running."))
            return exits.INTERRUPTED if headless else exits.OK


def main(arguments: list[str]) -> int:
    """The command; its exit code. click's own exceptions and remote.Failed are the caller's to show."""
    code = demo.main(arguments, prog_name="tocsin demo", standalone_mode=False)
    return code if isinstance(code, int) else exits.OK


def _play(stage: Stage, talk: Talk, end_s: float, as_json: bool) -> int:
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


def _judge(stage: Stage, talk: Talk, story: Story, lost: str, as_json: bool) -> int:
    """The figures, what is wrong with them, and the exit code."""
    try:
        samples = int(stage.metric("tocsin_samples_total"))
        books = Books(stage.api, stage.started_ms, time.time_ns() // 1_000_000)
    except remote.Failed as error:
        raise StageError(N_("{part}: {problem}"), part="collector", problem=error) from error
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


# ------------------------------------------------------------------------------------------------------------- leaves


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
