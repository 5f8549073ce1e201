#!/usr/bin/env python3
"""Keeps the translations in step with the texts: `scripts/messages.py [--check]`.

Collects every text for people (Python, templates, help of the commands, sentences of the built-in rules), merges them into
<package>/locale/<language>/LC_MESSAGES/<domain>.po of the collector and of the agent, and compiles the .mo beside it.
Needs Babel.
--check changes nothing and fails when a text is missing, not translated, has other placeholders, or the .mo is older.
"""

import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from inspect import cleandoc
from io import BytesIO
from pathlib import Path

from babel.messages.catalog import Catalog
from babel.messages.extract import extract_from_dir
from babel.messages.mofile import read_mo, write_mo
from babel.messages.pofile import read_po, write_po

from tocsin_collector.i18n import DOMAIN, LANGUAGES, LOCALE, fields
from tocsin_proto.words import CLICK, helps

PACKAGE = LOCALE.parent
KEYWORDS = {
    **{"t": None, "tn": (1, 2), "N_": None},
    **{"CommandError": (2,), "EnrolError": None, "CertificateError": None},  # said where they are caught
}
METHODS = [("**.py", "python"), ("**/templates/**.html", "jinja2.ext:babel_extract")]
OPTIONS = {"**/templates/**.html": {"extensions": "jinja2.ext.i18n", "trim_blocks": "true", "lstrip_blocks": "true"}}
SINCE = datetime(2026, 11, 1, tzinfo=UTC)
HEADER = "# Tocsin, texts for people. Apache-2.0.\n"


@dataclass(frozen=True)
class Source:
    """One catalogue: the texts of one package. `more`: (file, text) of those where gettext does not look."""

    domain: str
    locale: Path
    more: Callable[[], Iterator[tuple[str, str]]]


def collector_texts() -> Iterator[tuple[str, str]]:
    from tocsin_collector.cli.server import cli

    yield from rule_texts()
    yield from command_texts("cli/server.py", cli)


def agent_texts() -> Iterator[tuple[str, str]]:
    from tocsin_agent.cli import cli
    from tocsin_agent.status_view import UPLINK_STATES

    yield from command_texts("cli.py", cli)
    yield from (("uplink.py", text) for text in UPLINK_STATES)


def command_texts(filename: str, command: object) -> Iterator[tuple[str, str]]:
    """The help of a command and what click says in it."""
    yield from ((filename, cleandoc(holder.help or "")) for holder in helps(command))
    yield from (("click", text) for text in CLICK)


COLLECTOR = Source(DOMAIN, LOCALE, collector_texts)
AGENT = Source("tocsin-agent", LOCALE.parents[2] / "agent" / "tocsin_agent" / "locale", agent_texts)
SOURCES = (COLLECTOR, AGENT)


def wanted(source: Source = COLLECTOR) -> Catalog:
    """Every text in the sources."""
    catalogue = Catalog(project="Tocsin", charset="utf-8")
    for filename, _line, message, _comments, _context in extract_from_dir(
        str(source.locale.parent), METHODS, OPTIONS, keywords=KEYWORDS, comment_tags=()
    ):
        if message:
            catalogue.add(message, locations=[(filename, 0)])
    for filename, text in source.more():
        catalogue.add(text, locations=[(filename, 0)])
    return catalogue


def rule_texts() -> Iterator[tuple[str, str]]:
    """(file, text) of the built-in rules, and of the sentences that rules without one get."""
    for file in sorted((PACKAGE / "rules").glob("*.toml")):
        for rule in tomllib.loads(file.read_text(encoding="utf-8")).get("rule", ()):
            for key in ("says", "title"):
                if rule.get(key):
                    yield f"rules/{file.name}", rule[key]
    yield from ((name, text) for name, text in other_texts())


def other_texts() -> Iterator[tuple[str, str]]:
    """Sentences that are written as plain data where gettext does not look."""
    from tocsin_collector.core.findings import AGENT_SILENT
    from tocsin_collector.rules_file import DEFAULT_SAYS

    yield "core/findings.py", AGENT_SILENT.says
    for text in DEFAULT_SAYS.values():
        yield "rules_file.py", text


def catalogue_file(source: Source, code: str, suffix: str) -> Path:
    return source.locale / code / "LC_MESSAGES" / f"{source.domain}{suffix}"


def merged(code: str, texts: Catalog, source: Source = COLLECTOR) -> Catalog:
    """The catalogue of that language with exactly these texts; what is no longer used is dropped."""
    file = catalogue_file(source, code, ".po")
    catalogue = read_po(BytesIO(file.read_bytes()), locale=code) if file.exists() else Catalog(locale=code)
    catalogue.header_comment = HEADER.strip()
    catalogue.project, catalogue.version = "Tocsin", "1"
    catalogue.msgid_bugs_address = catalogue.last_translator = catalogue.language_team = "Tocsin"
    catalogue.fuzzy = False
    catalogue.update(texts, no_fuzzy_matching=True)
    catalogue.creation_date = catalogue.revision_date = SINCE  # a date that moves would change the file with every run
    catalogue.obsolete.clear()
    return catalogue


def problems(code: str, catalogue: Catalog) -> list[str]:
    """What is not translated, and translations whose placeholders are not those of the text."""
    found = []
    for message in catalogue:
        if not message.id:
            continue
        ids = forms(message.id)
        told = forms(message.string)
        if not all(told):
            found.append(f"{code}: not translated: {ids[0]!r}")
        elif any(sorted(set(fields(text))) != sorted(set(fields(ids[-1]))) for text in told):
            found.append(f"{code}: other placeholders: {ids[0]!r} -> {told[0]!r}")
    return found


def forms(string: str | list[str] | tuple[str, ...] | None) -> tuple[str, ...]:
    """The plural forms of a text or of its translation; one where there are none."""
    return tuple(string) if isinstance(string, (tuple, list)) else (string or "",)


def stale(code: str, catalogue: Catalog, source: Source) -> list[str]:
    """Whether the committed .mo says something else than the .po, by content: bytes differ between versions of Babel."""
    file = catalogue_file(source, code, ".mo")
    if not file.exists():
        return [f"{code}: {file.name} is missing"]
    compiled = {forms(message.id): forms(message.string) for message in read_mo(BytesIO(file.read_bytes()))}
    if any(message.id and compiled.get(forms(message.id)) != forms(message.string) for message in catalogue):
        return [f"{code}: {file.name} says something else than the .po: run scripts/messages.py"]
    return []


def check() -> list[str]:
    """Everything that is wrong with the committed translations."""
    found = []
    for source, code in translated():
        catalogue = merged(code, wanted(source), source)
        found += problems(code, catalogue) + stale(code, catalogue, source)
    return found


def translated() -> Iterator[tuple[Source, str]]:
    return ((source, code) for source in SOURCES for code in LANGUAGES if code != "en")


def main() -> int:
    if "--check" not in sys.argv[1:]:
        for source, code in translated():
            catalogue = merged(code, wanted(source), source)
            catalogue_file(source, code, "").parent.mkdir(parents=True, exist_ok=True)
            with catalogue_file(source, code, ".po").open("wb") as out:
                write_po(out, catalogue, width=120, no_location=True, sort_output=True, omit_header=False)
            with catalogue_file(source, code, ".mo").open("wb") as out:
                write_mo(out, catalogue)
    found = check()
    for problem in found:
        sys.stderr.write(f"{problem}\n")
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
