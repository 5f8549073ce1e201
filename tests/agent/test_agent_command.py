"""`tocsin-agent` as people and units run it: settings, exit codes, and a real agent without a collector."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from importlib import metadata
from pathlib import Path

import msgspec
import psutil
import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from tests.agent.test_agent_framer import measured

from tocsin_agent import config
from tocsin_agent.cli import cli
from tocsin_agent.config import AgentSettings, LocalSnmp, collector_address
from tocsin_agent.identity import Identity, store
from tocsin_agent.spool import Spool
from tocsin_proto import exits
from tocsin_proto.codec import decode_frame
from tocsin_proto.settings import parse

GOLDEN = Path(__file__).parents[2] / "config" / "agent.toml"
UNREACHABLE = "127.0.0.1:9"  # discard: nobody listens
START_S_MAX = 20.0


def invoke(*argv: str, **more):
    return CliRunner(env=dict.fromkeys([name for name in os.environ if name.startswith("TOCSIN_")])).invoke(
        cli, [str(word) for word in argv], **more
    )


def uncommented(text: str) -> str:
    """The golden file with every default switched on; prose stays prose: it has no "key = value" or "[[table]]"."""
    return re.sub(r"^# (?=[a-z_]+ = |\[\[)", "", text, flags=re.MULTILINE)


# ---------------------------------------------------------------------------------------------------- settings


def test_the_golden_file_holds_every_key_with_its_default():
    text = uncommented(GOLDEN.read_text())
    golden = parse(AgentSettings, text, "agent.toml").value
    assert msgspec.structs.replace(golden, collector="", snmp=()) == AgentSettings()
    (device,) = golden.snmp
    assert device == LocalSnmp(id=device.id, address=device.address, community_file=device.community_file)
    written = set(re.findall(r"^(?:\[\[?[\w.]+\]\]?|([a-z_]+) =)", text, flags=re.MULTILINE))
    assert written >= set(keys(AgentSettings) + keys(LocalSnmp))


def keys(type_) -> list[str]:
    found = []
    for field in msgspec.structs.fields(type_):
        inner = isinstance(field.type, type) and issubclass(field.type, msgspec.Struct)
        found += keys(field.type) if inner else [field.name] if field.name != "snmp" else []
    return found


def test_the_golden_file_as_it_is_and_an_empty_file_mean_the_same():
    assert parse(AgentSettings, GOLDEN.read_text(), "agent.toml").value == AgentSettings()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[host]\nintervall = "3s"', 'agent.toml:2: host.intervall: unknown key, did you mean "interval"?'),
        ("[host]\ninterval = 10", "agent.toml:2: host.interval: 10 has no unit"),
        ('[host]\ninterval = "10ms"', '"10ms" is too small, at least "1s"'),
        ('[host]\noff = ["cpus"]', 'did you mean "cpu"?'),
        ('[host]\nservices = ["--now"]', "is no unit name"),
        ('[assignment]\naccept = ["modbus"]', "expected one of snmp"),
        ('[spool]\nsize_max = "1MiB"\nsegment = "1MiB"', "more than half of size_max"),
        ('collector = "a b"', "is no address"),
        ('[[snmp]]\nid = "a"\naddress = "x"', "community_file"),
        ('[[snmp]]\nid = "a"\naddress = "x"\ncommunity_file = "f"\nport = 0', "port: 0, expected 1 to 65535"),
        ("collector = ", "agent.toml:1: not TOML"),
    ],
)
def test_wrong_settings_are_refused_with_place_and_remedy(tmp_path, text, says):
    path = tmp_path / "agent.toml"
    path.write_text(text)
    for command in (["config", "check"], ["run"], ["test"]):
        result = invoke(*command, "--config", path)
        assert result.exit_code == exits.EX_CONFIG, command
        assert says in result.stderr


@pytest.mark.parametrize(
    ("written", "address"),
    [
        ("collector.plant.example", "collector.plant.example:7443"),
        ("10.0.0.1:99", "10.0.0.1:99"),
        ("[2001:db8::1]:7", "[2001:db8::1]:7"),
        ("[2001:db8::1]", "[2001:db8::1]:7443"),
    ],
)
def test_an_address_may_leave_the_port_out(written, address):
    assert collector_address(written) == address


@pytest.mark.parametrize("written", ["2001:db8::1", ":7443", "host:", "host:0", "host:70000", "https://x:1", "a:b:c"])
def test_what_is_no_address_is_refused(written):
    with pytest.raises(ValueError, match="collector: "):
        collector_address(written)


def test_drop_ins_and_the_environment_win_over_the_file_and_config_check_says_so(tmp_path):
    path = tmp_path / "agent.toml"
    path.write_text('collector = "a:1"\n[host]\ninterval = "20s"\nprocesses = ["x"]\n')
    (tmp_path / "agent.d").mkdir()
    (tmp_path / "agent.d" / "10.toml").write_text('[host]\ninterval = "30s"\n')
    env = {"TOCSIN_AGENT__COLLECTOR": "b:2"}
    result = invoke("config", "check", "--print-effective", "--config", path, env=env)
    assert result.exit_code == exits.OK
    assert re.search(r'^collector = "b:2"  # environment', result.stdout, re.MULTILINE)
    assert re.search(r'^interval = "30s"  # .*10\.toml:2', result.stdout, re.MULTILINE)
    assert parse(AgentSettings, result.stdout, "printed").value.host.processes == ("x",)


def test_the_folder_of_the_credentials_is_shown_for_it_is_none_itself(tmp_path):
    path = tmp_path / "agent.toml"
    path.write_text('[credentials]\nfolder = "/etc/plant"\n')
    result = invoke("config", "check", "--print-effective", "--config", path)
    assert result.exit_code == exits.OK
    assert '\n[credentials]\nfolder = "/etc/plant"' in result.stdout
    assert "redacted" not in result.stdout


# ------------------------------------------------------------------------------------------------- test, version


def test_a_new_host_can_be_tried_without_any_settings(tmp_path):
    env = {"XDG_CONFIG_HOME": str(tmp_path), "HOME": str(tmp_path)}
    result = invoke("test", "memory", "--json", "--state", tmp_path, env=env)
    assert result.exit_code == exits.OK, result.output
    (probe,) = json.loads(result.stdout)["data"]["probes"]
    metrics = {one["series"]["metric"]: one["value"] for one in probe["measurements"]}
    assert metrics["memory.total_bytes"] == psutil.virtual_memory().total


def test_an_unknown_probe_is_a_usage_error_that_names_the_known(tmp_path):
    result = invoke("test", "cpus", "--state", tmp_path)
    assert result.exit_code == exits.USAGE
    assert "filesystems" in result.stderr


def test_version_speaks_json_and_is_that_of_the_installed_distribution():
    said = json.loads(invoke("version", "--json").stdout)["data"]
    assert said == {"version": metadata.version("tocsin"), "protocol_min": 1, "protocol_max": 1}


def test_status_without_an_agent_says_so(tmp_path):
    result = invoke("status", "--json", "--state", tmp_path)
    assert result.exit_code == exits.PROBLEM
    assert json.loads(result.stdout)["error"]["message"] == f"no agent runs on {tmp_path}"


def test_run_before_enrolment_says_what_to_do(tmp_path):
    path = tmp_path / "agent.toml"
    path.write_text('collector = "a:1"\n')
    result = invoke("run", "--config", path, "--state", tmp_path)
    assert result.exit_code == exits.EX_CONFIG
    assert "tocsin-agent enrol" in result.stderr


def test_enrol_with_a_damaged_token_says_so_and_never_repeats_it(tmp_path):
    result = invoke("enrol", "--config", tmp_path / "a.toml", "--state", tmp_path, input="tocsin1.c2VjcmV0\n")
    assert result.exit_code in (exits.REFUSED, exits.UNREACHABLE)
    assert "token" in result.stderr
    assert "c2VjcmV0" not in result.output
    assert not (tmp_path / "a.toml").exists()


# --------------------------------------------------------------------------------------------------- a real agent


def identity(folder: Path) -> None:
    """A key and a certificate of its own: enough for an agent whose collector does not answer."""
    key = ec.generate_private_key(ec.SECP256R1())
    name, now = x509.Name([]), datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=9))
    pem = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    expires_ms = int((now + timedelta(days=9)).timestamp() * 1000)
    store(Identity("edge-1", UNREACHABLE, expires_ms, private, pem, pem), folder)


def status(folder: Path) -> dict | None:
    result = invoke("status", "--json", "--state", folder)
    if result.exit_code == exits.PROBLEM:
        return None
    assert result.exit_code == exits.UNREACHABLE
    return json.loads(result.stdout)["data"]


def until(condition, process: subprocess.Popen):
    ends = time.monotonic() + START_S_MAX
    while time.monotonic() < ends:
        assert process.poll() is None
        if value := condition():
            return value
        time.sleep(0.05)  # another process's progress: there is nothing here to wait on
    raise AssertionError("the agent did not get there")


def test_a_real_agent_without_its_collector_measures_reloads_and_ends_cleanly(tmp_path):
    folder = tmp_path / ("deep-" * 25)  # longer than a socket's address may be
    folder.mkdir(mode=0o700)
    identity(folder / "identity")
    path = tmp_path / "agent.toml"
    path.write_text('[host]\ninterval = "1s"\n[uplink]\nfirst_retry_max = "1s"\n')
    log = tmp_path / "log"
    process = subprocess.Popen(
        [sys.executable, "-m", "tocsin_agent", "run", "--config", str(path), "--state", str(folder)],
        stderr=log.open("w"),
        env={name: value for name, value in os.environ.items() if not name.startswith("TOCSIN_")},
    )
    try:
        now = until(
            lambda: (one := status(folder)) and one["series"] > 20 and one["backlog_frames"] > 1 and one, process
        )
        assert now["connected"] is False
        assert now["collector"] == UNREACHABLE
        assert now["problems"] == {}
        assert now["backlog_bytes"] > 500
        told = invoke("status", "--state", folder)
        assert told.exit_code == exits.UNREACHABLE
        assert "the collector does not answer" in told.stderr
        assert "good until" in told.stdout

        maps = Path(f"/proc/{process.pid}/maps")
        if maps.exists():  # what an agent without SNMP devices must not have loaded
            loaded = maps.read_text()
            for library in ("cryptography", "numpy"):
                assert f"/{library}/" not in loaded
        assert psutil.Process(process.pid).memory_info().rss < 60 * 2**20

        second = invoke("run", "--config", path, "--state", folder)
        assert second.exit_code == exits.PROBLEM  # never two agents on one spool

        path.write_text('[host]\nintervall = "1s"\n')
        process.send_signal(signal.SIGHUP)
        until(lambda: 'did you mean "interval"' in log.read_text().replace("\\", ""), process)
        assert status(folder)["targets"] == now["targets"]
        path.write_text('[host]\ninterval = "1s"\noff = ["cpu", "load"]\n')
        process.send_signal(signal.SIGHUP)
        until(lambda: status(folder)["targets"] == now["targets"] - 2, process)

        asked = time.monotonic()
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=10)
        assert time.monotonic() - asked < 2
        assert process.returncode == exits.OK
    finally:
        process.kill()
        process.wait()

    spool = Spool.open(folder / "spool", now_ms=int(time.time() * 1000), random_bytes=os.urandom)
    assert len(spool.generations) == 1  # closed cleanly: the next start goes on under the same id
    frames = [decode_frame(entry.raw) for entry in spool.read(1, 16 * 2**20)]
    spool.abandon()
    assert not any(frame.gaps for frame in frames)
    metrics = {series.metric for series, _, _ in measured(frames)}
    assert {"cpu.used_ratio", "memory.used_ratio", "disk.used_ratio", "system.uptime_seconds", "probe.ok"} <= metrics


def test_the_command_alone_loads_no_heavy_library():
    heavy = "grpc,psutil,cryptography,pysnmp,numpy"
    code = f"import sys, tocsin_agent.cli; print([m for m in '{heavy}'.split(',') if m in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


def test_the_running_agent_imports_neither_cryptography_nor_pysnmp_nor_numpy():
    code = "import sys, tocsin_agent.app; print([m for m in ('cryptography','pysnmp','numpy') if m in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


def test_state_and_settings_have_usual_places(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    environ = {"XDG_CONFIG_HOME": "/c", "XDG_STATE_HOME": "/s"}
    assert config.default_path(environ) == Path("/c/tocsin/agent.toml")
    assert config.state_folder(AgentSettings(), environ) == Path("/s/tocsin/agent")
    assert config.state_folder(AgentSettings(), {"STATE_DIRECTORY": "/var/lib/tocsin/agent:/x"}) == Path(
        "/var/lib/tocsin/agent"
    )
    assert config.state_folder(AgentSettings(state="/mine"), environ) == Path("/mine")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert config.default_path(environ) == Path("/etc/tocsin/agent.toml")
