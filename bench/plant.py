"""A real collector process for benchmarks, in a state folder of its own, with agents that are enrolled before it starts.

Not a model of anything: `tocsin-collector init` and `run` as an operator runs them. The agents' certificates come from the
collector's own authority, as enrolment issues them; what is left out is only the hour-long token in front.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from tocsin_collector.control import ControlClient

BIN = Path(sys.executable).parent
READY_S_MAX = 30.0
T = TypeVar("T")
SETTINGS = """
[ingest]
listen = "127.0.0.1:0"
[enrol]
listen = "127.0.0.1:0"
[web]
listen = "127.0.0.1:0"
[log]
format = "logfmt"
"""


def environ() -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "LANG": "C.UTF-8"}


def run(program: str, *arguments: object, stdin: str = "") -> str:
    """Run one of Tocsin's commands to its end; its stdout. RuntimeError when it fails."""
    done = subprocess.run(
        [str(BIN / program), *map(str, arguments)],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environ(),
    )
    if done.returncode:
        raise RuntimeError(f"{program} {arguments[0]} failed ({done.returncode}): {done.stderr}")
    return done.stdout


def until(found: Callable[[], T], what: str, seconds_max: float = READY_S_MAX, step_s: float = 0.01) -> T:
    """Wait for something outside this process. RuntimeError when it does not come."""
    end = time.monotonic() + seconds_max
    while time.monotonic() < end:
        if value := found():
            return value
        time.sleep(step_s)
    raise RuntimeError(f"not within {seconds_max} s: {what}")


def lay(state: Path) -> Path:
    """A new collector's state folder, listening on free ports of loopback."""
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    run(
        "tocsin-collector", "init", "--state", state, "--name", "localhost", "--admin-password-file", "-",
        stdin="correct horse battery",
    )  # fmt: skip
    with (state / "collector.toml").open("a") as file:
        file.write(SETTINGS)
    return state


@dataclass(frozen=True, slots=True)
class Credentials:
    """Of one agent, as PEM text, for a loader in another process."""

    agent: str
    key_pem: str
    certificate_pem: str
    ca_pem: str


def enrol(state: Path, names: list[str]) -> list[Credentials]:
    """Put agents into the collector's database while it is not running."""
    return asyncio.run(_enrol(state, names))


async def _enrol(state: Path, names: list[str]) -> list[Credentials]:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    from tocsin_collector.ingest import roster
    from tocsin_collector.ingest.authority import Authority
    from tocsin_collector.store.base import Statements, Transaction
    from tocsin_collector.store.sqlite import SqliteStore

    now_ms = time.time_ns() // 1_000_000
    authority = Authority.load(state / "ca", now_ms)
    made: list[Credentials] = []
    agents: list[roster.Agent] = []
    for name in names:
        key, uuid = ec.generate_private_key(ec.SECP256R1()), str(uuid4())
        request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
        issued = authority.issue_agent(request.public_bytes(Encoding.DER), uuid, now_ms)
        agents.append(roster.Agent(name, uuid, name, "", "", issued.serial, issued.expires_ms, now_ms))
        key_pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        made.append(Credentials(name, key_pem.decode(), issued.certificate_pem.decode(), authority.ca_pem.decode()))

    async def write(connection: Statements) -> None:
        for agent in agents:
            await roster.write(connection, agent)

    store = await SqliteStore.open(state / "tocsin.db")
    try:
        await store.commit(Transaction(operations=[write], at_ms=now_ms))
    finally:
        await store.close()
    return made


class Collector:
    """`tocsin-collector run` on a state folder, ready when this returns. RuntimeError with its log when it does not start."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.log = state / "log"
        ports = state / "ports.json"
        ports.unlink(missing_ok=True)
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                [str(BIN / "tocsin-collector"), "run", "--state", str(state)], stdout=out, stderr=out, env=environ()
            )
        until(lambda: ports.exists() or self.process.poll() is not None, "the collector's ports")
        if self.process.poll() is not None:
            raise RuntimeError(f"the collector did not start: {self.log.read_text()}")
        self.ports: dict[str, int] = json.loads(ports.read_text())

    @property
    def pid(self) -> int:
        return self.process.pid

    def call(self, do: str, **fields: Any) -> dict[str, Any]:
        return asyncio.run(ControlClient(self.state / "control.sock").call(do, **fields))

    def figures(self) -> dict[str, float]:
        """The collector's own metrics, without labelled ones."""
        lines = str(self.call("metrics")["text"]).splitlines()
        pairs = [line.rsplit(" ", 1) for line in lines if not line.startswith("#") and "{" not in line]
        return {name: float(value) for name, value in pairs}

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(20)
