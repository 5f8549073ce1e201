"""How the operator's command talks: aligned text for people, one JSON envelope for programs.

Data goes to stdout, talk and errors to stderr. Invariant: control characters in names,
whoever chose them, never reach a terminal.
"""

import json
import os
import unicodedata
from collections.abc import Sequence
from typing import Any

import click

COLOURS = {
    "down": "red",
    "critical": "red",
    "degraded": "yellow",
    "major": "yellow",
    "up": "green",
    "unknown": "bright_black",
    "suppressed": "bright_black",
    "held": "bright_black",
}


def safe(text: object) -> str:
    """One line without control characters or direction overrides, so that a host name cannot play with the terminal."""
    return "".join(c if unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp") else "�" for c in str(text))


def width(text: str) -> int:
    """Columns on a terminal: Chinese characters take two."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 0 if unicodedata.combining(c) else 1 for c in text)


def say(text: str) -> None:
    click.echo(safe(text))


def coloured(text: str, word: str) -> str:
    """`text` in the colour of a state word; click drops the codes where stdout is no terminal."""
    colour = COLOURS.get(word)
    return click.style(text, fg=colour) if colour and not os.environ.get("NO_COLOR") else text


def table(head: Sequence[str], rows: Sequence[Sequence[object]], words: Sequence[str] = ()) -> None:
    """Columns aligned by what they hold. words: a state word per row, colours its first column."""
    cells = [[safe(cell) for cell in row] for row in rows]
    widths = [max(width(row[i]) for row in [list(head), *cells]) for i in range(len(head))]
    click.echo(_line(head, widths).rstrip())
    for index, row in enumerate(cells):
        line = _line(row, widths).rstrip()
        if words:
            line = coloured(row[0], words[index]) + line[len(row[0]) :]
        click.echo(line)


def facts(pairs: Sequence[tuple[str, object]]) -> None:
    """Names and values, one a line, aligned; empty values are left out."""
    shown = [(name, safe(value)) for name, value in pairs if value not in ("", None)]
    wide = max((width(name) for name, _ in shown), default=0)
    for name, value in shown:
        click.echo(f"{name}{' ' * (wide - width(name))}  {value}")


def envelope(data: Any) -> None:
    click.echo(json.dumps({"ok": True, "code": 0, "data": data}, ensure_ascii=False))


def envelope_error(exit_code: int, code: str, message: str, hint: str) -> None:
    error = {"code": code, "message": message, "hint": hint}
    click.echo(json.dumps({"ok": False, "code": exit_code, "data": None, "error": error}, ensure_ascii=False))


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell + " " * (columns - width(cell)) for cell, columns in zip(cells, widths, strict=True))
