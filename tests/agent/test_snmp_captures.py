"""The generic profiles on walks of real devices, against what another monitoring system made of the same walks."""

import asyncio
import json
from collections import Counter
from typing import Any

import pytest
from tests.support.captures import FOLDER, capture, capture_names

from tocsin_agent.probes import Measurement, ProbeError
from tocsin_agent.probes.snmp import SnmpProbe, SnmpSettings
from tocsin_agent.snmp.errors import SnmpResult
from tocsin_collector.demo.devices import Device
from tocsin_proto.codec import layout_id
from tocsin_proto.units import Duration

# Of the first tier: what stands in plants, and the odd ones. The others are run by `make check`.
FIRST = {"hirschmann_ms4128", "moxa-awk_4131a", "scalance_xc206-2sfp", "sixnet", "vmware-esxi", "windows_svr_2019_1809"}
NAMES = [name if name in FIRST else pytest.param(name, marks=pytest.mark.check) for name in capture_names()]


def polled(name: str) -> tuple[list[Measurement], dict[str, str], str]:
    async def run() -> tuple[list[Measurement], dict[str, str], str]:
        device = Device(name, capture(name))
        settings = SnmpSettings(credential="x", port=await device.start(), timeout=Duration("5s"))
        probe = SnmpProbe(name, "127.0.0.1", settings, lambda _: "public")
        said: list[Measurement] = []
        error = ""
        try:
            async for each in probe.collect():
                if isinstance(each, Measurement):
                    said.append(each)
        except ProbeError as failed:
            error = str(failed)
        await probe.close()
        device.stop()
        return said, probe.identity, error

    return asyncio.run(run())


@pytest.mark.skipif(not NAMES, reason="needs the captures of real devices beside the repository")
@pytest.mark.parametrize("name", NAMES)
def test_a_real_devices_walk_is_read_without_error_and_its_ports_are_as_others_see_them(name: str):
    said, identity, error = polled(name)
    expected = json.loads((FOLDER / f"{name}.expected.json").read_text())
    assert error == ""
    assert said[0].series.metric == "device.reachable"
    assert said[0].value == 1
    assert said[-1].series.metric == "snmp.result"
    assert said[-1].value == SnmpResult.OK
    assert identity["object_id"] == expected["os"]["sysObjectID"].removeprefix(".")
    twice = [series for series, count in Counter(each.series for each in said).items() if count > 1]
    assert twice == [], "no series is measured twice in one poll"
    assert layout_id(tuple(each.series for each in said[:1000])), "every series may go over the wire"
    assert _ports(said) >= _expected_ports(expected)


def _ports(said: list[Measurement]) -> Counter[tuple[str, str]]:
    """(interface, state); a port that was switched off counts as down, as it does for the others."""
    found: Counter[tuple[str, str]] = Counter()
    for each in said:
        if each.series.metric == "if.oper_status":
            state = dict(each.series.states)[int(each.value)]
            found[dict(each.series.labels)["interface"], "down" if state == "shut" else state] += 1
    return found


def _expected_ports(expected: dict[str, Any]) -> Counter[tuple[str, str]]:
    words = {"notPresent": "not present", "lowerLayerDown": "lower layer down"}
    found: Counter[tuple[str, str]] = Counter()
    for port in expected.get("ports", []):
        state, kind = port["ifOperStatus"], port["ifType"]
        name = " ".join((port["ifName"] or port["ifDescr"] or "").split())
        if state and name and kind != "softwareLoopback":
            found[name, words.get(state, state)] += 1
    return found
