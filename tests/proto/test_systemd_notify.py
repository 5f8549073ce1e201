"""sd_notify against a real datagram socket, as the service manager would hold it."""

import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tocsin_proto.systemd import STATUS_CHARS_MAX, Notifier


@pytest.fixture
def manager() -> Iterator[socket.socket]:
    # Not tmp_path: a socket path has 108 bytes at most.
    with (
        tempfile.TemporaryDirectory(prefix="t") as folder,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener,
    ):
        listener.bind(str(Path(folder) / "n"))
        listener.settimeout(5)
        yield listener


def test_the_manager_hears_every_word_in_order(manager: socket.socket) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "60000000"})
    notifier.ready("12 probes,\n 3 devices")
    notifier.ping()
    notifier.status("backlog 2 MiB")
    notifier.reloading()
    notifier.stopping()
    notifier.close()
    heard = [manager.recv(4096).decode() for _ in range(5)]
    assert heard[:3] == ["READY=1\nSTATUS=12 probes, 3 devices", "WATCHDOG=1", "STATUS=backlog 2 MiB"]
    word, moment = heard[3].split("\n")
    assert word == "RELOADING=1"
    assert moment.removeprefix("MONOTONIC_USEC=").isdecimal()
    assert heard[4] == "STOPPING=1"


def test_an_abstract_socket_is_heard_too() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("")  # Linux chooses a free abstract name
        listener.settimeout(5)
        name = "@" + listener.getsockname()[1:].decode()
        Notifier({"NOTIFY_SOCKET": name}).ready()
        assert listener.recv(4096) == b"READY=1"


def test_without_a_manager_every_word_is_silent() -> None:
    for environ in ({}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1"}, {"NOTIFY_SOCKET": "/nowhere/at/all"}):
        notifier = Notifier(environ)
        notifier.ready("x")
        notifier.ping()
        notifier.reloading()
        notifier.stopping()
        notifier.close()


def test_a_manager_that_does_not_read_never_blocks_us(manager: socket.socket) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager.getsockname()})
    for n in range(2000):  # far beyond the queue of a datagram socket
        notifier.status(f"round {n}")
    assert manager.recv(4096) == b"STATUS=round 0"
    notifier.status("after the queue had room again")
    manager.setblocking(False)
    last = b""
    try:
        while True:
            last = manager.recv(4096)
    except BlockingIOError:
        pass
    assert last == b"STATUS=after the queue had room again"


def test_a_status_is_one_bounded_line(manager: socket.socket) -> None:
    Notifier({"NOTIFY_SOCKET": manager.getsockname()}).status("x\nREADY=1\n" * 500)
    heard = manager.recv(4096).decode()
    assert "\n" not in heard
    assert len(heard) == len("STATUS=") + STATUS_CHARS_MAX


@pytest.mark.parametrize(
    ("environ", "interval"),
    [
        ({"WATCHDOG_USEC": "60000000"}, 30.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_is_fed_twice_an_interval_and_only_by_whom_it_is_meant_for(
    environ: dict[str, str], interval: float | None
) -> None:
    assert Notifier(environ).watchdog_s == interval


def test_no_watchdog_no_ping(manager: socket.socket) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager.getsockname()})
    notifier.ping()
    notifier.status("next")
    assert manager.recv(4096) == b"STATUS=next"
