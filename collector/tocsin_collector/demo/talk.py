"""How the demo talks: lines and one block for people, in their language.

Not what is said (`scenes.py`, `story.py`). Invariant: where stdout belongs to a program, every line goes to stderr.
"""

import click

from tocsin_collector.cli import output
from tocsin_collector.i18n import Language


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
