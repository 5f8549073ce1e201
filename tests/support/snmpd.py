"""Debian's real `snmpd` as the device under watch: in the foreground, on loopback, with its own configuration only."""

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType

import pytest

START_S_MAX = 10.0
PROGRAM_PATH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))


def program(name: str, package: str) -> str:
    """Its path; without it the test is skipped with the package's name, and fails where CI=true."""
    found = shutil.which(name, path=PROGRAM_PATH)
    if found is None:
        reason = f"needs Debian's {package} (apt-get install --no-install-recommends {package})"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return found


def free_udp_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


class Snmpd:
    """`with Snmpd(tmp_path) as device:` - `device.port`, `device.community`, `device.stop()`, `device.start()`.

    `stop()` and `start()` may be called in turn; the port stays the same. Leaving the block stops it.
    """

    def __init__(self, folder: Path, *, community: str = "public", name: str = "snmpd-under-test") -> None:
        self.program = program("snmpd", "snmpd")
        self.host = "127.0.0.1"
        self.port = free_udp_port()
        self.community = community
        self.name = name
        self._folder = folder / "snmpd"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    def start(self) -> None:
        assert self._process is None, "already running"
        self._folder.mkdir(exist_ok=True)
        config = self._folder / "snmpd.conf"
        config.write_text(
            f"agentaddress udp:{self.address}\n"
            f"rocommunity {self.community} 127.0.0.1\n"
            f"sysName {self.name}\n"
            "sysLocation test bench\n"
        )
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self.program, "-f", "-r", "-C", "-c", str(config), "-Lo", f"--persistentDir={self._folder / 'state'}"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "MIBS": "", "SNMPCONFPATH": str(self._folder)},
            )
        self._wait_until_it_answers()

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(5)

    def walk(self, root: str) -> dict[str, str]:
        """What Net-SNMP's own client sees: OID -> "TYPE: value"."""
        bulkwalk = program("snmpbulkwalk", "snmp")
        done = subprocess.run(
            [bulkwalk, "-v2c", "-c", self.community, "-On", "-Oe", "-OU", "-t", "5", self.address, root],
            capture_output=True,
            text=True,
            env={**os.environ, "MIBS": ""},
            timeout=30,
            check=True,
        )
        pairs = re.findall(r"^\.([0-9.]+) = (.*)$", done.stdout, re.MULTILINE)
        return dict(pairs)

    def __enter__(self) -> "Snmpd":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _wait_until_it_answers(self) -> None:
        """The start of a real daemon is waited for by asking, with a real deadline: its first answer is the proof."""
        question = _sys_uptime_question(self.community)
        ends_at = time.monotonic() + START_S_MAX
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(0.1)
            sock.connect((self.host, self.port))
            while time.monotonic() < ends_at:
                assert self._process is not None
                if self._process.poll() is not None:
                    raise RuntimeError(f"snmpd ended at once: {(self._folder / 'log').read_text()[-2000:]}")
                try:
                    sock.send(question)
                    if sock.recv(65535):
                        return
                except ConnectionRefusedError:
                    time.sleep(0.02)
                except TimeoutError:
                    continue
        self.stop()
        raise RuntimeError(f"snmpd does not answer after {START_S_MAX} s")


def _sys_uptime_question(community: str) -> bytes:
    """GET sysUpTime.0 by hand, so that this helper needs no SNMP library."""
    name = bytes.fromhex("06082b06010201010300")
    binding = b"\x30" + bytes([len(name) + 2]) + name + b"\x05\x00"
    bindings = b"\x30" + bytes([len(binding)]) + binding
    body = b"\x02\x01\x01\x02\x01\x00\x02\x01\x00" + bindings
    pdu = b"\xa0" + bytes([len(body)]) + body
    secret = community.encode()
    message = b"\x02\x01\x01\x04" + bytes([len(secret)]) + secret + pdu
    return b"\x30" + bytes([len(message)]) + message
