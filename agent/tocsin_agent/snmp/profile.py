"""Device profiles: TOML files that say what to read from which device and what it means.

Not the reading (`reader`). Format: the header of `profiles/base.toml`. Invariant: a profile that loads is complete -
every column it names exists, every OID parses, every parent is there - so that reading never meets a bad profile.
"""

import tomllib
from collections.abc import Iterable
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import msgspec

from tocsin_agent.snmp.values import Oid, oid
from tocsin_proto.records import SeriesKind

Kind = Literal["gauge", "counter32", "counter64", "state"]
KINDS: dict[str, SeriesKind] = {
    "gauge": SeriesKind.GAUGE,
    "counter32": SeriesKind.COUNTER32,
    "counter64": SeriesKind.COUNTER64,
    "state": SeriesKind.STATE,
}
GENERIC = "generic"
PROFILES_MAX = 1000
PROFILE_BYTES_MAX = 256 * 1024


class ProfileError(ValueError):
    """`file: where: what is wrong, what would be right`."""


class _Spec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of what a profile file may hold: an unknown key is an error."""


class Source(_Spec, frozen=True):
    """One way to get a metric's value: the first that has one is taken."""

    column: str
    kind: Kind | None = None  # None: the metric's
    scale: float = 1.0


class Override(_Spec, frozen=True):
    """Where `column` equals `equals`, the value is `value` instead - unless it is `unless`."""

    column: str
    equals: int
    value: int
    unless: int | None = None


class Metric(_Spec, frozen=True):
    """value = (source * source.scale - minus) * times / over * scale."""

    metric: str
    unit: str = "1"
    kind: Kind = "gauge"
    column: str = ""
    first_of: tuple[Source, ...] = ()
    greatest_of: tuple[str, ...] = ()
    scale: float = 1.0
    minus: str = ""
    times: str = ""
    over: str = ""
    zero_is_absent: bool = False  # 0 means "does not say": the next source is asked, 0 stands if none says more
    states: dict[str, str] = {}
    override: tuple[Override, ...] = ()
    labels: dict[str, str] = {}  # fixed ones
    mean_as: dict[str, str] = {}  # one more series with these labels: the mean of all rows

    @property
    def sources(self) -> tuple[Source, ...]:
        return self.first_of or ((Source(self.column),) if self.column else ())

    @property
    def inputs(self) -> tuple[str, ...]:
        """The columns beside the sources that the value needs."""
        others = (self.minus, self.times, self.over, *self.greatest_of, *(over.column for over in self.override))
        return tuple(name for name in others if name)

    @property
    def state_names(self) -> tuple[tuple[int, str], ...]:
        return tuple(sorted((int(value), name) for value, name in self.states.items()))


class Scalars(_Spec, frozen=True):
    """A group of single objects, read with GET: a table of one row whose columns are the whole OIDs."""

    name: str
    columns: dict[str, str]
    metric: tuple[Metric, ...]
    ticks: tuple[str, ...] = ()  # columns in 1/100 s that wrap at 2^32: read as seconds, the wrap undone


class Table(_Spec, frozen=True):
    """A conceptual table, read with GETBULK: columns by name, one instance per row."""

    name: str
    columns: dict[str, str]
    metric: tuple[Metric, ...]
    labels: dict[
        str, tuple[str, ...]
    ] = {}  # first column with a text; "#index": the index, "#ordinal": the row's place
    label_until: tuple[str, ...] = ()  # label texts end before the first of these
    unsigned: tuple[str, ...] = ()  # columns whose negative values are an overflow of 2^31
    where: dict[str, tuple[str, ...]] = {}  # rows whose column has one of these texts
    where_not: dict[str, tuple[str, ...]] = {}
    rows_max: int = 4096


class Profile(_Spec, frozen=True):
    """One file; after `Profiles` has resolved it, with all that it extends."""

    name: str
    about: str = ""
    match: tuple[str, ...] = ()
    extends: tuple[str, ...] = ()
    identity: dict[str, tuple[str, ...]] = {}  # first that has a text; "OID.*": the first text below the OID
    scalars: tuple[Scalars, ...] = ()
    table: tuple[Table, ...] = ()

    @property
    def groups(self) -> "tuple[Scalars | Table, ...]":
        return (*self.scalars, *self.table)


class Profiles:
    """All profiles, resolved. `choose` is by the longest matching sysObjectID prefix."""

    def __init__(self, profiles: Iterable[Profile]) -> None:
        raw = {profile.name: profile for profile in profiles}
        self._by_name = {name: _resolve(name, raw, ()) for name in raw}
        self._by_prefix = {oid(prefix): profile for profile in self._by_name.values() for prefix in profile.match}

    @property
    def names(self) -> list[str]:
        return sorted(self._by_name)

    def named(self, name: str) -> Profile:
        """KeyError with the names there are."""
        if name not in self._by_name:
            raise KeyError(f"no SNMP profile {name!r}, there are: {', '.join(self.names)}")
        return self._by_name[name]

    def choose(self, object_id: Oid | None) -> Profile:
        for length in range(len(object_id or ()), 0, -1):
            found = self._by_prefix.get((object_id or ())[:length])
            if found is not None:
                return found
        return self.named(GENERIC)


@cache
def built_in() -> Profiles:
    """The profiles of the package."""
    folder = resources.files("tocsin_agent") / "profiles"
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".toml")), key=lambda file: file.name)
    return Profiles(parse(file.read_text(encoding="utf-8"), file.name) for file in files)


def load_folder(folder: Path) -> Profiles:
    """The package's profiles and a site's own beside them; a site's profile replaces one of the same name."""
    own: list[Profile] = []
    for file in sorted(folder.glob("*.toml"))[:PROFILES_MAX]:
        try:
            if file.stat().st_size > PROFILE_BYTES_MAX:
                raise ProfileError(f"{file}: larger than {PROFILE_BYTES_MAX} bytes")
            own.append(parse(file.read_text(encoding="utf-8"), str(file)))
        except (OSError, UnicodeDecodeError) as error:
            raise ProfileError(f"{file}: cannot be read: {error}") from error
    package = resources.files("tocsin_agent") / "profiles"
    shipped = [parse(f.read_text(encoding="utf-8"), f.name) for f in package.iterdir() if f.name.endswith(".toml")]
    return Profiles([*shipped, *own])


def parse(text: str, file: str) -> Profile:
    """One file, checked in itself. Raises ProfileError."""
    try:
        profile = msgspec.convert(tomllib.loads(text), Profile)
    except tomllib.TOMLDecodeError as error:
        raise ProfileError(f"{file}: not TOML: {error}") from error
    except msgspec.ValidationError as error:
        raise ProfileError(f"{file}: {error}") from error
    _check_oid(file, "match", profile.match)
    for key, sources in profile.identity.items():
        _check_oid(file, f"identity.{key}", (source.removesuffix(".*") for source in sources))
    for group in profile.groups:
        _check_group(file, group)
    return profile


def _resolve(name: str, raw: dict[str, Profile], path: tuple[str, ...]) -> Profile:
    if name in path:
        raise ProfileError(f"{name}: extends itself: {' -> '.join((*path, name))}")
    if name not in raw:
        raise ProfileError(f"{path[-1]}: extends {name!r}, which there is not; there are: {', '.join(sorted(raw))}")
    own = raw[name]
    identity: dict[str, tuple[str, ...]] = {}
    groups: dict[str, Scalars | Table] = {}
    for profile in (*(_resolve(parent, raw, (*path, name)) for parent in own.extends), own):
        identity |= profile.identity
        groups |= {group.name: group for group in profile.groups}
    return Profile(
        name=own.name,
        about=own.about,
        match=own.match,
        extends=own.extends,
        identity=identity,
        scalars=tuple(group for group in groups.values() if isinstance(group, Scalars)),
        table=tuple(group for group in groups.values() if isinstance(group, Table)),
    )


def _check_oid(file: str, where: str, texts: Iterable[str]) -> None:
    for text in texts:
        try:
            oid(text)
        except ValueError as error:
            raise ProfileError(f"{file}: {where}: {error}") from error


def _check_group(file: str, group: Scalars | Table) -> None:
    for name, text in group.columns.items():
        _check_oid(file, f"{group.name}.columns.{name}", [text])
    named: list[tuple[str, str]] = []
    if isinstance(group, Table):
        named += [(f"labels.{label}", c) for label, columns in group.labels.items() for c in columns if c[:1] != "#"]
        named += [("where", column) for column in (*group.where, *group.where_not)]
        named += [("unsigned", column) for column in group.unsigned]
    else:
        named += [("ticks", column) for column in group.ticks]
    for metric in group.metric:
        if not metric.sources and not metric.greatest_of:
            raise ProfileError(f"{file}: {group.name}.{metric.metric}: write column, first_of or greatest_of")
        for value in metric.states:
            if not value.removeprefix("-").isdigit():
                raise ProfileError(f"{file}: {group.name}.{metric.metric}: states: {value!r} is not a whole number")
        used: list[Any] = [*(source.column for source in metric.sources), *metric.inputs]
        named += [(metric.metric, column) for column in used]
    for where, column in named:
        if column not in group.columns:
            known = ", ".join(group.columns)
            raise ProfileError(f"{file}: {group.name}.{where}: no column {column!r}, there are: {known}")
