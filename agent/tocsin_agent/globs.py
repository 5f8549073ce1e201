"""Which names an `ignore` list means: shell patterns over whole names, compiled once.

Not gitignore: `*` also crosses "/", and a pattern that ends in "/**" names the folder itself as well.
"""

import re
from collections.abc import Sequence
from fnmatch import translate

NAMES_MAX = 10_000  # remembered answers; names that come and go must not grow this for ever


class Globs:
    """`name in globs`: whether any of the patterns names it."""

    def __init__(self, patterns: Sequence[str]) -> None:
        wanted = [*patterns, *(pattern[:-3] for pattern in patterns if pattern.endswith("/**") and len(pattern) > 3)]
        self._regex = re.compile("|".join(translate(pattern) for pattern in wanted)) if wanted else None
        self._known: dict[str, bool] = {}

    def __contains__(self, name: str) -> bool:
        if self._regex is None:
            return False
        known = self._known.get(name)
        if known is None:
            if len(self._known) >= NAMES_MAX:
                self._known.clear()
            known = self._known[name] = self._regex.match(name) is not None
        return known
