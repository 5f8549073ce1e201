"""Debian's real snmpd as the device: a cable is pulled and put back, the daemon is stopped and started.

Real collector and agent processes, real enrolment, a real interface of this machine, and a receiver that verifies every
signature. Needs root and Debian's snmpd and iproute2.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.links import Link, link
from tests.support.receiver import SECRET, Call, Receiver
from tests.support.site import Site
from tests.support.snmpd import Snmpd

pytestmark = pytest.mark.debian

DEVICE, AGENT = "sw-real", "edge-1"
RULES_OF_THE_STORY = ("device-unreachable", "interface-down")
STORY_S_MAX = 30.0

REGISTRY = """
[[site]]
id = "plant"

[[device]]
id = "sw-real"
site = "plant"
address = "127.0.0.1"
watched_by = "edge-1"
snmp = {{ credential = "plant", port = {port}, interval = "1s", timeout = "300ms", retries = 2 }}
"""

# The built-in rule, for this one interface: tests beside this one make and cut interfaces of their own.
RULES = """
[[rule]]
id = "interface-down"
for_each = "if.oper_status"
where = {{ interface = "{interface}" }}
major = {{ becomes = ["down", "lower layer down"], after = "up" }}
affects = "degraded"
says = "{{interface}} on {{device}} is down"
"""

CHANNEL = """
[[channel]]
id = "desk"
url = "{url}"
secret_file = "desk"
"""


@pytest.fixture
def cable() -> Iterator[Link]:
    with link() as found:
        yield found


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Snmpd]:
    with Snmpd(tmp_path, community="hall-three") as running:
        yield running


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as running:
        yield running


@pytest.fixture
def site(tmp_path: Path, cable: Link, device: Snmpd, receiver: Receiver) -> Iterator[Site]:
    with Site(tmp_path) as site:
        site.init(
            CHANNEL.format(url=receiver.url),
            registry=REGISTRY.format(port=device.port),
            rules=RULES.format(interface=cable.name),
        )
        (site.state / "secrets" / "desk").write_bytes(SECRET)
        site.run_collector()
        site.login()
        site.credential("plant", device.community)
        # The host sees the same interface with its own eyes; this story is about the device.
        site.enrol(AGENT, '[host]\noff = ["interfaces"]\n', site="plant")
        site.run_agent(AGENT)
        yield site


def test_a_pulled_cable_and_a_stopped_daemon_are_one_incident_each_told_twice_and_in_the_ledger(
    site: Site, cable: Link, device: Snmpd, receiver: Receiver
) -> None:
    site.until_host(DEVICE, "up")
    assert _oper_status(site, cable) == 1

    cable.cut()
    receiver.wait_for(lambda r: _told(r, "interface-down", "opened"), STORY_S_MAX)
    assert site.until_host(DEVICE, "degraded")["open_incidents"] == 1
    cable.restore()
    receiver.wait_for(lambda r: _told(r, "interface-down", "resolved"), STORY_S_MAX)
    site.until_host(DEVICE, "up")

    device.stop()
    receiver.wait_for(lambda r: _told(r, "device-unreachable", "opened"), STORY_S_MAX)
    assert site.until_host(DEVICE, "down")["open_incidents"] == 1
    device.start()
    receiver.wait_for(lambda r: _told(r, "device-unreachable", "resolved"), STORY_S_MAX)
    site.until_host(DEVICE, "up")

    # Exactly one incident each, both resolved.
    incidents = site.incidents(DEVICE)
    assert [one["rule"] for one in incidents] == list(RULES_OF_THE_STORY), "newest first"
    assert {one["state"] for one in incidents} == {"resolved"}
    assert all(one["opened_ms"] < one["resolved_ms"] for one in incidents)
    lost, pulled = incidents
    assert pulled["says"] == f"{cable.name} on {DEVICE} is down"
    assert lost["says"] == f"{DEVICE} does not answer"

    # Two signed calls each, in order, every signature verified by the receiver.
    assert receiver.refused == []
    calls = [call for call in receiver.calls if call.event["data"]["device"] == DEVICE]
    assert Counter((call.event["subject"], call.kind) for call in calls) == {
        (one["id"], kind): 1 for one in incidents for kind in ("opened", "resolved")
    }
    assert [call.kind for call in calls] == ["opened", "resolved"] * 2
    assert len({call.key for call in calls}) == 4
    assert all(call.event["id"] == call.key for call in calls)
    for one in incidents:
        deliveries = site.tocsin("incident", "show", one["id"])["deliveries"]
        assert [(told["kind"], told["state"]) for told in deliveries] == [("opened", "sent"), ("resolved", "sent")]

    # In the ledger as long as the incidents say, and nothing is missing.
    found = site.tocsin("availability", DEVICE, "--from", "1h")
    assert found["degraded_ms"] == pulled["resolved_ms"] - pulled["opened_ms"]
    assert found["down_ms"] == lost["resolved_ms"] - lost["opened_ms"]
    six = ("up", "degraded", "down", "unknown", "maintenance", "outside")
    assert sum(found[f"{state}_ms"] for state in six) == found["to_ms"] - found["from_ms"]


def _told(receiver: Receiver, rule: str, kind: str) -> list[Call]:
    return [call for call in receiver.calls if call.event["data"]["rule"] == rule and call.kind == kind]


def _oper_status(site: Site, cable: Link) -> float:
    found = site.until_values("if.oper_status", DEVICE)
    return next(float(one["value"]) for one in found if one["labels"]["interface"] == cable.name)
