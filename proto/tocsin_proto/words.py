"""The texts of a command in the language of the terminal: gettext, from a catalogue beside the package that says them.

Not the log, which stays English, and not the pages, whose readers choose for themselves. Invariant: making a `Words` reads
nothing; a text that nobody translated comes out in English, never as an error.

The language is that of LANGUAGE, LC_ALL, LC_MESSAGES or LANG, as everywhere on the machine. click asks the same gettext, so
its own "Usage:" and "Error:" stand in the same catalogue (`CLICK`).
"""

import gettext
from collections.abc import Iterable
from inspect import cleandoc
from pathlib import Path
from typing import Any, Final, Protocol

# What click says in our commands; its words are msgids, so they are not ours to choose.
CLICK: Final = (
    "Usage:",
    "Options",
    "Commands",
    "Positional arguments",
    "Show this message and exit.",
    "Show the version and exit.",
    "default: {default}",
    "Aborted!",
    "Error: {message}",
    "Try '{command} {option}' for help.",
    "Missing command.",
    "Missing argument",
    "Missing option",
    "Missing parameter",
    "No such command {name!r}.",
    "No such option {name!r}.",
    "Option {name!r} does not take a value.",
    "Invalid value: {message}",
    "Invalid value for {param_hint}: {message}",
    "Could not open file {filename!r}: {message}",
)


class Told(Exception):
    """An exception for people: `str` of it is English, for the log; `Words.of` says it in their language."""

    def __init__(self, text: str, /, **facts: object) -> None:
        super().__init__(_filled(text, facts))
        self.text = text
        self.facts = facts


class Words:
    def __init__(self, domain: str, locale: Path) -> None:
        self.domain = domain
        self.locale = locale

    def use(self) -> None:
        """Once, at the start of the command: click's own texts come from this catalogue too."""
        gettext.bindtextdomain(self.domain, self.locale)
        gettext.textdomain(self.domain)

    def t(self, text: str, /, **facts: object) -> str:
        """`{name}` is filled with the fact of that name, after translation."""
        return _filled(self._translated(text), facts)

    def of(self, problem: BaseException) -> str:
        return self.t(problem.text, **problem.facts) if isinstance(problem, Told) else str(problem)

    def _translated(self, text: str) -> str:
        # The empty msgid is the catalogue's header, not a text.
        return gettext.dgettext(self.domain, text) if text else ""


class _Parameter(Protocol):
    help: str | None


def localize(command: Any, words: Words) -> None:
    """The help of a click command and of all below it, in the language of the terminal."""
    for holder in helps(command):
        holder.help = words.t(cleandoc(holder.help or ""))


def helps(command: Any) -> Iterable[_Parameter]:
    """Everything below a click command that has a help text, itself included."""
    for one in (command, *command.params, *getattr(command, "commands", {}).values()):
        if getattr(one, "params", None) is not None and one is not command:
            yield from helps(one)
        elif getattr(one, "help", None):
            yield one


def _filled(text: str, facts: dict[str, object]) -> str:
    return text.format(**facts) if facts else text
