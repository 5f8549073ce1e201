"""Words to the service manager: ready, status, watchdog, stopping (sd_notify(3)), over its datagram socket.

Not a dependency on systemd: without NOTIFY_SOCKET every call does nothing. Invariant: it never raises and never blocks;
a service manager that does not listen is no reason to stop watching.
"""

import contextlib
import os
import socket
import time
from collections.abc import Mapping
from typing import Final

STATUS_CHARS_MAX: Final = 200


class Notifier:
    """One socket, open as long as the process. `watchdog_s` is how often to `ping`, None when nobody waits for it."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.watchdog_s = _watchdog_s(environ)
        self._address = _address(environ.get("NOTIFY_SOCKET", ""))
        self._socket: socket.socket | None = None

    def ready(self, status: str = "") -> None:
        self._tell("READY=1", *_status(status))

    def status(self, status: str) -> None:
        self._tell(*_status(status))

    def ping(self) -> None:
        """The watchdog is fed from the loop that does the work: a loop that hangs must not look alive."""
        if self.watchdog_s is not None:
            self._tell("WATCHDOG=1")

    def reloading(self) -> None:
        """Before a reload; `ready` after it. Type=notify-reload wants the time to tell this reload from an older one."""
        self._tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, status: str = "") -> None:
        self._tell("STOPPING=1", *_status(status))

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _tell(self, *words: str) -> None:
        if not self._address or not words:
            return
        # Full, gone or forbidden: the next word may arrive, and no word is worth an outage.
        with contextlib.suppress(OSError):
            if self._socket is None:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
                self._socket.setblocking(False)
            self._socket.sendto("\n".join(words).encode("utf-8", "replace"), self._address)


def _address(name: str) -> str:
    """A path, or an abstract name behind "@"; anything else (vsock) is not ours to speak."""
    if name.startswith("@"):
        return "\0" + name[1:]
    return name if name.startswith("/") else ""


def _status(status: str) -> tuple[str, ...]:
    line = " ".join(status.split())[:STATUS_CHARS_MAX]
    return (f"STATUS={line}",) if line else ()


def _watchdog_s(environ: Mapping[str, str]) -> float | None:
    """Half of WATCHDOG_USEC, when it is meant for this process (sd_watchdog_enabled(3))."""
    usec, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if not usec.isdecimal() or int(usec) == 0 or (pid and pid != str(os.getpid())):
        return None
    return int(usec) / 2_000_000
