"""`tocsin` against a real collector: what it prints, what it returns, what it keeps."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.web_rig import HOSTILE, PASSWORDS, START_MS, WebRig, web_rig

from tocsin_collector.cli import output
from tocsin_collector.cli.operator import run
from tocsin_collector.cli.remote import Login, login_file, save
from tocsin_collector.cli.shared import moment_ms


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebRig]:
    with web_rig(tmp_path_factory.mktemp("cli")) as rig:
        rig.story()
        yield rig


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for name in ("LANG", "LC_ALL", "LC_MESSAGES", "TOCSIN_URL", "TOCSIN_TOKEN_FILE", "TOCSIN_CA"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


class Terminal:
    """Runs commands and gives back exit code, text and errors."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        self._capsys.readouterr()  # what the collector in this process has logged
        code = run(list(arguments))
        told = self._capsys.readouterr()
        return code, told.out, told.err

    def json(self, *arguments: str) -> Any:
        code, out, _ = self(*arguments, "--json")
        envelope = json.loads(out)
        assert (envelope["ok"], envelope["code"]) == (code == 0, code)
        return envelope["data"] if code == 0 else envelope["error"]


@pytest.fixture
def tocsin(capsys: pytest.CaptureFixture[str]) -> Terminal:
    return Terminal(capsys)


def be(rig: WebRig, home: Path, name: str) -> None:
    save(Login(rig.base, rig.token(name), name), login_file({"XDG_CONFIG_HOME": str(home)}))


def incident_of(tocsin: Terminal, device: str) -> str:
    return str(tocsin.json("incident", "ls", "--state", "live", "--device", device)[0]["id"])


def test_login_reads_the_password_from_a_file_and_keeps_only_a_token_for_its_owner(
    rig: WebRig, tocsin: Terminal, home: Path
) -> None:
    secret = home / "password"
    secret.write_text(PASSWORDS["ann"] + "\n")
    code, out, err = tocsin("login", rig.base, "--user", "ann", "--password-file", str(secret))
    assert (code, err) == (0, "")
    assert out == f"Logged in to {rig.base} as ann (viewer).\n"
    kept = home / "tocsin" / "login.json"
    assert kept.stat().st_mode & 0o777 == 0o600
    assert PASSWORDS["ann"] not in kept.read_text()
    assert tocsin("hosts")[0] == 0
    assert tocsin("logout")[0] == 0
    assert not kept.exists()
    assert tocsin("hosts")[0] == 5


def test_a_wrong_password_is_refused_with_code_5(rig: WebRig, tocsin: Terminal, home: Path) -> None:
    secret = home / "password"
    secret.write_text("wrong")
    error = tocsin.json("login", rig.base, "--user", "ann", "--password-file", str(secret))
    assert error["code"] == "denied"
    assert tocsin("login", rig.base, "--user", "ann", "--password-file", str(secret))[0] == 5


def test_hosts_are_aligned_and_worst_first(rig: WebRig, tocsin: Terminal, home: Path) -> None:
    be(rig, home, "ann")
    code, out, _ = tocsin("hosts", "ls")
    lines = out.splitlines()
    assert code == 0
    assert [line.split()[0] for line in lines] == ["State", "Down", "Down", "Down", "Unknown", "Up"]
    column = lines[0].index("Device")
    assert {line[column:].split()[0] for line in lines[1:]} == {
        "hmi-2",
        "plc-press-7",
        "sw-hall-3",
        "spare-1",
        "edge-hall-3",
    }
    assert "\x1b" not in out
    chinese = tocsin("hosts", "--lang", "zh_CN")[1].splitlines()
    assert chinese[0].startswith("状态")
    at = {
        output.width(line[: line.index(word)])
        for line, word in zip(chinese[1:3], ("hmi-2", "plc-press-7"), strict=True)
    }
    assert len(at) == 1  # Chinese words take two columns each


def test_get_prints_one_line_per_instance(rig: WebRig, tocsin: Terminal, home: Path) -> None:
    be(rig, home, "ann")
    out = tocsin("get", "disk.used_ratio", "edge-hall-3")[1]
    assert [line.split()[1:3] for line in out.splitlines()[1:]] == [["mount=/", "63%"], ["mount=/data", "94%"]]
    assert tocsin.json("get", "disk.used_ratio", "edge-hall-3")[1]["value"] == 0.94
    assert tocsin.json("get", "disk.free", "edge-hall-3")["code"] == "no-such-metric"
    assert tocsin("get", "disk.free", "edge-hall-3")[0] == 1
    assert tocsin("hosts", "show", "nobody")[0] == 1


def test_names_cannot_play_with_the_terminal(rig: WebRig, tocsin: Terminal, home: Path) -> None:
    be(rig, home, "ann")
    out = tocsin("hosts", "show", "edge-hall-3")[1]
    assert HOSTILE[:20] in out
    assert output.safe("a\x1b[2Jb\u202ec\nd") == "a\ufffd[2Jb\ufffdc\ufffdd"


def test_why_tells_the_whole_chain_of_an_opened_and_of_a_suppressed_incident(
    rig: WebRig, tocsin: Terminal, home: Path
) -> None:
    be(rig, home, "ann")
    opened = tocsin("incident", "why", incident_of(tocsin, "edge-hall-3"))[1]
    assert "disk.used_ratio was 94%, above 92% (rule filesystem-full)" in opened
    assert "It held for 5 min, as the rule asks" in opened
    assert "desk  opened  waiting" in opened
    held_back = tocsin("incident", "why", incident_of(tocsin, "hmi-2"))[1]
    root = incident_of(tocsin, "sw-hall-3")
    assert f"Held back because of {root}: sw-hall-3 does not answer" in held_back
    assert "Nobody was told." in held_back
    assert "sw-hall-3 没有应答" in tocsin("incident", "why", root, "--lang", "zh_CN")[1]


def test_an_incident_is_taken_commented_and_resolved_and_says_no_when_it_is_over(
    tmp_path: Path, tocsin: Terminal, home: Path
) -> None:
    with web_rig(tmp_path / "own") as rig:
        rig.story()
        be(rig, home, "wang.lei")
        id = incident_of(tocsin, "edge-hall-3")
        assert tocsin("incident", "ack", id, "-m", "on it")[:2] == (0, f"{id} is acknowledged.\n")
        assert tocsin("incident", "comment", id, "清理日志")[0] == 0
        assert tocsin("incident", "resolve", id)[0] == 0
        assert tocsin("incident", "ack", id)[0] == 1
        shown = tocsin("incident", "show", id)[1]
        assert "Acknowledged by wang.lei: on it" in shown
        assert "wang.lei: 清理日志" in shown
        assert tocsin("incident", "close", id)[0] == 0
        be(rig, home, "ann")
        assert tocsin("incident", "ack", incident_of(tocsin, "sw-hall-3"))[0] == 5


def test_a_token_is_alone_on_stdout(tmp_path: Path, tocsin: Terminal, home: Path) -> None:
    with web_rig(tmp_path / "own") as rig:
        be(rig, home, "root")
        code, out, err = tocsin("token", "create", "--site", "shanghai", "--ttl", "24h", "--uses", "20")
        assert code == 0
        assert out.startswith("tocsin1.")
        assert out.count("\n") == 1
        assert "shown this once" in err
        (listed,) = tocsin.json("token", "ls")
        assert listed["expires_ms"] - listed["created_ms"] == 86_400_000
        assert tocsin("token", "revoke", listed["id"])[0] == 0
        assert "revoked" in tocsin("token", "ls")[1]
        assert tocsin("token", "create", "--ttl", "soon")[0] == 2


def test_availability_prints_six_sums_that_add_up(
    rig: WebRig, tocsin: Terminal, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tocsin_collector.cli.figures.now_ms", lambda: rig.now_ms)
    be(rig, home, "ann")
    found = tocsin.json("availability", "sw-hall-3", "--from", "1h")
    assert sum(found[f"{s}_ms"] for s in ("up", "degraded", "down", "unknown", "maintenance", "outside")) == 3_600_000
    out = tocsin("availability", "sw-hall-3", "--from", "1h")[1]
    assert "(110000 ms)" in out
    assert tocsin("availability", "sw-hall-3", "--from", "yesterday")[0] == 2
    assert moment_ms("2026-11-18T00:00:00+00:00", START_MS, None) == 1_794_960_000_000


def test_a_collector_that_is_gone_is_code_4_and_says_so(tocsin: Terminal, home: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        save(Login(url, "x", "ann"), login_file({"XDG_CONFIG_HOME": str(home)}))
        code, _, err = tocsin("status")
        assert code == 4
        assert f"tocsin: the collector at {url} does not answer" in err
        assert tocsin("incident", "ack", "I-1")[0] == 4
        assert tocsin.json("status")["code"] == "unreachable"


def test_something_else_on_that_port_is_told_apart(tocsin: Terminal, home: Path, rig: WebRig) -> None:
    save(Login(rig.base + "/static", "x", "ann"), login_file({"XDG_CONFIG_HOME": str(home)}))
    assert tocsin.json("status")["code"] == "not-a-collector"


def test_status_shows_agents(rig: WebRig, tocsin: Terminal, home: Path) -> None:
    be(rig, home, "ann")
    assert "edge-hall-3" in tocsin("status")[1]
    assert tocsin.json("status")["version"] == "test"


@pytest.mark.parametrize("arguments", [["hosst"], ["incident", "ack"], ["hosts", "--no-such"], ["login", "example"]])
def test_wrong_usage_is_code_2(tocsin: Terminal, arguments: list[str]) -> None:
    assert tocsin(*arguments)[0] == 2
    assert tocsin.json(*arguments)["code"] == "usage"


def test_a_broken_login_file_says_how_to_mend_it(tocsin: Terminal, home: Path) -> None:
    (home / "tocsin").mkdir()
    (home / "tocsin" / "login.json").write_text("{")
    code, _, err = tocsin("hosts")
    assert code == 5
    assert "tocsin login URL" in err
