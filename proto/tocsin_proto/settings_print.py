"""Settings in force, written back as TOML with the place of each key: what `config check --print-effective` shows.

Not a formatter of files people wrote. Invariant: what is printed parses to the same settings, except secrets, which are
not shown (law 9).
"""

import enum
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from tocsin_proto.redaction import REDACTED, is_secret
from tocsin_proto.settings import Loaded
from tocsin_proto.toml_lines import KeyPath
from tocsin_proto.units import Duration, Ratio, Size

_ESCAPED: Final = {"\x7f": "\\u007f"}


def effective(loaded: Loaded[Any]) -> str:
    """TOML: every key with its value, then where it comes from."""
    return "\n".join(_table(loaded, _items(loaded.value), (), "")).strip() + "\n"


def render(value: object) -> str:
    """One value as TOML: "10s", 5, ["a", "b"], { x = 1 }."""
    if isinstance(value, enum.Enum):
        return render(value.value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Duration | Size | Ratio | str | Path):
        return _text(str(value))
    if isinstance(value, msgspec.Struct | Mapping):
        inner = ", ".join(f"{_key(key)} = {render(item)}" for key, item in _shown(_items(value)))
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, list | tuple | set | frozenset):
        return f"[{', '.join(map(render, value))}]"
    return str(value)  # numbers, dates and times are written alike


def _table(loaded: Loaded[Any], items: Mapping[str, Any], path: KeyPath, header: str) -> Iterator[str]:
    inner: list[tuple[str, Any]] = []
    for key, value in items.items():
        here = (*path, key)
        place = loaded.origin(here) if loaded.is_written(here) else "default"
        if value is None:
            yield f"# {_key(key)} is not set"
        elif _is_hidden(key, value):
            yield f"# {_key(key)}: {REDACTED}  # {place}"
        elif isinstance(value, msgspec.Struct | Mapping) or _is_list_of_tables(value):
            inner.append((key, value))
        else:
            yield f"{_key(key)} = {render(value)}  # {place}"
    for key, value in inner:
        name = f"{header}.{_key(key)}" if header else _key(key)
        if _is_list_of_tables(value):
            for n, item in enumerate(value):
                yield f"\n[[{name}]]"
                yield from _table(loaded, _items(item), (*path, key, n), name)
        else:
            yield f"\n[{name}]"
            yield from _table(loaded, _items(value), (*path, key), name)


def _items(table: Any) -> Mapping[str, Any]:
    if isinstance(table, Mapping):
        return {str(key): value for key, value in table.items()}
    return {field.encode_name: getattr(table, field.name) for field in msgspec.structs.fields(table)}


def _shown(items: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in items.items():
        if value is not None:
            yield key, REDACTED if _is_hidden(key, value) else value


def _is_hidden(key: str, value: object) -> bool:
    # A table of known keys says itself which of them is a secret: credentials.folder is none.
    return is_secret(key) and bool(value) and not isinstance(value, msgspec.Struct)


def _is_list_of_tables(value: object) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(one, msgspec.Struct) for one in value)


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _text(name)


def _text(text: str) -> str:
    """A TOML basic string: JSON's escapes are TOML's, but for DEL."""
    return "".join(_ESCAPED.get(char, char) for char in json.dumps(text, ensure_ascii=False))
