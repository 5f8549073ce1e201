"""Typed settings from TOML: a file, its drop-ins, the environment - one frozen value, and where each key was written.

Not the keys themselves: those are structs of the two commands. Invariant: either a value that has passed every check,
or `SettingsError` with everything that is wrong: where, what, and what would be right.
"""

import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, Generic, NamedTuple, TypeVar

import msgspec

from tocsin_proto import settings_check
from tocsin_proto.settings_check import dotted
from tocsin_proto.toml_lines import KeyPath, scan
from tocsin_proto.units import Duration, Ratio, Size

__all__ = ["Duration", "Loaded", "Problem", "Ratio", "SettingsError", "Size", "load", "parse"]

T = TypeVar("T")

FILE_BYTES_MAX: Final = 16 * 1024 * 1024
DROP_INS_MAX: Final = 1000
PROBLEMS_SHOWN: Final = 100


class Problem(NamedTuple):
    """One line for a person: `agent.toml:14: probes.disk.intervall: unknown key, did you mean "interval"?`"""

    where: str
    key: str
    what: str

    def __str__(self) -> str:
        return ": ".join(part for part in self if part)


class SettingsError(Exception):
    """All that is wrong, at once. Daemons exit with `exits.EX_CONFIG`."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        shown = [str(problem) for problem in self.problems[:PROBLEMS_SHOWN]]
        if len(self.problems) > PROBLEMS_SHOWN:
            shown.append(f"... and {len(self.problems) - PROBLEMS_SHOWN} more")
        super().__init__("\n".join(shown))


class Loaded(Generic[T]):
    """A checked value that remembers where it was written."""

    __slots__ = ("_origins", "value")

    def __init__(self, value: T, origins: Mapping[KeyPath, str]) -> None:
        self.value = value
        self._origins = origins

    def origin(self, key: str | KeyPath) -> str:
        """Where `host.interval` or `device[2].snmp` stands, or the nearest table around it: "agent.toml:14"."""
        return _origin(self._origins, _steps(key))

    def is_written(self, key: str | KeyPath) -> bool:
        """False: it is the default."""
        return _steps(key) in self._origins


def load(
    type_: type[T], path: Path, *, drop_in: Path | None = None, env_prefix: str = "", environ: Mapping[str, str]
) -> Loaded[T]:
    """The file, then `drop_in`/*.toml by name, then PREFIX__SECTION__KEY=value. Later ones win; tables merge, lists replace.

    A value from the environment is read as TOML, and as plain text where that is what fits. SettingsError.
    """
    origins: dict[KeyPath, str] = {(): f"{path}:1"}
    data: dict[str, Any] = {}
    problems: list[Problem] = []
    for file in (path, *_drop_ins(drop_in, problems)):
        try:
            table, lines = _read(read_text(file), str(file))
        except SettingsError as error:
            problems += error.problems
        else:
            _merge(data, table, (), lines, origins)
    if problems:
        raise SettingsError(problems)  # what a broken file would have said is not "missing"
    if env_prefix:
        problems += _apply_environment(type_, data, origins, env_prefix, environ)
    try:
        loaded = _build(type_, data, origins)
    except SettingsError as error:
        problems += error.problems
    if problems:
        raise SettingsError(problems)
    return loaded


def parse(type_: type[T], text: str, filename: str) -> Loaded[T]:
    """One text. SettingsError, with `filename` as the place."""
    data, lines = _read(text, filename)
    return _build(type_, data, {(): f"{filename}:1", **lines})


def read_text(path: Path) -> str:
    """A settings file as text, without a byte order mark. SettingsError when it cannot be read, is too large or not UTF-8."""
    try:
        with path.open("rb") as file:
            raw = file.read(FILE_BYTES_MAX + 1)
    except OSError as exc:
        raise SettingsError([Problem(str(path), "", f"cannot be read: {exc.strerror or exc}")]) from exc
    if len(raw) > FILE_BYTES_MAX:
        what = f"has more than {FILE_BYTES_MAX // 2**20} MiB, split it into several files"
        raise SettingsError([Problem(str(path), "", what)])
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        line = raw.count(b"\n", 0, exc.start) + 1
        raise SettingsError([Problem(f"{path}:{line}", "", "not UTF-8, save the file as UTF-8")]) from exc


def _build(type_: type[T], data: dict[str, Any], origins: Mapping[KeyPath, str]) -> Loaded[T]:
    findings = settings_check.check(type_, data)
    if findings:
        raise SettingsError(Problem(_origin(origins, path), dotted(path), what) for path, what in findings)
    return Loaded(settings_check.convert(data, type_), origins)


def _origin(origins: Mapping[KeyPath, str], path: KeyPath) -> str:
    while path not in origins:
        path = path[:-1]
    return origins[path]


def _steps(key: str | KeyPath) -> KeyPath:
    """'device[2]."odd key".x' as ("device", 2, "odd key", "x")."""
    if not isinstance(key, str):
        return key
    path: KeyPath = ()
    for quoted, index, plain in re.findall(r'"((?:[^"\\]|\\.)*)"|\[(\d+)\]|([^.\[\]"]+)', key):
        path = (*path, int(index) if index else plain or quoted.replace('\\"', '"'))
    return path


# ------------------------------------------------------------------------------------------------------- files


def _drop_ins(folder: Path | None, problems: list[Problem]) -> list[Path]:
    if folder is None:
        return []
    try:
        found = sorted(one for one in folder.iterdir() if one.suffix == ".toml" and not one.name.startswith("."))
    except FileNotFoundError:
        return []
    except OSError as exc:
        problems.append(Problem(str(folder), "", f"cannot be read: {exc.strerror or exc}"))
        return []
    if len(found) > DROP_INS_MAX:
        problems.append(Problem(str(folder), "", f"{len(found)} files, at most {DROP_INS_MAX} are read"))
        return []
    return found


def _read(text: str, filename: str) -> tuple[dict[str, Any], dict[KeyPath, str]]:
    text = text.removeprefix("\ufeff")
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise SettingsError([_syntax_problem(str(exc), text, filename)]) from exc
    except RecursionError as exc:
        raise SettingsError([Problem(filename, "", "nested too deeply")]) from exc
    except ValueError as exc:  # Python reads no whole number of more than some thousand digits
        found = _ENDLESS_NUMBER.search(text)
        place = f"{filename}:{text.count(chr(10), 0, found.start()) + 1}" if found else filename
        raise SettingsError([Problem(place, "", "a whole number with thousands of digits")]) from exc
    return data, {path: f"{filename}:{line}" for path, line in scan(text).items()}


_ENDLESS_NUMBER: Final = re.compile(r"\d[\d_]{1000,}")
_SYNTAX_HINTS: Final = {
    "Invalid value": 'text stands in quotes, as in name = "press 7"',
    "Cannot overwrite a value": "the key stands twice, keep one",
    "Cannot declare": "the table stands twice, keep one; a list of tables is written [[name]]",
    "Expected '=' after a key": "settings are written key = value, tables [name]",
    "Unescaped '\\' in a string": "write \\\\, or use single quotes, as in 'C:\\data'",
    "Expected newline or end of document": "one setting per line; text stands in quotes",
}


def _syntax_problem(message: str, text: str, filename: str) -> Problem:
    what, at, place = message.partition(" (at ")
    line = re.match(r"line (\d+), column (\d+)", place)
    number = int(line[1]) if line else text.rstrip().count("\n") + 1
    column = f" at column {line[2]}" if line else " at the end of the file" if at else ""
    hint = next((f"; {hint}" for start, hint in _SYNTAX_HINTS.items() if what.startswith(start)), "")
    return Problem(f"{filename}:{number}", "", f"not TOML: {what[0].lower()}{what[1:]}{column}{hint}")


def _merge(
    base: dict[str, Any],
    over: Mapping[str, Any],
    path: KeyPath,
    lines: Mapping[KeyPath, str],
    origins: dict[KeyPath, str],
) -> None:
    for key, value in over.items():
        here = (*path, key)
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            _merge(base[key], value, here, lines, origins)
            continue
        for old in [one for one in origins if one[: len(here)] == here]:
            del origins[old]
        base[key] = value
        origins.update((one, place) for one, place in lines.items() if one[: len(here)] == here)


# ------------------------------------------------------------------------------------------------- environment


def _apply_environment(
    type_: type, data: dict[str, Any], origins: dict[KeyPath, str], prefix: str, environ: Mapping[str, str]
) -> list[Problem]:
    problems = []
    start = f"{prefix}__"
    for name in sorted(one for one in environ if one.startswith(start)):
        place = f"environment {name}"
        path = tuple(name.removeprefix(start).lower().split("__"))
        if not all(path):
            problems.append(Problem(place, "", f"no key, write {start}SECTION__KEY"))
            continue
        table, value = data, _environment_value(type_, path, environ[name])
        for depth, key in enumerate(path[:-1], 1):
            inner = table.setdefault(key, {})
            if not isinstance(inner, dict):
                problems.append(Problem(place, dotted(path), f"{dotted(path[:depth])} is not a table"))
                break
            table = inner
            origins.setdefault(path[:depth], place)
        else:
            _merge(table, {path[-1]: value}, path[:-1], {path: place}, origins)
    return problems


def _environment_value(type_: type, path: KeyPath, text: str) -> object:
    """As TOML when that is what the key wants, else as it stands: 10s needs no quotes, and neither does the name 007."""
    try:
        table = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):  # not TOML, or a number without end
        return text
    if list(table) != ["value"]:
        return text
    value: object = table["value"]
    wanted = settings_check.annotation_at(type_, path)
    return value if wanted is None or _fits(value, wanted) or not _fits(text, wanted) else text


def _fits(value: object, annotation: Any) -> bool:
    try:
        settings_check.convert(value, annotation)
    except msgspec.ValidationError:
        return False
    return True
