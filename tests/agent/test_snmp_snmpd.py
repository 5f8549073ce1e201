"""The SNMP probe against Debian's real snmpd, compared with what Net-SNMP's own client sees."""

import asyncio
from pathlib import Path

import pytest
from tests.support.links import Link, link
from tests.support.snmpd import Snmpd

from tocsin_agent.probes import Measurement
from tocsin_agent.probes.snmp import SnmpProbe, SnmpSettings
from tocsin_agent.snmp.client import Target, UdpSnmpClient
from tocsin_agent.snmp.codec import Version
from tocsin_agent.snmp.errors import SnmpResult
from tocsin_agent.snmp.values import Missing, oid, text
from tocsin_proto.records import Series
from tocsin_proto.units import Duration

pytestmark = pytest.mark.debian

IF_DESCR = "1.3.6.1.2.1.2.2.1.2"
IF_TYPE = "1.3.6.1.2.1.2.2.1.3"
IF_NAME = "1.3.6.1.2.1.31.1.1.1.1"


@pytest.fixture
def device(tmp_path: Path):
    with Snmpd(tmp_path) as running:
        yield running


def probe_of(device: Snmpd, community: str | None = None) -> SnmpProbe:
    settings = SnmpSettings(credential="x", port=device.port, timeout=Duration("300ms"), retries=1)
    return SnmpProbe("real", device.host, settings, lambda _: community or device.community)


async def values_of(probe: SnmpProbe) -> dict[Series, float]:
    return {said.series: said.value async for said in probe.collect() if isinstance(said, Measurement)}


def by_metric(values: dict[Series, float]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for series, value in values.items():
        labels = ",".join(value for _, value in series.labels)
        found.setdefault(series.metric, {})[labels] = value
    return found


def test_a_real_agents_system_interfaces_and_storage_are_what_snmpbulkwalk_sees(device: Snmpd):
    async def run() -> tuple[dict[str, dict[str, float]], dict[str, str]]:
        probe = probe_of(device)
        values = by_metric(await values_of(probe))
        await probe.close()
        return values, probe.identity

    values, identity = asyncio.run(run())
    names = device.walk(IF_NAME)
    kinds = device.walk(IF_TYPE)
    real = {
        found.removeprefix("STRING: ").strip('"')
        for name, found in names.items()
        if not kinds[f"{IF_TYPE}.{name.rsplit('.', 1)[1]}"].endswith(" 24")
    }
    assert values["device.reachable"] == {"": 1}
    assert values["snmp.result"] == {"": SnmpResult.OK}
    assert set(values.get("if.oper_status", {})) == real
    assert set(values.get("if.in_bytes", {})) == real
    assert values["system.uptime_seconds"][""] > 60, "the host's uptime: this snmpd itself is seconds old"
    assert 0 < values["memory.used_ratio"][""] < 1
    assert set(values["load.average"]) == {"1", "5", "15"}
    assert "/" in values["disk.used_ratio"]
    assert identity["name"] == device.name
    assert identity["profile"] == "net-snmp"


def test_our_walk_of_the_whole_mib_has_every_object_that_snmpbulkwalk_has(device: Snmpd):
    root = "1.3.6.1.2.1"

    async def run() -> set[str]:
        client = UdpSnmpClient(Target(device.host, device.port, Version.V2C, b"public", 2.0, 2))
        rows = await client.walk(oid(root))
        client.close()
        return {".".join(map(str, index)) for index in rows}

    ours = asyncio.run(run())
    theirs = {name.removeprefix(f"{root}.") for name in device.walk(root)}
    # Connections, processes and such come and go between the two walks; the tables of this test do not.
    still = ("1.", "2.", "31.1.1.")
    assert len(theirs) > 100
    assert {name for name in ours if name.startswith(still)} == {name for name in theirs if name.startswith(still)}


def test_objects_that_are_not_there_are_missing_and_not_errors(device: Snmpd):
    absent, system = oid("1.3.6.1.4.1.58888.1.0"), oid("1.3.6.1.2.1.1.5.0")
    for version in Version:

        async def run(version: Version = version) -> dict[tuple[int, ...], object]:
            client = UdpSnmpClient(Target(device.host, device.port, version, b"public", 2.0, 2))
            try:
                return await client.get([absent, system])
            finally:
                client.close()

        found = asyncio.run(run())
        assert isinstance(found[absent], Missing)
        assert text(found[system]) == device.name  # type: ignore[arg-type]


def test_a_real_agent_that_stops_is_unreachable_and_one_that_comes_back_is_reachable(device: Snmpd):
    async def run() -> list[dict[str, dict[str, float]]]:
        probe = probe_of(device)
        seen = [by_metric(await values_of(probe))]
        device.stop()
        seen.append(by_metric(await values_of(probe)))
        device.start()
        seen.append(by_metric(await values_of(probe)))
        await probe.close()
        return seen

    before, down, after = asyncio.run(run())
    assert before["device.reachable"] == {"": 1}
    assert down == {"device.reachable": {"": 0}, "snmp.result": {"": SnmpResult.REFUSED}}
    assert after["device.reachable"] == {"": 1}
    assert set(after) == set(before)


def test_a_real_agent_keeps_silent_at_a_wrong_community(device: Snmpd):
    async def run() -> dict[str, dict[str, float]]:
        probe = probe_of(device, community="guess")
        values = by_metric(await values_of(probe))
        await probe.close()
        return values

    assert asyncio.run(run()) == {"device.reachable": {"": 0}, "snmp.result": {"": SnmpResult.NO_ANSWER}}


@pytest.mark.check
def test_a_real_interface_that_loses_its_cable_is_down_and_up_again(tmp_path: Path):
    """snmpd looks at the interfaces anew about every 3 s: this test waits for that, as a poller does."""

    async def until(probe: SnmpProbe, name: str, state: int) -> bool:
        for _ in range(100):
            if by_metric(await values_of(probe))["if.oper_status"][name] == state:
                return True
            await asyncio.sleep(0.1)
        return False

    async def run(device: Snmpd, cable: Link) -> None:
        probe = probe_of(device)
        assert await until(probe, cable.name, 1)
        cable.cut()
        assert await until(probe, cable.name, 2)
        assert by_metric(await values_of(probe))["if.admin_status"][cable.name] == 1
        cable.restore()
        assert await until(probe, cable.name, 1)
        await probe.close()

    with link() as cable, Snmpd(tmp_path) as device:
        asyncio.run(run(device, cable))
