"""The parts of the demo that need no story: its files, its receiver, its judgement, and what it says when it cannot start."""

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tocsin_collector import configuration
from tocsin_collector.cli.operator import run
from tocsin_collector.config import load, paths
from tocsin_collector.demo import figures, plant
from tocsin_collector.demo.figures import BEHIND_KEYS, DISK_KEY, PORT_KEY, SWITCH_KEY, Fault, Result
from tocsin_collector.demo.plant import Folders, Secrets
from tocsin_collector.demo.receiver import BODY_BYTES_MAX, Notice, Receiver
from tocsin_collector.desk.signature import sign
from tocsin_collector.i18n import language
from tocsin_proto import exits

SECRET = b"known to both"
SECRETS = Secrets("a password", "a community", "a signing secret")


def test_the_files_of_the_demo_are_what_an_operator_may_write(tmp_path: Path) -> None:
    folders = Folders(tmp_path)
    plant.write_settings(folders, SECRETS, url="http://127.0.0.1:1/hook", port=0, lang="zh_CN")
    plant.write_plant(folders, {plant.SWITCH: 1001, plant.SERVER: 1002, plant.CONTROLLER: 1003})
    file = folders.collector / "collector.toml"
    loaded = load(file, {})
    config = configuration.compose(
        configuration.read(loaded.value, paths(loaded.value, file, {}, is_root=False)),
        [configuration.Enrolled(plant.HOST, plant.SITE)],
        None,
    )
    devices = {device.id: device for device in config.registry.devices}
    assert set(devices) == {plant.HOST, plant.SWITCH, plant.SERVER, plant.CONTROLLER}
    assert devices[plant.SERVER].parents == devices[plant.CONTROLLER].parents == (plant.SWITCH,)
    assert [rule.id for rule in config.rules if not rule.is_built_in] == ["filesystem-full"]
    written = [folders.collector / "secrets" / "desk", folders.agent / "credentials" / "plant"]
    assert [path.stat().st_mode & 0o777 for path in written] == [0o600, 0o600]
    assert folders.collector.stat().st_mode & 0o077 == 0


def post(url: str, body: bytes, headers: dict[str, str]) -> int:
    request = urllib.request.Request(url, body, headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def event(kind: str) -> bytes:
    body = {"id": "I-1/0", "type": f"io.tocsin.incident.{kind}", "subject": "I-1", "data": {"device": "sw-1"}}
    return json.dumps(body).encode()


def test_the_receiver_counts_what_is_signed_right_and_once() -> None:
    now = int(time.time())
    opened, resolved = event("opened"), event("resolved")
    with Receiver(SECRET) as receiver:
        for _ in range(2):
            assert post(receiver.url, opened, {"Idempotency-Key": "a", **sign(SECRET, now, opened)}) == 204
        assert post(receiver.url, resolved, {"Idempotency-Key": "b", **sign(SECRET, now, resolved)}) == 204
        assert post(receiver.url, resolved, {"Idempotency-Key": "c", **sign(b"another", now, resolved)}) == 401
        assert post(receiver.url, resolved, {"Idempotency-Key": "d", **sign(SECRET, now - 4000, resolved)}) == 401
        assert post(receiver.url, b"[]", {"Idempotency-Key": "e", **sign(SECRET, now, b"[]")}) == 400
        assert post(receiver.url, b"", {"Content-Length": str(BODY_BYTES_MAX + 1)}) == 413
        assert receiver.notices == [Notice("opened", "I-1", "sw-1"), Notice("resolved", "I-1", "sw-1")]
        assert receiver.refused == 2


def fault(key: str, state: str, *kinds: str, occurrences: int = 1) -> Fault:
    device = key.split("/")[1]
    return Fault({"key": key, "device": device, "state": state, "occurrences": occurrences}, kinds)


def good() -> tuple[list[Fault], list[Notice], dict[str, dict[str, int]]]:
    """What the figures are made of when the story has come out right."""
    faults = [fault(key, "resolved", "opened", "cleared", occurrences=2) for key in (PORT_KEY, DISK_KEY, SWITCH_KEY)]
    faults += [fault(key, "closed", "explained_by_parent", "cleared") for key in BEHIND_KEYS]
    notices = [Notice(kind, "I-1", plant.SWITCH) for kind in ("opened", "resolved") for _ in range(3)]
    sums = dict.fromkeys(figures.STATES, 0) | {"up": 900, "down": 100}
    return faults, notices, {plant.SWITCH: sums}


def judged(faults: list[Fault], notices: list[Notice], sums: dict[str, dict[str, int]], refused: int = 0) -> list[str]:
    told = {name: {f"{state}_ms": ms for state, ms in six.items()} for name, six in sums.items()}
    books: Any = SimpleNamespace(period=(1000, 2000), hosts=[], series=0, faults=faults, sums=told)
    result = figures.result(books, notices, 0, ())
    assert isinstance(result, Result)
    return figures.problems(books, result, refused, language("en").t)


def test_a_story_that_came_out_right_has_no_problems() -> None:
    assert judged(*good()) == []


@pytest.mark.parametrize(
    ("what", "problem"),
    [
        ("lost", f"{PORT_KEY}: 0 incidents, there should be exactly one that was opened"),
        ("twice", f"{DISK_KEY}: 2 incidents, there should be exactly one that was opened"),
        ("open", f"{SWITCH_KEY}: not resolved"),
        ("told", f"{BEHIND_KEYS[0]}: should be there once, and held back because of {plant.SWITCH}"),
        ("held", f"{BEHIND_KEYS[1]}: not ended"),
        ("foreign", "interface-down/sw-hall-3/interface=port7: an incident that nobody caused"),
        ("unfolded", "no repetition was folded into an incident"),
        ("notice", "notices: 3 opened and 2 resolved, they should be as many as incidents"),
        ("signature", "notices: 1 had a signature that is not right"),
        ("ledger", "availability: 7 ms are missing or counted twice"),
        ("never", f"availability: {plant.SWITCH} was never down"),
    ],
)
def test_whatever_did_not_come_out_right_is_named(what: str, problem: str) -> None:
    faults, notices, sums = good()
    six = sums[plant.SWITCH]
    wrong: dict[str, Any] = {
        "lost": lambda: faults.pop(0),
        "twice": lambda: faults.append(faults[1]),
        "open": lambda: faults.__setitem__(2, fault(SWITCH_KEY, "open", "opened", occurrences=2)),
        "told": lambda: faults.__setitem__(3, fault(BEHIND_KEYS[0], "closed", "explained_by_parent", "opened")),
        "held": lambda: faults.__setitem__(4, fault(BEHIND_KEYS[1], "held", "explained_by_parent")),
        "foreign": lambda: faults.append(fault("interface-down/sw-hall-3/interface=port7", "closed", "cleared")),
        "unfolded": lambda: [one.incident.__setitem__("occurrences", 1) for one in faults],
        "notice": lambda: notices.pop(),
        "ledger": lambda: six.__setitem__("up", 893),
        "never": lambda: six.update(up=1000, down=0),
        "signature": lambda: None,
    }
    wrong[what]()
    assert problem in judged(faults, notices, sums, refused=int(what == "signature"))


def test_incidents_of_the_host_itself_are_no_part_of_the_story() -> None:
    faults, notices, sums = good()
    faults.append(fault(f"filesystem-full/{plant.HOST}/mount=/", "open", "opened"))
    notices.append(Notice("opened", "I-9", plant.HOST))
    assert judged(faults, notices, sums) == []


def test_a_port_that_is_taken_is_one_line_and_nothing_is_started(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code = run(["demo", "--headless", "--port", str(port), "--json"])
    told = capsys.readouterr()
    assert code == exits.PROBLEM
    assert json.loads(told.out.splitlines()[-1])["error"]["message"].startswith(f"port {port}: Address already in use")
    assert "name another with --port, or none" in told.err


def test_wrong_arguments_are_a_usage_error_and_help_names_the_right_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["demo", "--secnods", "30"]) == exits.USAGE
    assert run(["demo", "--headless", "--seconds", "3"]) == exits.USAGE
    assert "15<=x<=3600" in capsys.readouterr().err
    assert run(["demo", "--help"]) == exits.OK
    assert "--headless" in capsys.readouterr().out


def test_what_is_on_the_leash_ends_when_its_owner_has_ended() -> None:
    """The owner is `sh`, which starts it, says its number and ends."""
    leash = f"{sys.executable} -m tocsin_collector.demo.leash $$ {sys.executable} -c 'import time; time.sleep(60)'"
    script = f"{leash} & echo $!; read ready"
    owner = subprocess.Popen(["sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert owner.stdin is not None
    assert owner.stdout is not None
    pid = int(owner.stdout.readline())
    try:
        _until_it_runs(pid, "time.sleep")
        owner.stdin.close()
        owner.wait(10)
        _until_it_runs(pid, "")
    finally:
        owner.stdout.close()


def _until_it_runs(pid: int, what: str) -> None:
    """Until its command line has `what` in it; "": until it is gone."""
    end_s = time.monotonic() + 20
    while time.monotonic() < end_s:
        try:
            now = Path(f"/proc/{pid}/cmdline").read_text()
        except FileNotFoundError:
            now = ""
        if (what in now and now) if what else not now:
            return
        time.sleep(0.02)
    raise AssertionError(f"process {pid}: {what or 'still there'}")
