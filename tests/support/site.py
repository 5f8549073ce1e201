"""One site as its operator runs it: the real commands in processes of their own, on loopback, on free ports, with real files.

Nothing here knows the inside of the programs: it writes settings, runs `tocsin-collector`, `tocsin-agent` and `tocsin`, and
reads what they print. What it waits for, it asks the API with the operator's saved login: a process for each look is dear.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from tocsin_collector.cli import remote

BIN = Path(sys.executable).parent
PASSWORD = "correct horse battery"
DEADLINE_S = 30.0
LIST_MAX = 1000
LOOK_EVERY_S = 0.1


class Site:
    """`with Site(tmp_path) as site:`; then in an operator's order: `init`, `run_collector`, `login`, `enrol`, `run_agent`.

    Whatever it started ends with the block.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / "c"  # short: a control socket's path has at most 107 bytes
        self.url = ""
        self._environ = {"PATH": os.environ["PATH"], "HOME": str(folder), "LANG": "C.UTF-8"}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._api: remote.Collector | None = None

    def __enter__(self) -> "Site":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._api is not None:
            self._api.__exit__()
        for name in reversed(list(self._processes)):
            self.stop(name)
        if error is not None:
            for log in sorted(self.folder.glob("*.log")):
                print(f"--- {log.name}\n{log.read_text(errors='replace')[-4000:]}")

    # -------------------------------------------------------------------------------------------------- as an operator

    def run(self, *arguments: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
        program, *rest = map(str, arguments)
        return subprocess.run(
            [str(BIN / program), *rest],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env=self._environ,
        )

    def done(self, *arguments: object, stdin: str = "") -> str:
        """What a command prints that must succeed."""
        ended = self.run(*arguments, stdin=stdin)
        assert ended.returncode == 0, (arguments, ended.returncode, ended.stdout, ended.stderr)
        return ended.stdout

    def tocsin(self, *arguments: object) -> Any:
        """The data of a command that must succeed, by its --json."""
        envelope = json.loads(self.done("tocsin", *arguments, "--json"))
        assert (envelope["ok"], envelope["code"]) == (True, 0), envelope
        return envelope["data"]

    def init(self, settings: str = "", *, registry: str = "", rules: str = "") -> None:
        """`tocsin-collector init`, then what the operator adds to its files."""
        arguments = ("--state", self.state, "--name", "localhost", "--admin-password-file", "-")
        self.done("tocsin-collector", "init", *arguments, stdin=PASSWORD)
        free = "".join(f'[{table}]\nlisten = "127.0.0.1:0"\n' for table in ("ingest", "enrol", "web"))
        with (self.state / "collector.toml").open("a") as file:
            file.write(free + settings)
        for name, text in (("registry", registry), ("rules", rules)):
            (self.state / name / "site.toml").write_text(text)

    def run_collector(self) -> None:
        (self.state / "ports.json").unlink(missing_ok=True)
        self._start("collector", "tocsin-collector", "run", "--state", self.state)
        self.url = f"http://127.0.0.1:{until(self._web_port, 'the port of the pages')}"

    def login(self) -> None:
        self.done("tocsin", "login", self.url, "--user", "admin", "--password-file", "-", stdin=PASSWORD)

    def enrol(self, name: str, settings: str = "", *, site: str = "") -> None:
        """A token by the operator's command, a certificate by the agent's, and its settings beside what that writes."""
        token = self.folder / f"{name}.token"
        token.write_text(self.done("tocsin", "token", "create", "--device", name, "--site", site))
        self.done("tocsin-agent", "enrol", *self._agent(name), "--token-file", token)
        drop_in = self.folder / f"{name}.d"
        drop_in.mkdir()
        (drop_in / "site.toml").write_text(settings)

    def credential(self, name: str, secret: str) -> None:
        folder = self.folder / "credentials"
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(secret)

    def run_agent(self, name: str) -> None:
        self._start(name, "tocsin-agent", "run", *self._agent(name))

    # --------------------------------------------------------------------------------------------------------- waiting

    @property
    def api(self) -> remote.Collector:
        if self._api is None:
            saved = remote.saved(remote.login_file(self._environ), self._environ)
            self._api = remote.Collector(saved, "en")
        return self._api

    def host(self, name: str) -> dict[str, Any] | None:
        return next((one for one in self.api.all("/hosts", LIST_MAX) if one["id"] == name), None)

    def until_host(self, name: str, state: str) -> dict[str, Any]:
        def look() -> dict[str, Any] | None:
            self.check()
            found = self.host(name)
            return found if found is not None and found["state"] == state else None

        found: dict[str, Any] = until(look, f"{name} {state}")
        return found

    def until_values(self, metric: str, host: str) -> list[dict[str, Any]]:
        """The metric's instances, as soon as all of them have a value: live values follow every two seconds."""

        def look() -> list[dict[str, Any]]:
            self.check()
            found: list[dict[str, Any]] = self.api.get(f"/hosts/{host}/values", metric=metric)["items"]
            return found if all(one["value"] is not None for one in found) else []

        found: list[dict[str, Any]] = until(look, f"values of {metric} on {host}")
        return found

    def until_incident(self, rule: str, device: str, state: str) -> dict[str, Any]:
        """Its only incident of that rule in that state, as soon as there is one."""

        def look() -> dict[str, Any] | None:
            self.check()
            found = [one for one in self.incidents(device, state) if one["rule"] == rule]
            assert len(found) <= 1, found
            return found[0] if found else None

        found: dict[str, Any] = until(look, f"{rule} on {device} {state}")
        return found

    def incidents(self, device: str, state: str = "all") -> list[dict[str, Any]]:
        """Newest first."""
        return self.api.all("/incidents", LIST_MAX, state=state, device=device)

    def check(self) -> None:
        for name, process in self._processes.items():
            assert process.poll() is None, f"{name} ended: {self._log(name).read_text()[-2000:]}"

    # ------------------------------------------------------------------------------------------------------- processes

    def stop(self, name: str) -> None:
        process = self._processes.pop(name)
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _start(self, name: str, program: str, *arguments: object) -> None:
        with self._log(name).open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [str(BIN / program), *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environ,
            )

    def _agent(self, name: str) -> tuple[object, ...]:
        return "--state", self.folder / name, "--config", self.folder / f"{name}.toml"

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def _web_port(self) -> int:
        self.check()
        try:
            ports: dict[str, int] = json.loads((self.state / "ports.json").read_text())
        except (FileNotFoundError, ValueError):
            return 0
        return ports.get("web", 0)


def until(look: Callable[[], Any], what: str) -> Any:
    """What `look` finds in programs outside this process, which no event of ours announces."""
    end_s = time.monotonic() + DEADLINE_S
    while time.monotonic() < end_s:
        if found := look():
            return found
        time.sleep(LOOK_EVERY_S)
    raise AssertionError(f"not within {DEADLINE_S:g} s: {what}")
