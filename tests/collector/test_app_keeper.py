"""What is put in force and when: a mistake in the files changes nothing, and what cannot be put in force is no change."""

import asyncio
from collections.abc import Iterable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tocsin_collector.app import Collector
from tocsin_collector.config import CollectorConfig, paths
from tocsin_collector.configuration import Sources
from tocsin_collector.core.model import Config, Device, Registry, Settings, Site, SnmpAccess
from tocsin_collector.ingest.roster import Agent
from tocsin_collector.keeper import Keeper, held_names
from tocsin_collector.registry_file import Origins, RegistryFiles
from tocsin_proto import records
from tocsin_proto.codec import encode_collector
from tocsin_proto.settings import SettingsError


class Shells:
    """Files, pipeline and agents as lists: what was done is remembered in order."""

    def __init__(self, *devices: Device) -> None:
        self.devices = devices
        self.done: list[object] = []

    def read(self) -> Sources:
        registry = Registry(0, (Site("plant"),), self.devices)
        return Sources(RegistryFiles(registry, Origins({})), (), Settings())

    async def configure(self, config: Config) -> None:
        self.done.append(config)

    def agents(self) -> Iterable[Agent]:
        return [Agent("probe-1", "u", "probe-1", "plant", "", "", 0, 0)]

    async def refresh(self) -> None:
        self.done.append("refreshed")

    def assign(self, agent: str, assignment: records.Assignment) -> None:
        encode_collector(assignment)
        self.done.append(agent)


def polled(count: int) -> tuple[Device, ...]:
    return tuple(
        Device(f"d-{n}", "plant", address="192.0.2.1", watched_by="probe-1", snmp=SnmpAccess()) for n in range(count)
    )


def test_a_registry_that_no_agent_could_be_told_of_is_not_put_in_force() -> None:
    async def main() -> None:
        shells = Shells(*polled(2))
        keeper = Keeper(None, shells.read, shells, shells)
        before = await keeper.reload()
        shells.done.clear()
        shells.devices = polled(20_001)
        with pytest.raises(SettingsError, match="20001 devices, at most 20000"):
            await keeper.reload()
        assert shells.done == []
        assert keeper.in_force is before
        assert keeper.held("d-1") is not None
        assert keeper.held("d-2000") is None
        await keeper.enrolled("edge-9", "plant", "edge-9")

    asyncio.run(main())


def test_an_enrolment_that_the_files_forbid_by_now_changes_nothing_that_is_in_force() -> None:
    async def main() -> None:
        shells = Shells()
        keeper = Keeper(None, shells.read, shells, shells)
        before = await keeper.reload()
        # The files changed between the judgement of the token and now: probe-1 is a device that another agent polls.
        contested = Device("probe-1", "plant", address="192.0.2.1", watched_by="edge-1", snmp=SnmpAccess())
        keeper._sources = Sources(
            RegistryFiles(Registry(0, (Site("plant"),), (contested,)), Origins({})), (), Settings()
        )
        await keeper.enrolled("probe-1", "plant", "probe-1")
        assert keeper.in_force is before

    asyncio.run(main())


def test_the_names_that_files_hold_are_their_devices_and_whoever_watches_one() -> None:
    held = held_names(Registry(1, (Site("plant"),), (*polled(1), Device("server-1", "plant"))))
    assert sorted(held) == ["d-0", "probe-1", "server-1"]
    assert held["d-0"].snmp is not None
    assert held["probe-1"].snmp is None


def test_a_reload_that_fails_in_whatever_way_ends_nothing_and_is_logged(tmp_path: Path) -> None:
    """The reader of the files is at fault here, not the files."""

    def broken() -> Sources:
        raise ZeroDivisionError("a fault of ours")

    async def main() -> None:
        config, file = CollectorConfig(), tmp_path / "collector.toml"
        collector = Collector(config, paths(config, file, {}, is_root=True), {})
        shells = Shells()
        collector._keeper = Keeper(None, broken, shells, shells)
        with capture_logs() as logs:
            await collector._reload()
        assert [log["event"] for log in logs] == ["configuration not taken, the old one stays in force"]

    asyncio.run(main())
