"""Everything that is wrong with settings as read, against the type they should have: each finding with its key path.

Not the reading and not the line numbers (`settings`). Invariant: when nothing is found here, `convert` builds the value,
short of what only the whole can tell; and all findings are made at once, not one per run.
"""

import enum
import re
import types
from collections.abc import Iterator, Mapping
from datetime import date, datetime, time
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, TypeVar, Union, get_args, get_origin

import msgspec

from tocsin_proto.redaction import is_secret
from tocsin_proto.toml_lines import KeyPath

T = TypeVar("T")

KNOWN_KEYS_SHOWN: Final = 15
_WORDS: Final = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "array": "a list",
    "object": "a table",
    "null": "nothing",
}
_WRITTEN: Final[tuple[tuple[type, str], ...]] = (
    (bool, "true or false"),
    (int, "a whole number"),
    (float, "a number"),
    (str, "text"),
    (list, "a list"),
    (dict, "a table"),
    (datetime, "a date and time"),
    (date, "a date"),
    (time, "a time"),
)


class Finding(NamedTuple):
    path: KeyPath
    what: str


def convert(data: object, type_: type[T]) -> T:
    """msgspec.ValidationError."""
    return msgspec.convert(data, type_, dec_hook=_decode)


def check(type_: type, data: Mapping[str, object]) -> list[Finding]:
    """All findings, in the order of the file as far as tables have one."""
    found = list(_struct(type_, data, ()))
    if found:
        return found
    try:
        convert(data, type_)
    except msgspec.ValidationError as exc:
        return [_residue(exc)]
    return []


def annotation_at(annotation: Any, path: KeyPath) -> Any:
    """The type that a key path should have, None when there is no such key."""
    for step in path:
        options = _options(annotation)
        annotation = None
        for option in options:
            if _is_struct(option):
                annotation = next((f.type for f in msgspec.structs.fields(option) if f.encode_name == step), None)
            elif get_origin(option) is dict:
                annotation = get_args(option)[1]
            elif isinstance(step, int) and get_origin(option) in (list, tuple, set, frozenset):
                annotation = get_args(option)[0]
            if annotation is not None:
                break
        if annotation is None:
            return None
    return annotation


def dotted(path: KeyPath) -> str:
    """device[0].snmp.version - keys that are not plain words in quotes."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            plain = re.fullmatch(r"[A-Za-z0-9_-]+", step)
            text += ("." if text else "") + (step if plain else '"' + step.replace('"', '\\"') + '"')
    return text


def _decode(type_: type, written: object) -> object:
    """msgspec's hook for the types it does not know: those with a `parse`, and paths."""
    parse = getattr(type_, "parse", None)
    if parse is not None:
        return parse(written)
    if type_ is Path and isinstance(written, str):
        return Path(written)
    if type_ is Path:
        raise ValueError(f"expected {_WORDS['str']}, got {_what(written)}")
    raise NotImplementedError(f"settings cannot hold {type_.__name__}")


def _find(annotation: Any, value: object, path: KeyPath) -> Iterator[Finding]:
    options = _options(annotation)
    if isinstance(value, dict):
        struct = _chosen([option for option in options if _is_struct(option)], value)
        if struct is not None:
            yield from _struct(struct, value, path)
            return
        for option in options:
            if get_origin(option) is dict:
                for key, item in value.items():
                    yield from _find(get_args(option)[1], item, (*path, key))
                return
    if isinstance(value, list):
        for option in options:
            items = get_args(option)
            if get_origin(option) in (list, set, frozenset) or (get_origin(option) is tuple and items[1:] == (...,)):
                findings = [one for n, item in enumerate(value) for one in _find(items[0], item, (*path, n))]
                yield from findings or _leaf(annotation, value, path)
                return
    yield from _leaf(annotation, value, path)


def _struct(struct: Any, table: Mapping[str, object], path: KeyPath) -> Iterator[Finding]:
    fields = {field.encode_name: field for field in msgspec.structs.fields(struct)}
    known = [*fields, *([struct.__struct_config__.tag_field] if struct.__struct_config__.tag_field else [])]
    sound = True
    for key, value in table.items():
        if key in fields:
            findings = list(_find(fields[key].type, value, (*path, key)))
        else:
            findings = [] if key in known else [Finding((*path, key), _unknown(key, known))]
        sound = sound and not findings
        yield from findings
    for name, field in fields.items():
        if field.required and name not in table:
            sound = False
            yield Finding((*path, name), f"missing, expected {describe(field.type)}")
    if sound and hasattr(struct, "__post_init__"):
        yield from _leaf(struct, table, path)


def _leaf(annotation: Any, value: object, path: KeyPath) -> Iterator[Finding]:
    try:
        convert(value, annotation)
    except msgspec.ValidationError as exc:
        yield Finding(path, _explain(exc, annotation, value, path))


def _explain(exc: msgspec.ValidationError, annotation: Any, value: object, path: KeyPath) -> str:
    message, _, below = str(exc).partition(" - at `$")
    if message.startswith("Invalid enum value"):
        choices = _choices(annotation)
        written = f'"{value}" is not' if isinstance(value, str) and not _secret(path) else "not"
        near = _near(value, choices) if isinstance(value, str) else ""
        return f"{written} one of {', '.join(_quoted(choice) for choice in choices)}{near}"
    if ", got `" in message and not below:
        hint = ""
        if isinstance(value, dict) and any(_holds_structs(option) for option in _options(annotation)):
            hint = f", write [[{dotted(path)}]]"
        return f"expected {describe(annotation)}, got {_what(value)}{hint}"
    if message.startswith("Expected"):
        plain = re.sub(r"`(\w+)`", lambda name: _WORDS.get(name[1], name[1]), message)
        return plain[0].lower() + plain[1:]
    return message


def describe(annotation: Any) -> str:
    """What would be right, in words: `a whole number`, `one of "a", "b"`, `a duration such as "10s"`."""
    return " or ".join(dict.fromkeys(_describe(option) for option in _options(annotation)))


def _describe(option: Any) -> str:
    origin = get_origin(option) or option
    if origin is Literal or (isinstance(option, type) and issubclass(option, enum.Enum)):
        return "one of " + ", ".join(_quoted(choice) for choice in _choices(option))
    if expected := getattr(option, "EXPECTED", None):
        return str(expected)
    if _is_struct(option) or origin in (dict, Mapping):
        return "a table"
    if _holds_structs(option):
        return "a list of tables"
    if origin in (list, tuple, set, frozenset):
        return "a list"
    return next((words for kind, words in _WRITTEN if option is kind), "text")


def _unknown(key: str, known: list[str]) -> str:
    if near := _near(key, known):
        return f"unknown key{near}"
    shown = ", ".join(sorted(known)[:KNOWN_KEYS_SHOWN]) + (", ..." if len(known) > KNOWN_KEYS_SHOWN else "")
    return f"unknown key, known here: {shown}" if known else "unknown key, nothing is known here"


def _near(written: str, known: list[Any]) -> str:
    texts = {str(one).lower(): str(one) for one in known}
    near = get_close_matches(written.lower().replace("-", "_"), texts, n=1, cutoff=0.6)
    near = near or get_close_matches(written.lower(), texts, n=1, cutoff=0.6)
    return f', did you mean "{texts[near[0]]}"?' if near else ""


def _options(annotation: Any) -> list[Any]:
    """The alternatives of a type, without None and without msgspec's constraints."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (Union, types.UnionType):
        return [option for one in get_args(annotation) if one is not type(None) for option in _options(one)]
    return [annotation]


def _chosen(structs: list[Any], table: Mapping[str, object]) -> Any:
    """The struct that a table should be: the only one, or the one its tag names."""
    if len(structs) == 1:
        return structs[0]
    for struct in structs:
        config = struct.__struct_config__
        if config.tag_field is not None and table.get(config.tag_field) == config.tag:
            return struct
    return None


def _choices(annotation: Any) -> list[Any]:
    found: list[Any] = []
    for option in _options(annotation):
        if get_origin(option) is Literal:
            found += get_args(option)
        elif isinstance(option, type) and issubclass(option, enum.Enum):
            found += [one.value for one in option]
    return found


def _is_struct(option: Any) -> bool:
    return isinstance(option, type) and issubclass(option, msgspec.Struct)


def _holds_structs(option: Any) -> bool:
    items = get_args(option)
    return get_origin(option) in (list, tuple) and bool(items) and any(map(_is_struct, _options(items[0])))


def _secret(path: KeyPath) -> bool:
    return any(isinstance(step, str) and is_secret(step) for step in path)


def _quoted(choice: object) -> str:
    return f'"{choice}"' if isinstance(choice, str) else str(choice)


def _what(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return "a number with a fraction"
    return next((words for kind, words in _WRITTEN if isinstance(value, kind)), "nothing")


def _residue(exc: msgspec.ValidationError) -> Finding:
    """What only the whole could tell; msgspec's own path, as far as it names the keys."""
    message, _, below = str(exc).partition(" - at `$")
    path: KeyPath = ()
    for name, index in re.findall(r"\.([^.\[`]+)|\[(\d+)\]", below.split("[...]")[0]):
        path = (*path, name or int(index))
    return Finding(path, message)
