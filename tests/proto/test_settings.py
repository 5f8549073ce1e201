"""Settings: what people write comes out typed, with its place; what is wrong is said with file, line, key and remedy.

A new error case is a new folder in tests/cases/settings: agent.toml, perhaps agent.d/ and environment.toml, and expected.txt.
"""

import tomllib
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tocsin_proto import exits, settings
from tocsin_proto.redaction import is_secret
from tocsin_proto.settings import Duration, Loaded, Ratio, SettingsError, Size
from tocsin_proto.settings_print import effective, render
from tocsin_proto.toml_lines import scan
from tocsin_proto.units import DURATION_MS_MAX, SIZE_BYTES_MAX

CASES = Path(__file__).parent.parent / "cases" / "settings"


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class Mode(Enum):
    QUIET = "quiet"
    LOUD = "loud"


class Host(Table, frozen=True):
    interval: Duration = Duration("10s")
    enabled: bool = True
    ignore: tuple[str, ...] = ()
    processes_max: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 50


class Snmp(Table, frozen=True):
    version: Literal["1", "2c"]
    community: str = "public"
    timeout: Duration = Duration("2s")


class Device(Table, frozen=True):
    id: str
    name: str | dict[str, str] = ""
    parents: tuple[str, ...] = ()
    snmp: Snmp | None = None


class Window(Table, frozen=True):
    start: Duration
    end: Duration

    def __post_init__(self) -> None:
        if self.end <= self.start:
            raise ValueError(f'"{self.end}" is not after start "{self.start}"')


class Agent(Table, frozen=True):
    collector: str
    host: Host = Host()
    spool: Size = Size("256MiB")
    full: Ratio = Ratio("90%")
    mode: Mode = Mode.QUIET
    device: tuple[Device, ...] = ()
    window: dict[str, Window] = {}
    state: Path = Path("/var/lib/tocsin")


def load(folder: Path, environ: dict[str, str] | None = None) -> Loaded[Agent]:
    return settings.load(
        Agent, folder / "agent.toml", drop_in=folder / "agent.d", env_prefix="TOCSIN_AGENT", environ=environ or {}
    )


@pytest.mark.parametrize("case", sorted(one.name for one in CASES.iterdir()))
def test_what_is_wrong_is_said_with_place_and_remedy(case: str) -> None:
    folder = CASES / case
    environment = folder / "environment.toml"
    environ = tomllib.loads(environment.read_text(encoding="utf-8")) if environment.exists() else {}
    with pytest.raises(SettingsError) as wrong:
        load(folder, environ)
    told = str(wrong.value).replace(f"{folder}/", "")
    assert told.splitlines() == (folder / "expected.txt").read_text(encoding="utf-8").splitlines()


def test_tables_merge_lists_replace_and_the_environment_wins(tmp_path: Path) -> None:
    (tmp_path / "agent.toml").write_text(
        'collector = "c:1"\n[host]\ninterval = "5s"\nignore = ["a", "b"]\n[[device]]\nid = "one"\n', encoding="utf-8"
    )
    (tmp_path / "agent.d").mkdir()
    (tmp_path / "agent.d" / "20-late.toml").write_text(
        'host.processes_max = 7\ncollector = "late:1"\n', encoding="utf-8"
    )
    (tmp_path / "agent.d" / "10-early.toml").write_text(
        'collector = "early:1"\n\n[host]\nignore = ["c"]\n[[device]]\nid = "two"\n[[device]]\nid = "three"\n',
        encoding="utf-8",
    )
    (tmp_path / "agent.d" / ".hidden.toml").write_text("broken", encoding="utf-8")
    (tmp_path / "agent.d" / "notes.txt").write_text("broken", encoding="utf-8")
    loaded = load(
        tmp_path, {"TOCSIN_AGENT__HOST__ENABLED": "false", "TOCSIN_AGENT__SPOOL": "1GiB", "TOCSIN_AGENT_HOME": "other"}
    )
    assert loaded.value == Agent(
        collector="late:1",
        host=Host(interval=Duration("5s"), enabled=False, ignore=("c",), processes_max=7),
        spool=Size("1GiB"),
        device=(Device(id="two"), Device(id="three")),
    )
    places = {
        "collector": "agent.d/20-late.toml:2",
        "host.interval": "agent.toml:3",
        "host.ignore[0]": "agent.d/10-early.toml:4",
        "host.processes_max": "agent.d/20-late.toml:1",
        "device[1].id": "agent.d/10-early.toml:8",
        "device[1].snmp": "agent.d/10-early.toml:7",
        "full": "agent.toml:1",
    }
    assert {key: loaded.origin(key).replace(f"{tmp_path}/", "") for key in places} == places
    assert loaded.origin("host.enabled") == "environment TOCSIN_AGENT__HOST__ENABLED"
    assert loaded.is_written("host.enabled")
    assert not loaded.is_written("full")


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("007", "007"),
        ('"quoted"', "quoted"),
        ("plain words", "plain words"),
        ("true", "true"),
        ("1\nx = 2", "1\nx = 2"),
    ],
)
def test_the_environment_needs_no_quotes_where_text_is_wanted(tmp_path: Path, written: str, value: str) -> None:
    (tmp_path / "agent.toml").write_text("", encoding="utf-8")
    assert load(tmp_path, {"TOCSIN_AGENT__COLLECTOR": written}).value.collector == value


def test_the_environment_can_hold_lists_and_tables(tmp_path: Path) -> None:
    (tmp_path / "agent.toml").write_text('collector = "c"\n', encoding="utf-8")
    loaded = load(
        tmp_path, {"TOCSIN_AGENT__DEVICE": '[{id = "a", snmp = {version = "2c"}}]', "TOCSIN_AGENT__HOST__IGNORE": "[]"}
    )
    assert loaded.value.device == (Device(id="a", snmp=Snmp(version="2c")),)


def test_a_byte_order_mark_and_windows_line_ends_are_no_problem(tmp_path: Path) -> None:
    (tmp_path / "agent.toml").write_bytes(b'\xef\xbb\xbfcollector = "c"\r\n\r\n[host]\r\ninterval = "5s"\r\n')
    loaded = load(tmp_path)
    assert loaded.value.host.interval == 5000
    assert loaded.origin("host.interval") == f"{tmp_path}/agent.toml:4"


def test_files_that_cannot_be_read_are_all_named(tmp_path: Path) -> None:
    (tmp_path / "agent.d").mkdir()
    (tmp_path / "agent.d" / "a.toml").mkdir()
    (tmp_path / "agent.d" / "b.toml").write_bytes(b'x = "1"\ny = "\xff"\n')
    with pytest.raises(SettingsError) as wrong:
        load(tmp_path)
    assert str(wrong.value).replace(f"{tmp_path}/", "").splitlines() == [
        "agent.toml: cannot be read: No such file or directory",
        "agent.d/a.toml: cannot be read: Is a directory",
        "agent.d/b.toml:2: not UTF-8, save the file as UTF-8",
    ]


def test_a_file_beyond_its_bound_is_refused_and_not_read_whole(tmp_path: Path) -> None:
    with (tmp_path / "agent.toml").open("wb") as file:
        file.truncate(settings.FILE_BYTES_MAX + 1)
    with pytest.raises(SettingsError, match="has more than 16 MiB, split it into several files"):
        load(tmp_path)


def test_nesting_without_end_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"^x\.toml: nested too deeply$"):
        settings.parse(Agent, "a = " + "[" * 5000 + "]" * 5000, "x.toml")


def test_a_number_without_end_is_refused_on_its_line() -> None:
    with pytest.raises(SettingsError) as caught:
        settings.parse(Host, f'interval = "1s"\nprocesses_max = {"9" * 5000}\n', "agent.toml")
    assert str(caught.value) == "agent.toml:2: a whole number with thousands of digits"


def test_a_secret_is_never_in_a_message() -> None:
    with pytest.raises(SettingsError) as wrong:
        settings.parse(
            Agent,
            'collector = "c"\n[[device]]\nid = "a"\nsnmp = { version = "3", community = ["hunter2"], passwort = "hunter2" }\n',
            "x.toml",
        )
    assert "hunter2" not in str(wrong.value)
    assert len(wrong.value.problems) == 3


def test_many_problems_are_counted_beyond_the_bound() -> None:
    text = "\n".join(f"k{n} = 1" for n in range(150))
    with pytest.raises(SettingsError) as wrong:
        settings.parse(Agent, text, "x.toml")
    assert len(wrong.value.problems) == 151  # and `collector` is missing
    assert str(wrong.value).endswith("... and 51 more")


# ----------------------------------------------------------------------------------------------------- line numbers

LINES = """\
# comment with [brackets] and "quotes
title = "a # no comment"   # comment

[host]
a.b = 1
"odd key" = '''
[[not a table]]
x = 1
'''
after = [
  1, # ]
  { x = 1, y = [2, 3] },
]

[[device]]
id = "one"
[device.snmp]
version = "2c"
[[device.port]]
n = 1
[[device.port]]
n = 2
[[device]]
id = "]]"
[[device.port]]
n = 3
[a."b.c".d]
text = \"\"\"\\
x = 1 \\\"\"\" [host]
\"\"\"\"\"
last = 1979-05-27 07:32:00
"""


def test_every_key_is_found_on_its_line() -> None:
    tomllib.loads(LINES)
    assert scan(LINES) == {
        ("title",): 2,
        ("host",): 4,
        ("host", "a"): 5,
        ("host", "a", "b"): 5,
        ("host", "odd key"): 6,
        ("host", "after"): 10,
        ("host", "after", 0): 11,
        ("host", "after", 1): 12,
        ("host", "after", 1, "x"): 12,
        ("host", "after", 1, "y"): 12,
        ("host", "after", 1, "y", 0): 12,
        ("host", "after", 1, "y", 1): 12,
        ("device",): 15,
        ("device", 0): 15,
        ("device", 0, "id"): 16,
        ("device", 0, "snmp"): 17,
        ("device", 0, "snmp", "version"): 18,
        ("device", 0, "port"): 19,
        ("device", 0, "port", 0): 19,
        ("device", 0, "port", 0, "n"): 20,
        ("device", 0, "port", 1): 21,
        ("device", 0, "port", 1, "n"): 22,
        ("device", 1): 23,
        ("device", 1, "id"): 24,
        ("device", 1, "port"): 25,
        ("device", 1, "port", 0): 25,
        ("device", 1, "port", 0, "n"): 26,
        ("a",): 27,
        ("a", "b.c"): 27,
        ("a", "b.c", "d"): 27,
        ("a", "b.c", "d", "text"): 28,
        ("a", "b.c", "d", "last"): 31,
    }


keys = st.text(min_size=1, max_size=4).filter(lambda name: not is_secret(name))
leaves = st.booleans() | st.integers(-9, 10**12) | st.text(max_size=6)
values = st.recursive(
    leaves, lambda one: st.lists(one, max_size=3) | st.dictionaries(keys, one, max_size=3), max_leaves=8
)


@given(st.dictionaries(keys, values, max_size=4), st.dictionaries(keys, values, max_size=4))
def test_whatever_valid_toml_says_every_path_of_it_has_a_line(root: dict[str, Any], table: dict[str, Any]) -> None:
    lines = [f"{render({key: value})[2:-2]}" for key, value in root.items()]
    for _ in range(2):
        lines += ["[[zz-list]]", "# x", *(render({key: value})[2:-2] for key, value in table.items())]
    text = "\n".join(lines)
    expected = dict(_paths({**root, "zz-list": [table, table]}, ()))
    assert tomllib.loads(text) == {**root, "zz-list": [table, table]}
    found = scan(text)
    assert found.keys() == expected.keys()
    for n, key in enumerate(root, 1):
        assert found[(key,)] == n


def _paths(value: Any, path: tuple[Any, ...]) -> Any:
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*path, key), item
        yield from _paths(item, (*path, key))


# ------------------------------------------------------------------------------------------------------- quantities


@pytest.mark.parametrize(
    ("written", "quantity"),
    [
        (Duration("500ms"), 500),
        (Duration("1.5s"), 1500),
        (Duration("1h30m"), 5_400_000),
        (Duration("7d"), 604_800_000),
        (Duration("0s"), 0),
        (Size("0B"), 0),
        (Size("1.5KiB"), 1536),
        (Size("64KB"), 64_000),
        (Size("256MiB"), 268_435_456),
        (Ratio("99.9%"), 0.999),
        (Ratio("100%"), 1.0),
    ],
)
def test_quantities_are_read_as_written(written: float, quantity: float) -> None:
    assert written == quantity


@given(st.integers(0, DURATION_MS_MAX), st.integers(0, SIZE_BYTES_MAX), st.floats(0, 1))
def test_quantities_are_written_as_they_are_read(ms: int, size: int, share: float) -> None:
    assert Duration(str(Duration(ms))) == ms
    assert Size(str(Size(size))) == size
    shown = str(Ratio(share))
    assert Ratio.parse(shown if shown.endswith("%") else float(shown)) == share


@pytest.mark.parametrize(
    ("kind", "written", "problem"),
    [
        (Duration, 5, '5 has no unit, write "5s", "5m" or "5ms"'),
        (Duration, "5", '"5" is not a duration such as'),
        (Duration, "5 weeks", '"5 weeks" is not a duration such as'),
        (Duration, "-5s", '"-5s" is not a duration such as'),
        (Duration, "0.5ms", '"0.5ms" is finer than a millisecond, write whole milliseconds'),
        (Duration, "99999d", '"99999d" is too long, at most "3650d"'),
        (Duration, True, "expected a duration such as"),
        (Size, 5.5, '5.5 has no unit, write "5.5MiB", "5.5KiB" or "5.5B"'),
        (Size, "5 mb", '"5 mb" is not a size such as'),
        (Size, "0.5B", '"0.5B" is not a whole number of bytes'),
        (Size, "9999999999TiB", '"9999999999TiB" is too large, at most "1048576TiB"'),
        (Ratio, 85, '85 is not from 0 to 1, write 0.85 or "85%"'),
        (Ratio, "101%", '"101%" is more than the whole, write at most "100%"'),
        (Ratio, "0.5", '"0.5" is not a share such as 0.85 or "85%"'),
        (Ratio, float("nan"), "nan is not from 0 to 1"),
    ],
)
def test_a_bad_quantity_is_refused_with_the_right_form(kind: Any, written: object, problem: str) -> None:
    with pytest.raises(ValueError) as wrong:
        kind.parse(written)
    assert str(wrong.value).startswith(problem)


# ------------------------------------------------------------------------------------------------- settings in force


def test_settings_in_force_are_printed_as_toml_with_their_places() -> None:
    text = (
        'collector = "c:1"\n[host]\ninterval = "90s"\n[[device]]\nid = "a"\nname.en = "x"\n'
        'snmp = { version = "2c", community = "hunter2" }\n[window."odd name"]\nstart = "1h"\nend = "2h"\n'
    )
    loaded = settings.parse(Agent, text, "x.toml")
    printed = effective(loaded)
    assert printed == EFFECTIVE
    shown = settings.parse(Agent, printed, "y.toml").value
    unsecret = msgspec.structs.replace(loaded.value.device[0], snmp=Snmp(version="2c"))
    assert shown == msgspec.structs.replace(loaded.value, device=(unsecret,))


EFFECTIVE = """\
collector = "c:1"  # x.toml:1
spool = "256MiB"  # default
full = "90%"  # default
mode = "quiet"  # default
state = "/var/lib/tocsin"  # default

[host]
interval = "1m30s"  # x.toml:3
enabled = true  # default
ignore = []  # default
processes_max = 50  # default

[[device]]
id = "a"  # x.toml:5
parents = []  # default

[device.name]
en = "x"  # x.toml:6

[device.snmp]
version = "2c"  # x.toml:7
# community: [redacted]  # x.toml:7
timeout = "2s"  # default

[window]

[window."odd name"]
start = "1h"  # x.toml:9
end = "2h"  # x.toml:10
"""


@pytest.mark.parametrize(
    "name",
    ["token", "password", "snmp_community", "auth-key", "apiKey", "PRIVATE_KEY", "client_secret", "key", "Cookie"],
)
def test_names_of_secrets_are_known(name: str) -> None:
    assert is_secret(name)


@pytest.mark.parametrize(
    "name", ["incident_key", "secret_file", "keyboard", "tokens_max", "series_key", "monkey", "spin"]
)
def test_names_that_only_sound_like_secrets_are_shown(name: str) -> None:
    assert not is_secret(name)


def test_exit_codes_keep_their_meaning() -> None:
    codes = {name: code for name, code in vars(exits).items() if name.isupper() and isinstance(code, int)}
    assert codes == {
        "OK": 0,
        "PROBLEM": 1,
        "USAGE": 2,
        "WARNINGS": 3,
        "UNREACHABLE": 4,
        "REFUSED": 5,
        "EX_CONFIG": 78,
        "INTERRUPTED": 130,
    }
