"""The five minutes of the README, by script: from an empty folder to a first host, a first incident and its availability.

Real commands, real enrolment, real probes. One site serves all steps, in the order in which an operator takes them.
"""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.site import Site
from tests.support.snmpd import free_udp_port

from tocsin_proto import exits

pytestmark = pytest.mark.xdist_group("first-host")  # one site, in one worker
HOST, SWITCH, CONTROLLER = "edge-1", "sw-hall-3", "plc-press-7"

# Nobody answers on this port: the switch is out of reach from the first poll on, and so is what stands behind it.
REGISTRY = """
[[site]]
id = "plant"
zone = "Asia/Shanghai"

[[device]]
id = "sw-hall-3"
site = "plant"
kind = "switch"
address = "127.0.0.1"
watched_by = "edge-1"
snmp = {{ credential = "plant", port = {port}, interval = "1s", timeout = "200ms" }}

[[device]]
id = "plc-press-7"
site = "plant"
kind = "controller"
address = "127.0.0.1"
watched_by = "edge-1"
parents = ["sw-hall-3"]
snmp = {{ credential = "plant", port = {port}, interval = "1s", timeout = "200ms" }}
"""

RULES = """
[[rule]]
id = "process-missing"
for_each = "process.count"
major = { below = 1.0, for = "1s" }
affects = "degraded"
says = "No process {process} runs on {device}"
"""


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program whose name no other process of this machine has."""
    folder = tmp_path_factory.mktemp("worker")
    program = folder / f"tw{folder.stat().st_ino % 10**9}"
    sleep = shutil.which("sleep")
    assert sleep is not None
    shutil.copy(sleep, program)
    return program


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, worker: Path) -> Iterator[Site]:
    with Site(tmp_path_factory.mktemp("first")) as site:
        site.init(registry=REGISTRY.format(port=free_udp_port()), rules=RULES)
        site.run_collector()
        site.login()
        site.credential("plant", "a community")
        site.enrol(HOST, f'[host]\ninterval = "1s"\nprocesses = ["{worker.name}"]\n', site="plant")
        site.run_agent(HOST)
        yield site


@pytest.fixture(scope="module")
def missing(site: Site) -> dict[str, Any]:
    """The incident of the process that does not run."""
    return site.until_incident("process-missing", HOST, "told")


@pytest.fixture(scope="module")
def held_back(site: Site) -> dict[str, Any]:
    return site.until_incident("device-unreachable", CONTROLLER, "suppressed")


def test_the_host_is_there_with_its_values(site: Site, missing: dict[str, Any]) -> None:
    host = site.host(HOST)
    assert host is not None
    assert (host["site"], host["kind"], host["state"]) == ("plant", "server", "degraded")
    memory = site.until_values("memory.used_ratio", HOST)
    assert len(memory) == 1
    assert 0 < memory[0]["value"] < 1
    assert site.tocsin("get", "memory.used_ratio", HOST)[0]["labels"] == memory[0]["labels"]
    assert [one["id"] for one in site.tocsin("hosts") if one["kind"] == "server"] == [HOST]
    assert HOST in site.done("tocsin", "hosts")


def test_a_token_works_once_and_a_host_that_is_not_enrolled_does_not_start(site: Site) -> None:
    other = ("--state", site.folder / "other", "--config", site.folder / "other.toml")
    used = site.folder / f"{HOST}.token"
    refused = site.run("tocsin-agent", "enrol", *other, "--token-file", used)
    assert refused.returncode == exits.REFUSED, refused.stderr
    assert used.read_text() not in refused.stderr
    (site.folder / "other.toml").write_text('collector = "localhost:1"\n')
    assert site.run("tocsin-agent", "run", *other).returncode == exits.EX_CONFIG


def test_why_explains_an_opened_incident_in_both_languages(site: Site, missing: dict[str, Any], worker: Path) -> None:
    why = site.tocsin("incident", "why", missing["id"])
    assert [step["kind"] for step in why["decision"]] == ["below_raised", "held_for", "opened"]
    assert why["evidence"][0]["value"] == 0
    assert why["explained_by"] is None
    english = site.done("tocsin", "incident", "why", missing["id"])
    assert f"No process {worker.name} runs on {HOST}" in english
    assert "process.count was 0, below 1 (rule process-missing)" in english
    assert "It held for 1 s, as the rule asks" in english
    assert "Nobody was told." in english, "there is no channel"
    chinese = site.done("tocsin", "incident", "why", missing["id"], "--lang", "zh_CN")
    assert f"{HOST} 上没有运行进程 {worker.name}" in chinese
    assert "process.count" in chinese
    assert re.search(r"持续.*1 秒", chinese)
    assert not re.search(r"\b(was|rule|held|Nobody)\b", chinese), chinese


def test_why_explains_an_incident_that_was_not_opened_in_both_languages(site: Site, held_back: dict[str, Any]) -> None:
    root = site.until_incident("device-unreachable", SWITCH, "told")
    why = site.tocsin("incident", "why", held_back["id"])
    assert why["explained_by"]["id"] == root["id"] == held_back["suppressed_by"]
    assert "explained_by_parent" in [step["kind"] for step in why["decision"]]
    assert "opened" not in [step["kind"] for step in why["decision"]]
    assert why["deliveries"] == []
    assert [one["id"] for one in site.tocsin("incident", "why", root["id"])["explains"]] == [held_back["id"]]
    english = site.done("tocsin", "incident", "why", held_back["id"])
    assert f"{CONTROLLER} does not answer" in english
    assert f"Held back: {SWITCH} is unreachable and explains it ({root['id']})" in english
    assert f"Held back because of {root['id']}: {SWITCH} does not answer" in english
    chinese = site.done("tocsin", "incident", "why", held_back["id"], "--lang", "zh_CN")
    assert f"{CONTROLLER} 没有应答" in chinese
    assert f"已抑制：{SWITCH} 不可达，由其引起（{root['id']}）" in chinese
    assert f"因 {root['id']} 而抑制：{SWITCH} 没有应答" in chinese
    told = site.done("tocsin", "incident", "why", root["id"])
    assert f"It holds back {held_back['id']}: {CONTROLLER} does not answer" in told


def test_what_is_held_back_stands_only_in_the_quiet_list(
    site: Site, missing: dict[str, Any], held_back: dict[str, Any]
) -> None:
    told = site.tocsin("incident", "ls")
    assert {one["device"] for one in told} == {HOST, SWITCH}
    assert [one["id"] for one in site.tocsin("incident", "ls", "--state", "quiet")] == [held_back["id"]]


def test_an_incident_is_acknowledged_and_ends_when_the_process_runs(
    site: Site, missing: dict[str, Any], worker: Path
) -> None:
    site.tocsin("incident", "ack", missing["id"], "-m", "on it")
    taken = site.until_incident("process-missing", HOST, "acknowledged")
    assert taken["acknowledged_by"] == "admin"

    running = subprocess.Popen([str(worker), "120"])
    try:
        ended = site.until_incident("process-missing", HOST, "resolved")
        assert ended["id"] == missing["id"]
        assert ended["resolved_ms"] > ended["opened_ms"]
        site.until_host(HOST, "up")
        timeline = [step["kind"] for step in site.tocsin("incident", "show", missing["id"])["timeline"]]
        assert timeline[-1] == "resolved"
        assert "acknowledged_by" in timeline
        assert "Acknowledged by admin: on it" in site.done("tocsin", "incident", "show", missing["id"])
    finally:
        running.terminate()  # the fault comes back, and with it the same incident
        running.wait(10)
    assert site.until_incident("process-missing", HOST, "open")["id"] == missing["id"]


def test_availability_sums_to_the_period_to_the_millisecond(
    site: Site, missing: dict[str, Any], held_back: dict[str, Any]
) -> None:
    for name in (HOST, SWITCH, CONTROLLER):
        found = site.tocsin("availability", name, "--from", "1h")
        six = [found[f"{state}_ms"] for state in ("up", "degraded", "down", "unknown", "maintenance", "outside")]
        assert sum(six) == found["to_ms"] - found["from_ms"] == 3_600_000
        assert (found["down_ms"] > 0) == (name != HOST), "suppression never changes the record"
    assert site.tocsin("availability", HOST)["degraded_ms"] > 0
    assert "Available" in site.done("tocsin", "availability", HOST)
