"""The processes of the demo: collector, agent and devices, started and enrolled as an operator would do it, and ended.

Not the story. Invariant: however the demo ends, what it started ends with it, and nothing else; every process is the real
command in a process of its own, reached only by files, sockets and the API.
"""

import contextlib
import json
import os
import secrets
import selectors
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tocsin_collector.cli import remote
from tocsin_collector.config import SOCKET_PATH_MAX
from tocsin_collector.demo import plant
from tocsin_collector.demo.devices import ENV_COMMUNITY
from tocsin_collector.demo.plant import Folders, Secrets
from tocsin_collector.demo.receiver import Receiver
from tocsin_collector.i18n import N_, language

START_S_MAX = 30.0
STOP_S_MAX = 5.0
LOOK_EVERY_S = 0.05
LOG_CHARS_MAX = 8000
LOG_LINES_SHOWN = 12
ORDER_S_MAX = 5.0
# What would tell the demo's processes something about another installation of this machine.
FOREIGN = ("TOCSIN_", "CREDENTIALS_DIRECTORY", "STATE_DIRECTORY", "CONFIGURATION_DIRECTORY", "NOTIFY_SOCKET")
ADMIN = "admin"
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # loopback is not for a proxy to see


class StageError(Exception):
    """A part of the demo did not start or does not answer. text: to be translated; said: its own last words."""

    def __init__(self, text: str, said: str = "", /, **facts: object) -> None:
        super().__init__(language("en").t(text, **facts))
        self.text, self.facts = text, facts
        self.said = said.strip().splitlines()[-LOG_LINES_SHOWN:]


class Stage:
    """`with Stage() as stage: stage.start()`. `api` speaks to the collector, `order` to the devices."""

    def __init__(self, *, port: int = 0, lang: str = "en", on_step: Callable[[str], None] = lambda step: None) -> None:
        self.secrets = Secrets(secrets.token_urlsafe(9), secrets.token_urlsafe(9), secrets.token_urlsafe(24))
        self.receiver = Receiver(self.secrets.signing.encode())
        self.started_ms = time.time_ns() // 1_000_000
        self.first_sample_s = 0.0  # from the start to the first sample that the API shows
        self.url = ""
        self._lang = lang
        self._port = port
        self._on_step = on_step
        self._began_s = time.monotonic()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}  # in the order of their start
        self._exit = contextlib.ExitStack()

    # ------------------------------------------------------------------------------------------------------- life

    def __enter__(self) -> "Stage":
        self.folders = Folders(Path(self._exit.enter_context(temporary_folder())))
        self._exit.enter_context(self.receiver)
        self._exit.callback(self._end)
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    def start(self) -> None:
        """Everything, until the first sample is in the collector. Raises StageError."""
        if self._port:
            check_port(self._port)
        self.started_ms, self._began_s = time.time_ns() // 1_000_000, time.monotonic()
        plant.write_settings(self.folders, self.secrets, url=self.receiver.url, port=self._port, lang=self._lang)
        self._on_step("devices")
        devices = self._launch_devices()
        self._run(
            "tocsin-collector", "init", *self._collector(), "--admin-password-file", "-", say=self.secrets.password
        )
        plant.write_plant(self.folders, self._ports(devices))
        self._on_step("collector")
        self._launch("collector", program("tocsin-collector"), "run", *self._collector())
        self.url = f"http://127.0.0.1:{self._until('collector', self._web_port)}"
        self.api = self._exit.enter_context(self._log_in())
        self._on_step("agent")
        self._enrol()
        self._launch("agent", program("tocsin-agent"), "run", *self._agent())
        self._until("agent", self._has_samples)
        self.first_sample_s = time.monotonic() - self._began_s

    def order(self, **order: Any) -> None:
        """One order to the devices (`devices.obey`), done when this returns. Raises StageError."""
        devices = self._processes["devices"]
        assert devices.stdin is not None
        try:
            devices.stdin.write(json.dumps(order).encode() + b"\n")
            devices.stdin.flush()
        except OSError as error:
            raise self._failed("devices", N_("{part}: cannot be told anything")) from error
        answer = json.loads(self._line("devices", devices, ORDER_S_MAX))
        if "error" in answer:
            raise StageError(N_("{part}: {problem}"), part="devices", problem=answer["error"])

    def check(self) -> None:
        """Raises StageError when one of the processes has ended."""
        for name, process in self._processes.items():
            if process.poll() is not None:
                raise self._failed(name, N_("{part}: has ended with code {code}"), code=process.returncode)

    def metric(self, name: str) -> float:
        """The collector's own figure of that name, from /metrics; 0 when it is not there."""
        try:
            with _OPENER.open(f"{self.url}/metrics", timeout=ORDER_S_MAX) as answer:
                lines = answer.read().decode().splitlines()
        except OSError as error:
            raise StageError(N_("{part}: {problem}"), part="/metrics", problem=error) from error
        for line in lines:
            words = line.split()
            if len(words) == 2 and words[0] == name:
                return float(words[1])
        return 0.0

    # ---------------------------------------------------------------------------------------------------- processes

    def _launch_devices(self) -> subprocess.Popen[bytes]:
        command = (sys.executable, "-m", "tocsin_collector.demo.devices", *plant.DEVICES)
        return self._launch("devices", *command, pipes=True, environ={ENV_COMMUNITY: self.secrets.community})

    def _launch(
        self, name: str, *command: str, pipes: bool = False, environ: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        leash = (sys.executable, "-m", "tocsin_collector.demo.leash", str(os.getpid()))
        with (self.folders.logs / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [*leash, *command],
                stdin=subprocess.PIPE if pipes else subprocess.DEVNULL,
                stdout=subprocess.PIPE if pipes else log,
                stderr=log,
                env=surroundings() | dict(environ or {}),
                start_new_session=True,  # a Ctrl-C in the terminal is ours to pass on, in the right order
            )
        self._processes[name] = process
        return process

    def _run(self, name: str, *arguments: str, say: str = "") -> None:
        """A command that ends by itself."""
        try:
            done = subprocess.run(
                [program(name), *arguments],
                input=say.encode(),
                capture_output=True,
                env=surroundings(),
                timeout=START_S_MAX,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            text = N_("{part}: did not end within {n} s")
            raise StageError(text, part=f"{name} {arguments[0]}", n=f"{START_S_MAX:g}") from error
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace")[-LOG_CHARS_MAX:]
            text = N_("{part}: has ended with code {code}")
            raise StageError(text, said, part=f"{name} {arguments[0]}", code=done.returncode)

    def _end(self) -> None:
        """All of them, newest first: an agent that still has a collector ends without a word of complaint."""
        for process in reversed(self._processes.values()):
            if process.stdin is not None:
                with contextlib.suppress(OSError):
                    process.stdin.close()
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(STOP_S_MAX)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
            if process.stdout is not None:
                process.stdout.close()

    # ------------------------------------------------------------------------------------------------------ enrolment

    def _log_in(self) -> remote.Collector:
        tag = self._lang.replace("_", "-")
        with remote.Collector(remote.Login(self.url, ""), tag) as nobody:
            granted = nobody.post("/login", {"name": ADMIN, "password": self.secrets.password})
        return remote.Collector(remote.Login(self.url, granted["token"], ADMIN), tag)

    def _enrol(self) -> None:
        """By the real path: a one-time token, a key made on the agent's side, a certificate."""
        made = self.api.post("/tokens", {"device": plant.HOST, "site": plant.SITE})
        plant.write_secret(self.folders.token, made["token"])
        self._run("tocsin-agent", "enrol", *self._agent(), "--token-file", str(self.folders.token))

    def _collector(self) -> tuple[str, ...]:
        return "--state", str(self.folders.collector)

    def _agent(self) -> tuple[str, ...]:
        return "--state", str(self.folders.agent / "state"), "--config", str(self.folders.agent_settings)

    # --------------------------------------------------------------------------------------------------------- waiting

    def _ports(self, devices: subprocess.Popen[bytes]) -> dict[str, int]:
        ports: dict[str, int] = json.loads(self._line("devices", devices, START_S_MAX))
        return ports

    def _line(self, name: str, process: subprocess.Popen[bytes], timeout_s: float) -> bytes:
        """The next line that it prints; each is one write of less than a pipe's page, and comes whole."""
        assert process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            line = process.stdout.readline() if selector.select(timeout_s) else b""
        if not line:
            raise self._failed(name, N_("{part}: does not answer"))
        return line

    def _until(self, name: str, look: Callable[[], Any]) -> Any:
        """What `look` finds, as soon as it finds something. Raises StageError."""
        end_s = time.monotonic() + START_S_MAX
        while time.monotonic() < end_s:
            self.check()
            if found := look():
                return found
            time.sleep(LOOK_EVERY_S)
        raise self._failed(name, N_("{part}: not ready within {n} s"), n=f"{START_S_MAX:g}")

    def _web_port(self) -> int:
        try:
            ports: dict[str, int] = json.loads((self.folders.collector / "ports.json").read_bytes())
        except (FileNotFoundError, ValueError):
            return 0
        return ports.get("web", 0)

    def _has_samples(self) -> bool:
        try:
            return bool(self.api.get(f"/hosts/{plant.HOST}/values")["items"])
        except remote.Failed:
            return False  # the host is known a moment after its enrolment

    def _failed(self, name: str, text: str, **facts: object) -> StageError:
        try:
            said = (self.folders.logs / f"{name}.log").read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            said = ""
        return StageError(text, said[-LOG_CHARS_MAX:], part=name, **facts)


# ------------------------------------------------------------------------------------------------------------- leaves


@contextlib.contextmanager
def temporary_folder() -> Iterator[str]:
    """For its owner only, gone afterwards, with a path short enough for the collector's control socket."""
    long_name = len(os.fsencode(tempfile.gettempdir())) + 60 > SOCKET_PATH_MAX
    folder = tempfile.mkdtemp(prefix="tocsin-demo-", dir="/tmp" if long_name else None)  # noqa: S108
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def program(name: str) -> str:
    """The command beside this Python, or on the PATH. Raises StageError."""
    beside = Path(sysconfig.get_path("scripts")) / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise StageError(N_("the command {name} is not installed: pip install 'tocsin[all]'"), name=name)
    return found


def surroundings() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}


def check_port(port: int) -> None:
    """Raises StageError when the pages could not listen there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            text = N_("port {port}: {problem}; name another with --port, or none")
            raise StageError(text, port=port, problem=error.strerror) from error
