"""How the status of the running agent reads on a terminal.

Not the asking (`status.py`). Invariant: what is said here is said in JSON too.
"""

import unicodedata
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

import click

from tocsin_agent.status import Status
from tocsin_proto.units import Duration

# What the uplink says of itself, where it is no sentence of the collector's.
UPLINK_STATES: Final = ("connected", "connecting", "not started", "waiting for welcome")
COLUMN: Final = 12  # of the names
CERTIFICATE_SOON_MS: Final = 7 * 86_400_000  # it is renewed ten days before


def show(now: Status, t: Callable[..., str]) -> None:
    """On the terminal; `t` translates."""
    lines = [
        (
            t("agent"),
            t(
                "{agent}, version {version}, pid {pid}",
                agent=now.agent or t("not named yet"),
                version=now.version,
                pid=now.pid,
            ),
        ),
        (t("collector"), f"{now.collector}: {t(now.uplink)}"),
        (
            t("last ack"),
            t("{time} ago", time=_span(now.now_ms - now.last_ack_ms))
            if now.last_ack_ms
            else t("never since the start"),
        ),
        (
            t("queue"),
            t(
                "{frames} frames, {bytes} bytes; {dropped} dropped",
                frames=now.backlog_frames,
                bytes=now.backlog_bytes,
                dropped=now.dropped_frames,
            ),
        ),
        (t("certificate"), _until(now.certificate_expires_ms, now.now_ms, t)),
        (
            t("watching"),
            t(
                "{targets} targets, {series} series; {overruns} overruns",
                targets=now.targets,
                series=now.series,
                overruns=now.overruns,
            ),
        ),
    ]
    if now.certificate_problem:
        lines.append((t("not renewed"), now.certificate_problem))
    if now.assignment_etag:
        lines.append((t("assignment"), now.assignment_etag))
    lines += [(t("refused"), reason) for reason in now.refused]
    lines += [(t("problem"), f"{key}: {problem}") for key, problem in sorted(now.problems.items())]
    for name, text in lines:
        click.echo(f"{name}:{' ' * max(1, COLUMN - _width(name))}{text}")
    if not now.connected:
        click.echo(t("the collector does not answer: what is measured waits in the queue"), err=True)


def _width(text: str) -> int:
    """Columns on a terminal: ideographs take two."""
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


def _span(ms: int) -> str:
    return str(Duration(max(0, ms) // 1000 * 1000))


def _until(expires_ms: int, now_ms: int, t: Callable[..., str]) -> str:
    if not expires_ms:
        return t("unknown")
    day = datetime.fromtimestamp(expires_ms / 1000, UTC).date().isoformat()
    if expires_ms <= now_ms:
        return t("expired on {day}: enrol again", day=day)
    if expires_ms - now_ms < CERTIFICATE_SOON_MS:
        return t("good until {day}, soon", day=day)
    return t("good until {day}", day=day)
