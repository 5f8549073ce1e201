"""The web process itself: says where it listens, imports little, ends with whoever started it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO

import httpx2
import pytest


def started(folder: Path, *arguments: str) -> tuple["subprocess.Popen[bytes]", int]:
    command = [sys.executable, "-m", "tocsin_collector.web", "--state", str(folder), *arguments]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    line = _pipe(process.stdout).readline()
    assert line, _pipe(process.stderr).read().decode()
    return process, json.loads(line)["port"]


def ended(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        _pipe(pipe).close()


@pytest.mark.parametrize(
    "end",
    [lambda process: _pipe(process.stdin).close(), lambda process: os.kill(process.pid, signal.SIGTERM)],
    ids=["stdin closes", "SIGTERM"],
)
def test_it_answers_and_ends_at_once_when_told(
    tmp_path: Path, end: Callable[["subprocess.Popen[bytes]"], None]
) -> None:
    process, port = started(tmp_path, "--listen", "127.0.0.1:0")
    try:
        with httpx2.Client(trust_env=False, verify=False, timeout=10) as client:
            assert client.get(f"http://127.0.0.1:{port}/healthz").text == "ok\n"
            end(process)
            assert process.wait(10) == 0
    finally:
        ended(process)


def test_a_port_that_is_taken_is_one_clear_line(tmp_path: Path) -> None:
    first, port = started(tmp_path, "--listen", "127.0.0.1:0")
    try:
        command = [sys.executable, "-m", "tocsin_collector.web", "--state", str(tmp_path)]
        second = subprocess.run([*command, "--listen", f"127.0.0.1:{port}"], capture_output=True, input=b"", timeout=30)
        assert second.returncode == 1
        assert second.stdout == b""
        assert second.stderr.decode() == f"web: 127.0.0.1:{port}: Address already in use\n"
    finally:
        ended(first)


def test_the_log_goes_to_stderr_and_holds_no_session(tmp_path: Path) -> None:
    (tmp_path / "tocsin.db").write_bytes(b"not a database, not at all" * 400)
    process, port = started(tmp_path, "--listen", "127.0.0.1:0")
    try:
        with httpx2.Client(trust_env=False, verify=False, timeout=10) as client:
            headers = {"Authorization": "Bearer very-secret"}
            answer = client.get(f"http://127.0.0.1:{port}/api/v1/hosts", headers=headers)
            assert answer.status_code == 503
            assert "very-secret" not in answer.text
        _pipe(process.stdin).close()
        assert process.wait(10) == 0
        assert _pipe(process.stdout).read() == b""
        told = _pipe(process.stderr).read().decode()
        assert "the store cannot be read" in told
        assert "very-secret" not in told
    finally:
        ended(process)


def test_it_imports_neither_numpy_nor_grpc_nor_cryptography() -> None:
    code = "import tocsin_collector.web.app, sys; print([m for m in ('numpy', 'grpc', 'cryptography') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=30, check=True)
    assert found.stdout == b"[]\n"


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe
