"""What the operator's commands share: their common options, the language, durations and moments as people write them.

Not a command and not the connection (`remote.py`). Importing it does nothing.
"""

import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, tzinfo
from typing import Any, TypeVar

import click

from tocsin_collector import wording
from tocsin_collector.cli import output, remote
from tocsin_collector.i18n import LANGUAGES, Language, language, negotiate

LIST_MAX = 10_000
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(slots=True)
class Shared:
    """What all commands of one run share."""

    as_json: bool = False
    lang: str = ""

    @property
    def language(self) -> Language:
        environ = os.environ
        return language(negotiate(self.lang, environ.get("LC_ALL"), environ.get("LC_MESSAGES"), environ.get("LANG")))

    @property
    def zone(self) -> tzinfo | None:
        return datetime.now().astimezone().tzinfo

    def at(self, ms: int) -> str:
        zone = self.zone
        assert zone is not None
        return wording.moment(ms, zone, now_ms())

    def age(self, ms: int) -> str:
        return wording.duration(self.language, max(0, now_ms() - ms)) if ms > 0 else ""

    def word(self, table: dict[str, str], word: str) -> str:
        return self.language.t(table.get(word, word))

    def collector(self) -> remote.Collector:
        return remote.Collector(remote.saved(remote.login_file(os.environ), os.environ), self.language.tag)


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def common(function: F) -> F:
    """--json and --lang, which every command takes."""

    def remember(name: str) -> Callable[[click.Context, click.Parameter, Any], Any]:
        def callback(ctx: click.Context, _: click.Parameter, value: Any) -> Any:
            shared = ctx.find_root().ensure_object(Shared)
            if value:
                setattr(shared, name, value)
            return value

        return callback

    lang = click.option(
        "--lang", type=click.Choice(sorted(LANGUAGES)), expose_value=False, callback=remember("lang"), help="language"
    )
    as_json = click.option(
        "--json", is_flag=True, expose_value=False, callback=remember("as_json"), help="one JSON object on stdout"
    )
    return as_json(lang(function))


shared_of = click.make_pass_decorator(Shared, ensure=True)


_DURATION = re.compile(r"(\d{1,9})(s|m|h|d)")
_UNIT_MS = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


def duration_ms(text: str) -> int:
    match = _DURATION.fullmatch(text)
    if not match:
        raise click.UsageError(f'"{text}" is no duration, write 30m, 24h or 7d')
    return int(match[1]) * _UNIT_MS[match[2]]


def moment_ms(text: str, now: int, zone: tzinfo | None) -> int:
    """A date, a date with time (in `zone` unless it names its own), or how long ago."""
    if _DURATION.fullmatch(text):
        return max(0, now - duration_ms(text))
    try:
        then = datetime.fromisoformat(text)
    except ValueError as error:
        raise click.UsageError(f'"{text}" is no moment, write 2026-11-01, 2026-11-01T06:00 or 7d') from error
    return int((then if then.tzinfo else then.replace(tzinfo=zone)).timestamp() * 1000)


def done(shared: Shared, data: Any, said: str) -> None:
    if shared.as_json:
        output.envelope(data)
    else:
        output.say(said)
