import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import msgspec
import pytest

from tocsin_collector import config, configuration, registry_file, rules_file
from tocsin_proto.settings import SettingsError

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "config" / "collector.toml"


def uncommented(text: str) -> str:
    """Golden files write prose as "# text" and settings as "#key = value"."""
    return re.sub(r"^#(?=[a-z\[])", "", text, flags=re.MULTILINE)


def keys_of(struct: Any, path: str = "") -> Iterator[str]:
    for field in msgspec.structs.fields(struct):
        inner = get_args(field.type)[0] if get_origin(field.type) is tuple else field.type
        if isinstance(inner, type) and issubclass(inner, msgspec.Struct):
            yield from keys_of(inner, f"{path}{field.encode_name}.")
        else:
            yield path + field.encode_name


def test_the_golden_file_as_it_stands_changes_nothing() -> None:
    assert config.parse(GOLDEN.read_text(), "collector.toml").value == config.CollectorConfig()


def test_every_key_stands_in_the_golden_file_with_its_default() -> None:
    loaded = config.parse(uncommented(GOLDEN.read_text()), "collector.toml")

    assert msgspec.structs.replace(loaded.value, channel=()) == config.CollectorConfig()
    channel = config.Channel(id="desk", url="https://desk.example/hooks/tocsin", secret_file="desk")
    assert loaded.value.channel == (channel,)
    for key in keys_of(config.CollectorConfig):
        written = re.sub(r"^channel\.", "channel[0].", key)
        assert loaded.is_written(written), f"{key} is missing from config/collector.toml"


def test_the_examples_of_registry_and_rules_load_when_uncommented(tmp_path: Path) -> None:
    for name in ("registry", "rules"):
        (tmp_path / name).mkdir()
        for path in (ROOT / "config" / name).glob("*.toml"):
            (tmp_path / name / path.name).write_text(uncommented(path.read_text()))

    files = registry_file.read(tmp_path / "registry")
    rules = {rule.id: rule for rule in rules_file.read(tmp_path / "rules")}

    assert [device.id for device in files.registry.devices] == ["sw-hall-3"]
    assert "load-high" not in rules
    assert not rules["archive-full"].is_built_in
    assert rules["door-open"].levels[0].is_state == (1,)
    assert rules["backup-silent"].levels[0].no_data_ms == 2 * 3_600_000


@pytest.mark.parametrize("folder", sorted((ROOT / "config" / "examples").iterdir()), ids=lambda path: path.name)
def test_every_example_is_sound_with_its_hosts_enrolled(folder: Path) -> None:
    loaded = config.load(folder / "collector.toml", {})
    found = config.paths(loaded.value, folder / "collector.toml", {"HOME": "/home/ops"}, is_root=False)
    sources = configuration.read(loaded.value, found)

    composed = configuration.compose(sources, [configuration.Enrolled("edge-1", "shanghai")], None)

    assert composed.registry.version == 1
    assert configuration.assignment(composed.registry, "edge-1").devices


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[web]\nlisten = "8080"', 'c.toml:2: web.listen: "8080" has no port, write "0.0.0.0:7443"'),
        ('[ingest]\nlisten = "::1:7443"', "an IPv6 address stands in brackets"),
        ('[web]\n\nurl = "tocsin.example"', 'c.toml:3: web.url: "tocsin.example" is no address of a page'),
        ('[web]\nkey = "web.key"', "c.toml:2: web.key: needs web.certificate beside it"),
        ('[engine]\nsilent_after = "1s"', "c.toml:2: engine.silent_after: is too small"),
        ("[engine]\nsilent_afer = 1", 'c.toml:2: engine.silent_afer: unknown key, did you mean "silent_after"?'),
        ('[store]\njournal_max = "8"', "c.toml:2: store.journal_max:"),
        (
            '[[channel]]\nid = "a"\nurl = "http://x"\nsecret_file = "a"\n'
            '[[channel]]\nid = "a"\nurl = "ftp://x"\nsecret_file = "a"',
            'c.toml:6: channel[1].id: "a" stands twice',
        ),
        ('[[channel]]\nid = "a"\nurl = "ftp://x"\nsecret_file = "a"', 'c.toml:3: channel[0].url: "ftp://x" cannot'),
        ('[[channel]]\nid = "a"\nurl = "http://x"', "channel[0].secret_file: missing"),
    ],
)
def test_a_mistake_is_told_with_file_line_and_key(text: str, message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        config.parse(text, "c.toml")
    assert message in str(caught.value)


def test_drop_ins_and_the_environment_win_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "collector.toml"
    file.write_text('state = "here"\n[web]\nlisten = "127.0.0.1:1"\nlang = "zh_CN"\n')
    (tmp_path / "collector.d").mkdir()
    (tmp_path / "collector.d" / "10-web.toml").write_text('[web]\nlisten = "127.0.0.1:2"\n')

    loaded = config.load(file, {"TOCSIN_COLLECTOR__INGEST__LISTEN": "127.0.0.1:3"})

    assert loaded.value.web.listen == "127.0.0.1:2"
    assert loaded.value.web.lang == "zh_CN"
    assert loaded.value.ingest.listen == "127.0.0.1:3"
    assert loaded.origin("web.listen") == f"{tmp_path}/collector.d/10-web.toml:2"


def test_a_state_folder_whose_socket_the_kernel_would_refuse_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="choose a shorter folder"):
        config.paths(config.CollectorConfig(state="x" * 120), tmp_path / "collector.toml", {}, is_root=True)


def test_paths_follow_systemd_root_and_user() -> None:
    file, plain = Path("/etc/tocsin/collector.toml"), config.CollectorConfig()

    by_systemd = config.paths(plain, file, {"STATE_DIRECTORY": "/var/lib/private/tocsin"}, is_root=False)
    by_root = config.paths(plain, file, {}, is_root=True)
    by_user = config.paths(plain, file, {"HOME": "/home/ops"}, is_root=False)

    assert by_systemd.state == Path("/var/lib/private/tocsin")
    assert by_root.state == Path("/var/lib/tocsin-collector")
    assert by_root.registry == Path("/etc/tocsin/registry")
    assert by_user.state == Path("/home/ops/.local/state/tocsin-collector")
    assert by_user.secrets == by_user.state / "secrets"


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [("0.0.0.0:7443", "0.0.0.0", 7443), ("[::]:0", "::", 0), (":80", "0.0.0.0", 80), ("a.example:1", "a.example", 1)],
)
def test_addresses_are_read_and_written_back(text: str, host: str, port: int) -> None:
    assert config.parse_address(text) == (host, port)
    assert config.parse_address(str(config.parse_address(text))) == (host, port)
