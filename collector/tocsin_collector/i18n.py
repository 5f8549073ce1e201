"""Two languages by gettext: English is written in the code, everything else stands in `locale/`.

Not the place for numbers and units (`wording.py`). Invariant: a text that nobody translated comes out in English, never
as an error; templates are filled by `fill`, which reads names only, so a rule's sentence cannot reach into objects.
"""

import gettext
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

LOCALE = Path(__file__).parent / "locale"
DOMAIN = "tocsin"
LANGUAGES = {"en": "English", "zh_CN": "中文"}  # code -> what its speakers call it
DEFAULT = "en"

_FIELD = re.compile(r"\{\{|\}\}|\{(\w+)(?::(\w+))?\}")


def N_(text: str) -> str:  # noqa: N802 - the name gettext tools know
    """Marks a text for translation where it is only named; `Language.t` translates it where it is shown."""
    return text


def fill(template: str, fact: Callable[[str, str], str | None]) -> str:
    """`{name}` and `{name:how}` replaced by `fact(name, how)`; a name without a fact stays as written; `{{` is a brace."""

    def one(match: re.Match[str]) -> str:
        if match[1] is None:
            return match[0][0]
        found = fact(match[1], match[2] or "")
        return match[0] if found is None else found

    return _FIELD.sub(one, template)


def fields(template: str) -> list[str]:
    """The fields of a template, in order, with their format: what a translation must keep."""
    return [match[0] for match in _FIELD.finditer(template)]


@dataclass(frozen=True, slots=True)
class Language:
    """One language: its catalogue and its code (`zh_CN`)."""

    code: str
    catalogue: gettext.NullTranslations

    @property
    def tag(self) -> str:
        """As HTML and HTTP spell it: `zh-CN`."""
        return self.code.replace("_", "-")

    def t(self, text: str, /, **facts: object) -> str:
        # The empty msgid is the catalogue's header, not a text. Without facts nothing is filled: it may be filled later.
        told = self.catalogue.gettext(text) if text else ""
        return _fill_facts(told, facts) if facts else told

    def tn(self, one: str, many: str, n: int, /, **facts: object) -> str:
        return _fill_facts(self.catalogue.ngettext(one, many, n), {"n": n, **facts})

    def pick(self, names: Mapping[str, str], otherwise: str) -> str:
        """The name written for this language in a registry's `name = { en = ..., zh = ... }`."""
        short = self.code.split("_")[0]
        return names.get(self.code) or names.get(self.tag) or names.get(short) or names.get("en") or otherwise


def _fill_facts(template: str, facts: Mapping[str, object]) -> str:
    return fill(template, lambda name, _how: str(facts[name]) if name in facts else None)


@cache
def language(code: str) -> Language:
    """The language of that code; English when there is no such catalogue."""
    if code not in LANGUAGES or code == DEFAULT:
        return Language(DEFAULT, gettext.NullTranslations())
    return Language(code, gettext.translation(DOMAIN, LOCALE, languages=[code], fallback=True))


def negotiate(*wishes: str | None) -> str:
    """The first wish we speak. A wish is a code, a tag, an environment's LANG or an Accept-Language header."""
    for wish in wishes:
        for part in _by_weight(wish or ""):
            short = re.split(r"[-_.@]", part.strip())[0].lower()
            for code in LANGUAGES:
                if short == code.split("_")[0].lower():
                    return code
    return DEFAULT


def _by_weight(header: str) -> list[str]:
    """The parts of an Accept-Language header, best first; at most 20 are looked at."""
    weighed: list[tuple[float, str]] = []
    for part in header[:1000].split(",")[:20]:
        name, _, quality = part.partition(";q=")
        try:
            weight = float(quality) if quality else 1.0
        except ValueError:
            weight = 0.0
        weighed.append((-weight, name))
    return [name for _, name in sorted(weighed, key=lambda pair: pair[0])]
