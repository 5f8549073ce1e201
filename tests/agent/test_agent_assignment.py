"""What an agent takes from its collector and what it refuses, and that it remembers."""

import asyncio

import msgspec
import pytest
from tests.agent.test_agent_sampler import Spool
from tests.support.virtual_time import VirtualClocks, run_virtual

from tocsin_agent import assignment
from tocsin_agent.assignment import decide
from tocsin_agent.config import AgentSettings, AssignmentSettings, LocalSnmp
from tocsin_agent.credentials import Credentials
from tocsin_agent.devices import Devices
from tocsin_agent.sampler import Sampler
from tocsin_proto.records import AssignedDevice, Assignment, ProbeRequest

GOOD = b'{"version": "2c", "credential": "plant", "interval": "10s"}'


def device(id_: str, kind: str = "snmp", settings: bytes = GOOD, address: str = "192.0.2.1") -> AssignedDevice:
    return AssignedDevice(id_, address, kind, settings)


@pytest.mark.parametrize(
    ("one", "why"),
    [
        (device("d", "modbus"), "modbus is not known to this agent's version"),
        (device("local"), "the agent's own file has a device of this id"),
        (device("d", address=""), "no address"),
        (device("d", settings=b"{"), "snmp settings:"),
        (device("d", settings=b'["x"]'), "snmp settings:"),
        (device("d", settings=b'{"credential": "x", "prot": 5}'), 'snmp.prot: unknown key, did you mean "port"?'),
        (device("d", settings=b'{"credential": "x", "interval": 10}'), "has no unit"),
        (device("d", settings=b'{"credential": "x", "version": "3"}'), "SNMPv3"),
        (device("d", settings=b"{}"), "credential"),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_reason(one, why):
    decision = decide(Assignment("e", (one, device("good"))), ("snmp",), {"local"})
    assert [kept.id for kept in decision.devices] == ["good"]
    (line,) = decision.refused
    assert line.startswith(f"device {one.id}: ")
    assert why in line


def test_a_kind_the_local_file_does_not_accept_is_refused():
    assert decide(Assignment("e", (device("d"),)), (), ()) == (
        (),
        ("device d: snmp is not accepted here (assignment.accept)",),
    )


def test_the_cache_holds_what_was_assigned_and_damage_is_not_fatal(tmp_path):
    path = tmp_path / "assignment.json"
    assert assignment.load(path) is None
    given = Assignment("etag-1", (device("a"), device("b", settings=bytes(range(256)))))
    assignment.save(path, given)
    assert assignment.load(path) == given
    assert path.stat().st_mode & 0o077 == 0
    path.write_bytes(path.read_bytes()[:-10])
    assert assignment.load(path) is None
    assignment.save(tmp_path / "no" / "folder.json", given)  # logged, not raised


def test_an_assignment_starts_and_stops_devices_without_touching_the_others(tmp_path):
    cache = tmp_path / "assignment.json"
    secret = tmp_path / "community"
    secret.write_text("public\n")
    local = AgentSettings(snmp=(LocalSnmp(id="mine", address="192.0.2.9", community_file=str(secret)),))

    async def main():
        sampler = Sampler(Spool(), VirtualClocks())
        devices = Devices(sampler, cache)
        devices.configure(local, Credentials([tmp_path]))
        assert set(sampler.targets) == {"snmp/mine"}
        report = devices.apply(Assignment("1", (device("a"), device("b"), device("mine"), device("c", "s7"))))
        assert report.etag == "1"
        assert len(report.refused) == 2
        before = sampler.targets
        assert set(before) == {"snmp/mine", "snmp/a", "snmp/b"}
        report = devices.apply(Assignment("2", (device("b", address="192.0.2.77"), device("a"), device("x"))))
        after = sampler.targets
        assert set(after) == {"snmp/mine", "snmp/a", "snmp/b", "snmp/x"}
        assert after["snmp/a"] is before["snmp/a"]
        assert after["snmp/b"] is not before["snmp/b"]
        answer = await devices.answer(ProbeRequest(7, "nobody"))
        assert (answer.request, answer.reachable) == (7, False)
        # The local file changes its mind: what was assigned stays known, and comes back.
        devices.configure(AgentSettings(assignment=AssignmentSettings(accept=())), Credentials([tmp_path]))
        assert sampler.targets == {}
        devices.configure(local, Credentials([tmp_path]))
        assert set(sampler.targets) == {"snmp/mine", "snmp/a", "snmp/b", "snmp/x"}

    run_virtual(main())

    async def restarted():
        sampler = Sampler(Spool(), VirtualClocks())
        devices = Devices(sampler, cache)
        devices.configure(AgentSettings(), Credentials([]))
        devices.restore()
        return set(sampler.targets), devices.report.etag

    assert asyncio.run(restarted()) == ({"snmp/a", "snmp/b", "snmp/x"}, "2")


def test_settings_that_name_an_unknown_profile_change_nothing(tmp_path):
    async def main():
        sampler = Sampler(Spool(), VirtualClocks())
        devices = Devices(sampler, tmp_path / "a.json")
        devices.configure(AgentSettings(), Credentials([]))
        wrong = LocalSnmp(id="d", address="192.0.2.1", community_file="x", profile="no-such-profile")
        with pytest.raises(ValueError, match="no-such-profile"):
            devices.configure(AgentSettings(snmp=(wrong,)), Credentials([]))
        assert sampler.targets == {}

    run_virtual(main())


@pytest.mark.parametrize("name", ["", ".hidden", "../etc/passwd", "a/b", "a\\b", "a\0b", "absent"])
def test_a_credential_is_a_plain_file_name_in_a_known_folder(tmp_path, name):
    with pytest.raises(LookupError):
        Credentials([tmp_path])(name)


def test_a_credential_is_read_anew_from_the_first_folder_that_has_it(tmp_path):
    first, second = tmp_path / "1", tmp_path / "2"
    first.mkdir()
    second.mkdir()
    (second / "plant").write_text("old\n")
    credentials = Credentials([first, second])
    assert credentials("plant") == "old"
    (first / "plant").write_text("new")
    assert credentials("plant") == "new"
    for content in (b"", b"\xff\xfe", b"x" * 70_000):
        (first / "plant").write_bytes(content)
        with pytest.raises(LookupError) as caught:
            credentials("plant")
        assert "xxxx" not in str(caught.value)


def test_settings_survive_the_way_over_json():
    settings = assignment.settings_of("snmp", GOOD)
    assert msgspec.structs.asdict(settings)["interval"] == 10_000
