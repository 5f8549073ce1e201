"""The engine process as operators meet it: real processes, real sockets on loopback, a real agent."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tocsin_collector import accounts
from tocsin_collector.control import ControlClient, ControlError
from tocsin_proto import exits

BIN = Path(sys.executable).parent
PASSWORD = "correct horse battery"
LISTEN = '[ingest]\nlisten = "127.0.0.1:0"\n[enrol]\nlisten = "127.0.0.1:0"\n[web]\nlisten = "127.0.0.1:0"\n'
DEADLINE_S = 30.0
STOP_S_MAX = 10.0  # two seconds on a machine of its own; here others compute beside it

ENVIRON = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "LANG": "C.UTF-8"}


def run(*arguments: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
    program, *rest = map(str, arguments)
    return subprocess.run(
        [str(BIN / program), *rest], input=stdin, capture_output=True, text=True, timeout=60, check=False, env=ENVIRON
    )


def until(is_so: Callable[[], Any], what: str) -> Any:
    """Wait for something outside this process, which no event of ours announces."""
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        if found := is_so():
            return found
        time.sleep(0.02)
    raise AssertionError(f"not within {DEADLINE_S} s: {what}")


class Running:
    """`tocsin-collector run` on a state folder."""

    def __init__(self, state: Path) -> None:
        self.state = state
        (state / "ports.json").unlink(missing_ok=True)
        self.log = state / "log"
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                [str(BIN / "tocsin-collector"), "run", "--state", str(state)], stdout=out, stderr=out, env=ENVIRON
            )
        until(lambda: (state / "ports.json").exists() or self.process.poll() is not None, "ports.json")
        assert self.process.poll() is None, self.log.read_text()
        self.ports = json.loads((state / "ports.json").read_text())

    def call(self, do: str, **fields: Any) -> dict[str, Any]:
        return asyncio.run(ControlClient(self.state / "control.sock").call(do, **fields))

    def logged(self, text: str) -> bool:
        return text in self.log.read_text()

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.ports['web']}{path}", timeout=10) as answer:
            return answer.read().decode()

    def web_pid(self) -> int:
        return int(re.findall(r"web process listens.* pid=(\d+)", self.log.read_text())[-1])

    def stop(self, number: int = signal.SIGTERM) -> float:
        """Seconds it took to end."""
        began = time.monotonic()
        self.process.send_signal(number)
        self.process.wait(20)
        return time.monotonic() - began


def laid(state: Path) -> Path:
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    done = run(
        "tocsin-collector",
        "init",
        "--state",
        state,
        "--name",
        "localhost",
        "--admin-password-file",
        "-",
        stdin=PASSWORD,
    )
    assert done.returncode == 0, done.stderr
    with (state / "collector.toml").open("a") as file:
        file.write(LISTEN)
    return state


def is_alive(pid: int) -> bool:
    try:
        return b"tocsin" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return False


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return laid(tmp_path_factory.mktemp("collector"))


@pytest.fixture(scope="module")
def running(state: Path) -> Iterator[Running]:
    collector = Running(state)
    yield collector
    collector.stop()


def test_init_a_second_time_changes_nothing(state: Path) -> None:
    before = {path: path.read_bytes() for path in (state / "ca").iterdir()} | {
        state / "collector.toml": (state / "collector.toml").read_bytes()
    }
    done = run("tocsin-collector", "init", "--state", state)
    assert done.returncode == 0, done.stderr
    assert "nothing was changed" in done.stdout
    assert "Password" not in done.stdout
    assert {path: path.read_bytes() for path in before} == before


def test_init_keeps_secrets_to_its_owner(state: Path) -> None:
    assert state.stat().st_mode & 0o077 == 0
    for name in ("ca.key", "server.key"):
        assert (state / "ca" / name).stat().st_mode & 0o777 == 0o600


def test_init_shows_a_password_of_its_own_once(tmp_path: Path) -> None:
    done = run("tocsin-collector", "init", "--state", tmp_path / "c", "--name", "localhost")
    (password,) = re.findall(r"shown this once: (\S+)", done.stdout)
    assert len(password) >= accounts.PASSWORD_CHARS_MIN
    assert "Next: tocsin-collector run" in done.stdout


def test_the_engine_says_on_which_ports_everything_listens(running: Running) -> None:
    assert set(running.ports) == {"ingest", "enrol", "web"}
    assert all(running.ports.values())
    assert running.call("status")["ports"] == running.ports


def test_the_pages_process_answers_beside_the_engine(running: Running) -> None:
    assert running.get("/healthz").strip() == "ok"
    assert json.loads(running.get("/readyz")) == {"ready": True, "trouble": []}
    assert "tocsin_commits_total" in running.get("/metrics")


def test_an_agent_that_enrols_by_the_real_path_is_in_the_registry_at_once(running: Running, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(running.call("token.create", actor="admin", device="edge-1")["token"])

    done = run(
        "tocsin-agent", "enrol", "--state", tmp_path / "a", "--config", tmp_path / "a.toml", "--token-file", token
    )

    assert done.returncode == 0, done.stderr
    assert f'collector = "localhost:{running.ports["ingest"]}"' in (tmp_path / "a.toml").read_text()
    version = running.call("status")["config_version"]
    assert [agent["name"] for agent in running.call("status")["agents"]] == ["edge-1"]

    agent = subprocess.Popen(
        [str(BIN / "tocsin-agent"), "run", "--state", str(tmp_path / "a"), "--config", str(tmp_path / "a.toml")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=ENVIRON,
    )
    try:
        facts = until(lambda: _durable(running), "a durable frame")
        assert facts["is_connected"]
        assert not facts["is_silent"]

        running.call("agent.revoke", name="edge-1", actor="admin")
        until(lambda: not running.call("status")["agents"][0]["is_connected"], "the stream's end")
        assert running.call("status")["config_version"] == version + 1
    finally:
        agent.terminate()
        agent.wait(10)


def _durable(running: Running) -> dict[str, Any] | None:
    (agent,) = running.call("status")["agents"]
    session = agent["session"]
    return agent if session and session["counts"]["frames"] else None


def test_a_login_makes_a_session_and_a_wrong_password_does_not(running: Running) -> None:
    granted = running.call("account.login", name="admin", password=PASSWORD, label="test")
    assert granted["role"] == "admin"
    for name, password in (("admin", "wrong"), ("nobody", PASSWORD), ("admin", "")):
        with pytest.raises(ControlError) as caught:
            running.call("account.login", name=name, password=password)
        assert (caught.value.code, caught.value.message) == ("denied", "name or password is wrong")
    hashed = accounts.token_hash(granted["token"]).hex()
    assert running.call("account.logout", token_hash=hashed) == {"ended": True}
    assert running.call("account.logout", token_hash=hashed) == {"ended": False}


def test_accounts_are_made_once_and_with_a_real_password(running: Running) -> None:
    assert (
        running.call("account.create", name="zm", password=PASSWORD, role="operator", actor="admin")["role"]
        == "operator"
    )
    for name, password in (("zm", PASSWORD), ("short", "short"), ("a/b", PASSWORD)):
        with pytest.raises(ControlError) as caught:
            running.call("account.create", name=name, password=password, role="viewer")
        assert caught.value.code == "refused"


@pytest.mark.parametrize(
    ("do", "fields", "code", "message"),
    [
        ("tokens.create", {}, "malformed", "Invalid value 'tokens.create'"),
        ("token.create", {}, "malformed", "required field `actor`"),
        ("token.create", {"actor": "a", "ttl_ms": 1}, "malformed", "unknown field `ttl_ms`"),
        ("token.create", {"actor": "a", "site": "moon"}, "refused", 'there is no site "moon"'),
        ("token.create", {"actor": "a", "ttl_s": 0}, "refused", "token lifetime"),
        ("token.revoke", {"id": "T-none"}, "refused", "no token"),
        ("agent.revoke", {"name": "nobody"}, "unknown", 'no agent "nobody"'),
        ("command", {"kind": "delete", "incident": "I-1", "actor": "a"}, "malformed", "Invalid enum value 'delete'"),
        ("command", {"kind": "acknowledge", "incident": "I-1", "actor": "a"}, "refused", "I-1"),
        ("account.logout", {"token_hash": "zz"}, "malformed", "not hexadecimal"),
        ("account.login", {"name": "admin", "password": "x", "ttl_s": 1}, "refused", "ttl_s is 1"),
    ],
)
def test_what_cannot_be_done_is_refused_with_a_code(
    running: Running, do: str, fields: dict[str, Any], code: str, message: str
) -> None:
    with pytest.raises(ControlError) as caught:
        running.call(do, **fields)
    assert caught.value.code == code
    assert message in caught.value.message


def test_a_reload_takes_what_is_right_and_keeps_the_old_when_it_is_not(running: Running) -> None:
    file = running.state / "registry" / "plant.toml"
    before = running.call("status")["config_version"]

    file.write_text('[[site]]\nid = "plant"\n[[device]]\nid = "sw-1"\nsite = "plnt"\n')
    with pytest.raises(ControlError) as caught:
        running.call("reload")
    assert 'plant.toml:5: device.sw-1.site: unknown site "plnt"' in caught.value.message
    assert running.call("status")["config_version"] == before

    file.write_text('[[site]]\nid = "plant"\n')
    assert running.call("reload")["version"] == before + 1
    assert running.call("reload")["version"] == before + 1
    assert running.call("token.create", actor="admin", site="plant")["id"]


def test_a_hangup_reads_the_files_again_and_survives_a_mistake_in_them(running: Running) -> None:
    file = running.state / "registry" / "second.toml"
    before = running.call("status")["config_version"]

    file.write_text('[[site]]\nid = "second"\nzone = "Nowhere"\n')
    running.process.send_signal(signal.SIGHUP)
    until(lambda: running.logged("configuration not taken"), "the complaint")
    assert running.call("status")["config_version"] == before

    file.write_text('[[site]]\nid = "second"\n')
    running.process.send_signal(signal.SIGHUP)
    until(lambda: running.call("status")["config_version"] == before + 1, "the new configuration")


def test_a_second_engine_on_the_same_state_is_refused_with_one_line(running: Running) -> None:
    done = run("tocsin-collector", "run", "--state", running.state)
    assert done.returncode in (exits.PROBLEM, exits.EX_CONFIG)
    said = [line for line in done.stderr.splitlines() if line.startswith("tocsin-collector: ")]
    assert len(said) == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert running.call("status")["pid"] == running.process.pid


def test_a_database_that_is_missing_is_no_empty_one(tmp_path: Path) -> None:
    state = laid(tmp_path / "c")
    (state / "tocsin.db").unlink()
    done = run("tocsin-collector", "run", "--state", state)
    assert done.returncode == exits.EX_CONFIG
    assert "tocsin.db: is missing" in done.stderr
    assert not (state / "tocsin.db").exists()


@pytest.mark.parametrize("table", ["ingest", "enrol"])
def test_a_port_that_is_taken_ends_the_start_with_one_line(tmp_path: Path, table: str) -> None:
    state = laid(tmp_path / "c")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        text = (state / "collector.toml").read_text()
        taken_line = f'[{table}]\nlisten = "127.0.0.1:{port}"'
        (state / "collector.toml").write_text(text.replace(f'[{table}]\nlisten = "127.0.0.1:0"', taken_line))
        done = run("tocsin-collector", "run", "--state", state)
    assert done.returncode == exits.PROBLEM
    assert f"tocsin-collector: 127.0.0.1:{port}: cannot listen here" in done.stderr
    assert "Traceback" not in done.stderr


def test_monitoring_goes_on_when_the_port_of_the_pages_is_taken(tmp_path: Path) -> None:
    state = laid(tmp_path / "c")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        text = (state / "collector.toml").read_text()
        (state / "collector.toml").write_text(
            text.replace('[web]\nlisten = "127.0.0.1:0"', f'[web]\nlisten = "127.0.0.1:{port}"')
        )
        collector = Running(state)
        assert set(collector.ports) == {"ingest", "enrol"}
        assert collector.call("status")["trouble"] == ""
        assert collector.logged("Address already in use")
    until(lambda: "web" in json.loads((state / "ports.json").read_text()), "pages, once the port is free")
    assert collector.stop() <= STOP_S_MAX


def test_the_web_process_is_started_again_on_the_same_port(running: Running) -> None:
    pid = running.web_pid()
    os.kill(pid, signal.SIGKILL)
    until(lambda: running.web_pid() != pid, "a new web process")
    assert running.get("/healthz").strip() == "ok"
    assert running.call("status")["web_restarts"] == 1


def test_a_killed_engine_leaves_no_web_process_and_the_next_one_goes_on(tmp_path: Path) -> None:
    state = laid(tmp_path / "c")
    first = Running(state)
    web, version = first.web_pid(), first.call("status")["config_version"]
    offset = first.call("status")["pipeline"]["offset"]

    first.stop(signal.SIGKILL)
    until(lambda: not is_alive(web), "the web process's end")

    second = Running(state)
    status = second.call("status")
    assert status["config_version"] == version
    assert status["pipeline"]["offset"] >= offset
    assert status["pipeline"]["replay_differences"] == 0
    assert second.stop(signal.SIGINT) <= 2.0
    assert second.process.returncode == 0
    assert not is_alive(second.web_pid())
    assert not (state / "control.sock").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[web]\nlitsen = "127.0.0.1:0"\n', 'web.litsen: unknown key, did you mean "listen"?'),
        ("[web\n", "not TOML"),
        ('names = ["localhost"]\n', "init"),  # never initialised
    ],
)
def test_settings_that_cannot_be_used_end_the_start_with_78(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "collector.toml").write_text(text)
    done = run("tocsin-collector", "run", "--state", tmp_path)
    assert done.returncode == exits.EX_CONFIG
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_config_check_tells_place_and_remedy_and_prints_what_is_in_force(tmp_path: Path) -> None:
    (tmp_path / "collector.toml").write_text('names = ["localhost"]\n[engine]\nhold = "20s"\n')
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules" / "own.toml").write_text('[[rule]]\nid = "load-hihg"\nenabled = false\n')

    wrong = run("tocsin-collector", "config", "check", "--state", tmp_path)
    assert wrong.returncode == exits.EX_CONFIG
    assert f'{tmp_path}/rules/own.toml:2: rule.load-hihg.id: there is no built-in rule "load-hihg"' in wrong.stderr
    assert 'did you mean "load-high"?' in wrong.stderr

    (tmp_path / "rules" / "own.toml").write_text('[[rule]]\nid = "load-high"\nenabled = false\n')
    right = run("tocsin-collector", "config", "check", "--print-effective", "--state", tmp_path)
    assert right.returncode == 0, right.stderr
    assert re.search(rf'hold = "20s" +# {tmp_path}/collector.toml:3', right.stdout)
    assert "# rule filesystem-full" in right.stdout
    assert "# rule load-high" not in right.stdout


def test_version_is_told() -> None:
    assert run("tocsin-collector", "version").stdout.startswith("tocsin-collector ")


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("tocsin_collector.app", ("starlette", "jinja2", "uvicorn", "pysnmp", "tocsin_agent")),
        ("tocsin_collector.web.app", ("grpc", "numpy", "cryptography", "tocsin_agent")),
        ("tocsin_collector.cli.server", ("grpc", "numpy", "cryptography", "starlette", "msgspec")),
    ],
)
def test_a_process_imports_only_what_it_needs(module: str, forbidden: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print([name for name in {forbidden!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
