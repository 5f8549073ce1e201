from pathlib import Path

import msgspec
import pytest

from tocsin_collector import configuration, registry_file
from tocsin_collector.configuration import Enrolled, Sources
from tocsin_collector.core.model import Config, Device, Registry, Settings, Site, SnmpAccess
from tocsin_collector.core.registry import check
from tocsin_proto.settings import SettingsError

CASES = Path(__file__).parents[1] / "cases" / "registry"
EDGE_1 = Enrolled("edge-1", "plant")


def enrolled_of(folder: Path) -> list[Enrolled]:
    """Lines "name site [revoked]", "-" for no site."""
    path = folder / "enrolled.txt"
    rows = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
    return [Enrolled(row[0], row[1].strip("-"), is_revoked="revoked" in row[2:]) for row in rows]


def outcome(folder: Path) -> tuple[str, str]:
    """What the folder comes to: (problems, devices), one of them empty."""
    try:
        sources = Sources(registry_file.read(folder), (), Settings())
        registry = configuration.compose(sources, enrolled_of(folder), None).registry
    except SettingsError as error:
        return str(error).replace(f"{folder}/", "") + "\n", ""
    assert check(registry) == []
    lines = sorted(f"{d.id} {d.site} {d.kind}{' agent' if d.is_agent else ''}" for d in registry.devices)
    return "", "".join(f"{line}\n" for line in lines)


@pytest.mark.parametrize("folder", sorted(CASES.iterdir()), ids=lambda path: path.name)
def test_registry_case(folder: Path) -> None:
    expected = folder / "problems.txt", folder / "devices.txt"
    problems, devices = outcome(folder)
    assert problems == (expected[0].read_text() if expected[0].exists() else "")
    assert devices == (expected[1].read_text() if expected[1].exists() else "")


def sources(tmp_path: Path, text: str) -> Sources:
    (tmp_path / "plant.toml").write_text(text)
    return Sources(registry_file.read(tmp_path), (), Settings())


SWITCHES = """
[[site]]
id = "plant"
[[device]]
id = "sw-1"
site = "plant"
address = "192.0.2.1"
watched_by = "edge-1"
snmp = { credential = "plant", interval = "30s" }
[[device]]
id = "sw-2"
site = "plant"
address = "192.0.2.2"
watched_by = "edge-2"
snmp = {}
[[device]]
id = "printer"
site = "plant"
watched_by = "edge-1"
"""


def test_every_key_of_a_device_reaches_the_model(tmp_path: Path) -> None:
    text = """
    [[site]]
    id = "plant"
    name = { en = "Plant", zh = "工厂" }
    zone = "Asia/Shanghai"
    lines = ["line-1"]
    cell = 3
    [[device]]
    id = "sw-1"
    name = "Switch"
    site = "plant"
    line = "line-1"
    kind = "switch"
    address = "192.0.2.1"
    parents = ["core"]
    watched_by = "edge-1"
    owner = "network"
    tags = { role = "access" }
    snmp = { version = "1", credential = "c", port = 1161, profile = "p", interval = "5m", timeout = "1s", retries = 2 }
    """
    registry = sources(tmp_path, text).files.registry
    assert registry.sites == (Site("plant", {"en": "Plant", "zh": "工厂"}, "Asia/Shanghai", ("line-1",), 3),)
    access = SnmpAccess("1", "c", 1161, "p", 300_000, 1_000, 2)
    assert registry.devices == (
        Device(
            id="sw-1",
            site="plant",
            name={"en": "Switch"},
            line="line-1",
            address="192.0.2.1",
            kind="switch",
            parents=("core",),
            watched_by="edge-1",
            snmp=access,
            owner="network",
            tags={"role": "access"},
        ),
    )


def test_the_version_rises_only_when_the_content_changes(tmp_path: Path) -> None:
    first = configuration.compose(sources(tmp_path, SWITCHES), [EDGE_1], None)
    again = configuration.compose(sources(tmp_path, SWITCHES), [EDGE_1], first)
    other = configuration.compose(sources(tmp_path, SWITCHES), [EDGE_1, Enrolled("edge-2", "plant")], first)

    assert first.registry.version == 1
    assert again is first
    assert other.registry.version == 2


def test_sorting_the_files_anew_is_no_change(tmp_path: Path) -> None:
    first = configuration.compose(sources(tmp_path, SWITCHES), [EDGE_1], None)
    registry = first.registry
    turned = Registry(7, registry.sites[::-1], registry.devices[::-1])
    assert configuration.digest(Config(turned, first.rules, first.settings)) == configuration.digest(first)


def test_an_agent_is_assigned_what_it_watches_by_snmp_and_nothing_else(tmp_path: Path) -> None:
    registry = sources(tmp_path, SWITCHES).files.registry

    assigned = configuration.assignment(registry, "edge-1")

    (device,) = assigned.devices
    assert (device.id, device.address, device.kind) == ("sw-1", "192.0.2.1", "snmp")
    assert msgspec.json.decode(device.settings) == {
        "version": "2c",
        "credential": "plant",
        "port": 161,
        "interval": "30s",
        "timeout": "2s",
        "retries": 1,
    }


def test_the_etag_of_an_assignment_changes_with_its_content_and_only_then(tmp_path: Path) -> None:
    registry = sources(tmp_path, SWITCHES).files.registry
    shorter = sources(tmp_path, SWITCHES.replace('"30s"', '"20s"')).files.registry

    etags = [configuration.assignment(r, agent).etag for agent in ("edge-1", "edge-2", "edge-3") for r in (registry,)]

    assert len(set(etags)) == 3
    assert etags[0] == configuration.assignment(registry, "edge-1").etag
    assert configuration.assignment(shorter, "edge-1").etag != etags[0]
    assert configuration.assignment(shorter, "edge-2").etag == etags[1]
    assert configuration.assignment(registry, "edge-3").devices == ()


def polled(count: int, agent: str, address: str = "192.0.2.1") -> tuple[Device, ...]:
    return tuple(
        Device(f"d-{n}", "plant", address=address, watched_by=agent, snmp=SnmpAccess(), is_agent=False)
        for n in range(count)
    )


def test_more_devices_than_an_agent_can_be_told_are_refused_where_they_are_written(tmp_path: Path) -> None:
    head = '[[site]]\nid = "plant"\n'
    stanza = '[[device]]\nid = "d-{}"\nsite = "plant"\naddress = "192.0.2.1"\nwatched_by = "edge-1"\nsnmp = {{}}\n'
    written = sources(tmp_path, head + "".join(stanza.format(n) for n in range(3)))
    many = Registry(0, written.files.registry.sites, polled(20_001, "edge-1"))
    with pytest.raises(SettingsError) as caught:
        configuration.compose(written._replace(files=written.files._replace(registry=many)), [EDGE_1], None)
    assert [p.what for p in caught.value.problems] == [
        "edge-1 is given 20001 devices, at most 20000 are allowed; give some to another agent"
    ]
    long = Registry(0, written.files.registry.sites, polled(3, "edge-1", "a" * 1025))
    with pytest.raises(SettingsError) as caught:
        configuration.compose(written._replace(files=written.files._replace(registry=long)), [EDGE_1], None)
    assert str(caught.value) == f"{tmp_path}/plant.toml:3: device.d-0: address: 1025 characters, at most 1024"
    large = Registry(0, written.files.registry.sites, polled(19_000, "edge-1", "a" * 200))
    with pytest.raises(SettingsError, match="the 19000 devices of edge-1 together make too large a message"):
        configuration.compose(written._replace(files=written.files._replace(registry=large)), [EDGE_1], None)


def test_every_agent_is_assigned_what_it_watches_in_one_go(tmp_path: Path) -> None:
    enrolled = [EDGE_1, Enrolled("edge-2", "plant"), Enrolled("edge-3", "plant")]
    registry = configuration.compose(sources(tmp_path, SWITCHES), enrolled, None).registry
    every = configuration.assignments(registry)
    assert sorted(every) == ["edge-1", "edge-2", "edge-3"]
    assert all(every[agent] == configuration.assignment(registry, agent) for agent in every)


def test_a_folder_that_is_not_there_is_an_empty_registry(tmp_path: Path) -> None:
    assert registry_file.read(tmp_path / "none").registry == Registry()


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_bytes(b'[[site]]\nid = "\xff"\n')
    with pytest.raises(SettingsError, match=r"a\.toml:2: not UTF-8"):
        registry_file.read(tmp_path)
