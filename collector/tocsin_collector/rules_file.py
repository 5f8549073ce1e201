"""Rules as people write them (rules/*.toml, built in and a site's own), read into model.Rule.

Not what a rule means (`core/detector.py`). Invariant: a rule that comes out of here has levels of one kind, in rising order,
whose clear limits lie on the right side; everything else is an error with file, line and key.
"""

import math
import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from string import Formatter
from typing import NamedTuple

import msgspec

from tocsin_collector.core.model import SEVERITIES, Impact, Level, Rule, Severity
from tocsin_collector.registry_file import ID, ID_RULE, toml_files
from tocsin_proto import settings
from tocsin_proto.settings import Duration, Loaded, Problem, SettingsError

BUILT_IN = Path(__file__).with_name("rules")
RULES_MAX = 5_000
METRIC = re.compile(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+)+")
FIELD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
PATTERNS_MAX = 100
RESERVED = ("agent-silent",)  # decided by the engine itself, without a series

# Words for the numbers of the state series that Tocsin's own probes and profiles send; a rule's `states` adds to them.
STATES: dict[str, dict[str, int]] = {
    "device.reachable": {"unreachable": 0, "reachable": 1},
    "disk.read_only": {"writable": 0, "read only": 1},
    "disk.responding": {"not responding": 0, "responding": 1},
    "if.admin_status": {"up": 1, "down": 2, "testing": 3},
    "if.oper_status": {
        "up": 1,
        "down": 2,
        "testing": 3,
        "unknown": 4,
        "dormant": 5,
        "not present": 6,
        "lower layer down": 7,
        "shut": 8,
    },
    "probe.ok": {"failing": 0, "ok": 1},
    "service.active": {
        "inactive": 0,
        "active": 1,
        "failed": 2,
        "activating": 3,
        "deactivating": 4,
        "reloading": 5,
        "maintenance": 6,
        "refreshing": 7,
        "not found": 8,
    },
}
# What a sentence may name beside the labels of its series.
FACTS = ("device", "host", "site", "rule", "metric", "value", "limit", "unit", "state", "seconds")
LABELS = ("cpu", "disk", "interface", "minutes", "mount", "probe", "process", "sensor", "service")  # of our own probes
# ... and how a figure may be shown when its unit does not say it already.
FORMATS = ("percent", "bytes", "duration", "rate")
# Sentences of rules that bring none, by kind of detection.
DEFAULT_SAYS = {
    "above": "{metric} of {device} is {value}, above {limit}",
    "below": "{metric} of {device} is {value}, below {limit}",
    "becomes": "{metric} of {device} is {state}",
    "no_data_for": "{metric} of {device} has not come for {seconds} s",
}

Words = str | int | tuple[str | int, ...]


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of all tables: frozen, and strict about what it does not know."""


class LevelTable(Table, frozen=True, rename={"for_": "for"}):
    """One rung: exactly one of above, below, becomes, no_data_for."""

    above: float | None = None
    below: float | None = None
    clear_below: float | None = None
    clear_above: float | None = None
    becomes: Words = ()
    after: Words = ()
    no_data_for: Duration | None = None
    for_: Duration = Duration(0)
    keep: Duration = Duration(0)


class RuleTable(Table, frozen=True):
    id: str
    enabled: bool = True
    for_each: str = ""
    where: dict[str, str | tuple[str, ...]] = {}
    states: dict[str, int] = {}
    warning: LevelTable | None = None
    major: LevelTable | None = None
    critical: LevelTable | None = None
    says: str = ""
    affects: Impact = Impact.NONE
    reachability: bool = False
    runbook: str = ""


class RulesTable(Table, frozen=True):
    """One file of rules."""

    rule: tuple[RuleTable, ...] = ()


class Written(NamedTuple):
    """A rule as it was written, and where."""

    table: RuleTable
    loaded: Loaded[RulesTable]
    key: str

    def problem(self, field: str, text: str) -> Problem:
        at = f"{self.key}.{field}" if field else self.key
        return Problem(self.loaded.origin(at), f"rule.{self.table.id}.{field}".rstrip("."), text)


def read(folder: Path, *, built_in: Path = BUILT_IN) -> tuple[Rule, ...]:
    """The rules in force: the built-in ones, each replaced or switched off by a site's rule of the same id.

    A folder that is not there adds nothing. Raises SettingsError with all problems at once.
    """
    problems: list[Problem] = []
    own = _written(folder, problems)
    shipped = _written(built_in, problems)
    known = {written.table.id for written in shipped}
    for written in own:
        if not written.table.enabled and not written.table.for_each and written.table.id not in known:
            hint = _did_you_mean(written.table.id, known)
            problems.append(written.problem("id", f'there is no built-in rule "{written.table.id}"{hint}'))
    in_force = {w.table.id: (w, True) for w in shipped} | {w.table.id: (w, False) for w in own}
    rules = []
    for written, is_built_in in in_force.values():
        if not written.table.enabled:
            continue
        found = problems_of(written.table)
        problems += [written.problem(field, text) for field, text in found]
        if not found:
            rules.append(to_rule(written.table, is_built_in=is_built_in))
    if len(rules) > RULES_MAX:
        problems.append(Problem(str(folder), "rule", f"{len(rules)} rules, at most {RULES_MAX} are allowed"))
    if problems:
        raise SettingsError(problems)
    return tuple(rules)


def parse(text: str, filename: str) -> tuple[Rule, ...]:
    """The rules of one text. Raises SettingsError."""
    loaded = settings.parse(RulesTable, text, filename)
    written = [Written(table, loaded, f"rule[{i}]") for i, table in enumerate(loaded.value.rule)]
    problems = [w.problem(field, text) for w in written for field, text in problems_of(w.table)]
    if problems:
        raise SettingsError(problems)
    return tuple(to_rule(w.table) for w in written if w.table.enabled)


def to_rule(table: RuleTable, *, is_built_in: bool = False) -> Rule:
    """A rule without problems as the engine takes it."""
    words = STATES.get(table.for_each, {}) | table.states
    levels = tuple(_to_level(severity, level, words) for severity, level in _ladder(table))
    return Rule(
        id=table.id,
        metric=table.for_each,
        levels=levels,
        where={name: (pattern,) if isinstance(pattern, str) else pattern for name, pattern in table.where.items()},
        says=table.says or DEFAULT_SAYS[_kinds(_ladder(table)[0][1])[0]],
        impact=table.affects,
        is_reachability=table.reachability,
        runbook=table.runbook,
        is_built_in=is_built_in,
    )


def problems_of(table: RuleTable) -> list[tuple[str, str]]:
    """Everything wrong with a rule: (field, what is wrong and what would be right)."""
    if table.id in RESERVED:
        return [("id", f'"{table.id}" is the engine\'s own, choose another id')]
    if not table.enabled and not table.for_each:
        return [] if ID.fullmatch(table.id) else [("id", f'"{table.id}" cannot be used: {ID_RULE}')]
    problems = []
    if not ID.fullmatch(table.id):
        problems.append(("id", f'"{table.id}" cannot be used: {ID_RULE}'))
    if not METRIC.fullmatch(table.for_each):
        said = f'"{table.for_each}" is no metric' if table.for_each else "missing"
        problems.append(("for_each", f'{said}: name one like "disk.used_ratio"'))
    for name, patterns in table.where.items():
        if not patterns:
            problems.append((f"where.{name}", 'no pattern: leave the name out, or write "*"'))
        elif not isinstance(patterns, str) and len(patterns) > PATTERNS_MAX:
            problems.append((f"where.{name}", f"{len(patterns)} patterns, at most {PATTERNS_MAX} are allowed"))
    problems += _says_problems(table)
    ladder = _ladder(table)
    if not ladder:
        return [*problems, ("", "no level: write warning, major or critical, such as warning = { above = 0.85 }")]
    words = STATES.get(table.for_each, {}) | table.states
    for severity, level in ladder:
        problems += [(f"{severity}.{field}".rstrip("."), text) for field, text in _level_problems(level, words)]
    return problems or _ladder_problems(ladder)


def _ladder(table: RuleTable) -> list[tuple[Severity, LevelTable]]:
    """The rungs in rising order of severity."""
    rungs = {Severity.WARNING: table.warning, Severity.MAJOR: table.major, Severity.CRITICAL: table.critical}
    return [(severity, level) for severity in SEVERITIES if (level := rungs[severity]) is not None]


def _kinds(level: LevelTable) -> list[str]:
    present = {
        "above": level.above is not None,
        "below": level.below is not None,
        "becomes": level.becomes != (),
        "no_data_for": level.no_data_for is not None,
    }
    return [kind for kind, is_there in present.items() if is_there]


def _level_problems(level: LevelTable, words: dict[str, int]) -> list[tuple[str, str]]:
    kinds = _kinds(level)
    if len(kinds) != 1:
        said = f"{' and '.join(kinds)} together" if kinds else "says nothing"
        return [("", f"{said}: write exactly one of above, below, becomes, no_data_for")]
    kind = kinds[0]
    problems = []
    for field, needed in (("clear_below", "above"), ("clear_above", "below"), ("after", "becomes")):
        if getattr(level, field) not in (None, ()) and kind != needed:
            problems.append((field, f"goes with {needed}, not with {kind}"))
    for field in ("above", "below", "clear_below", "clear_above"):
        number = getattr(level, field)
        if number is not None and not math.isfinite(number):
            problems.append((field, f"{number} is no limit, write a number"))
    if (
        kind == "above"
        and level.above is not None
        and level.clear_below is not None
        and level.clear_below > level.above
    ):
        problems.append(
            ("clear_below", f"{level.clear_below} lies above the limit {level.above}: it would never clear")
        )
    if (
        kind == "below"
        and level.below is not None
        and level.clear_above is not None
        and level.clear_above < level.below
    ):
        problems.append(
            ("clear_above", f"{level.clear_above} lies below the limit {level.below}: it would never clear")
        )
    for field, states in (("becomes", level.becomes), ("after", level.after)):
        problems += [(field, problem) for problem in _state_problems(states, words)]
    if kind == "no_data_for":
        if level.no_data_for is not None and level.no_data_for <= 0:
            problems.append(("no_data_for", 'must be longer than nothing, such as "5m"'))
        if level.for_:
            problems.append(("for", "is the same as no_data_for here: leave it out"))
    return problems


def _state_problems(states: Words, words: dict[str, int]) -> list[str]:
    known = ", ".join(f'"{word}"' for word in words)
    problems = []
    for state in _listed(states):
        if isinstance(state, str) and state not in words:
            hint = _did_you_mean(state, words)
            right = hint or (f", the states are {known}" if known else ", give it a number: states = { down = 2 }")
            problems.append(f'unknown state "{state}"{right}')
    return problems


def _ladder_problems(ladder: Sequence[tuple[Severity, LevelTable]]) -> list[tuple[str, str]]:
    """Rungs of one kind, each at least as far out as the one before."""
    first = _kinds(ladder[0][1])[0]
    problems = []
    for (lower, below), (higher, above) in pairwise(ladder):
        kind = _kinds(above)[0]
        if kind != first:
            problems.append((str(higher), f"{kind}, but {ladder[0][0]} is {first}: a rule has levels of one kind"))
            continue
        was, now = getattr(below, kind), getattr(above, kind)
        if (kind == "above" and now < was) or (kind == "below" and now > was) or (kind == "no_data_for" and now < was):
            problems.append(
                (f"{higher}.{kind}", f"{now} comes before {lower} ({was}): a graver level lies further out")
            )
    return problems


def _says_problems(table: RuleTable) -> list[tuple[str, str]]:
    try:
        parts = list(Formatter().parse(table.says))
    except ValueError as error:
        return [("says", f"{error}: write a name in braces like {{device}}, and {{{{ for a brace")]
    problems = []
    known = (*FACTS, *LABELS, *table.where)
    # Labels are the sender's words, so only what looks like a slip of the pen is refused.
    for _, field, spec, conversion in parts:
        if field is None:
            continue
        if not FIELD.fullmatch(field):
            problems.append(("says", f'"{{{field}}}" is no name: write {{device}}, {{value}}, {{limit}} or a label'))
        elif conversion or (spec and spec not in FORMATS):
            problems.append(("says", f'"{{{field}:{spec}}}" is no form, the forms are {", ".join(FORMATS)}'))
        elif field not in known and (close := get_close_matches(field, known, 1, 0.75)):
            problems.append(("says", f'unknown fact "{{{field}}}", did you mean "{{{close[0]}}}"?'))
    return problems


def _to_level(severity: Severity, level: LevelTable, words: dict[str, int]) -> Level:
    return Level(
        severity=severity,
        above=level.above,
        below=level.below,
        clear_below=level.clear_below,
        clear_above=level.clear_above,
        is_state=_numbers(level.becomes, words),
        after=_numbers(level.after, words),
        no_data_ms=int(level.no_data_for or 0),
        for_ms=int(level.for_),
        keep_ms=int(level.keep),
    )


def _numbers(states: Words, words: dict[str, int]) -> tuple[int, ...]:
    return tuple(words[state] if isinstance(state, str) else state for state in _listed(states))


def _listed(states: Words) -> tuple[str | int, ...]:
    return states if isinstance(states, tuple) else (states,)


def _written(folder: Path, problems: list[Problem]) -> list[Written]:
    """Every rule of a folder; what cannot be read, and ids that stand twice, go to `problems`."""
    found: dict[str, Written] = {}
    for path in toml_files(folder):
        try:
            loaded = settings.parse(RulesTable, settings.read_text(path), str(path))
        except SettingsError as error:
            problems += error.problems
            continue
        for index, table in enumerate(loaded.value.rule):
            written = Written(table, loaded, f"rule[{index}]")
            if table.id in found:
                before = found[table.id]
                first = before.loaded.origin(f"{before.key}.id")
                problems.append(written.problem("id", f"stands twice, the first time at {first}"))
            found.setdefault(table.id, written)
    return list(found.values())


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    close = get_close_matches(word, list(known), 1)
    return f', did you mean "{close[0]}"?' if close else ""
