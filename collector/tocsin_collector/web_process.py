"""The web process as the engine sees it: started, watched, started again, ended.

Not the pages. Invariant: it never outlives the engine (its stdin ends with us), and its failures never touch the engine.
"""

import asyncio
import contextlib
import os
import random
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec
import structlog

from tocsin_collector.config import Address, Paths, Web, parse_address

log = structlog.get_logger("tocsin.web")

BACKOFF_S_MAX = 30.0
STEADY_S = 60.0  # who ran for so long is started again at once
START_S_MAX = 30.0
STOP_S_MAX = 1.5
# The rest of the engine's environment (NOTIFY_SOCKET, credentials) is none of its business.
PASSED_ON = (
    "PATH",
    "HOME",
    "LANG",
    "LANGUAGE",
    "LC_ALL",
    "TZ",
    "TMPDIR",
    "PYTHONPATH",
    "VIRTUAL_ENV",
    "SYSTEMD_COLORS",
)


class _Listening(msgspec.Struct, frozen=True):
    """The first line that the web process prints."""

    port: int


class WebProcess:
    """`run` is its task. port: where it listens, 0 until it does. on_listening: told each time it does."""

    def __init__(self, settings: Web, paths: Paths, environ: Mapping[str, str]) -> None:
        self.restarts = 0
        self.port = 0
        self.tried = asyncio.Event()  # the first start has come to something, good or bad
        self.on_listening: Callable[[], None] = _nobody
        self._settings = settings
        self._paths = paths
        self._environ = {name: environ[name] for name in PASSED_ON if name in environ}
        self._process: asyncio.subprocess.Process | None = None

    async def run(self) -> None:
        """Until cancelled; `end` then ends the process."""
        loop, backoff_s = asyncio.get_running_loop(), 1.0
        while True:
            began = loop.time()
            try:
                code = await self._once()
            except OSError as error:  # no memory, no process: pages can wait, monitoring cannot
                log.error("web process cannot be started", problem=str(error))
                code = -1
            self.tried.set()
            ran_s = loop.time() - began
            backoff_s = 1.0 if ran_s >= STEADY_S else min(backoff_s * 2, BACKOFF_S_MAX)
            pause_s = random.uniform(backoff_s / 2, backoff_s)  # noqa: S311 - spreads load, guards nothing
            log.error("web process ended, starting it again", code=code, ran_s=round(ran_s, 1), in_s=round(pause_s, 1))
            self.restarts += 1
            await asyncio.sleep(pause_s)

    async def _once(self) -> int:
        """Start it and wait for its end."""
        self._process = process = await asyncio.create_subprocess_exec(
            *self._command(),
            stdin=asyncio.subprocess.PIPE,  # held open, never written: its end tells that the engine is gone
            stdout=asyncio.subprocess.PIPE,
            env=self._environ,
            start_new_session=True,  # a Ctrl-C in our terminal is ours to pass on
        )
        assert process.stdout is not None
        try:
            async with asyncio.timeout(START_S_MAX):
                line = await process.stdout.readline()
            self.port = msgspec.json.decode(line, type=_Listening).port
            self.tried.set()
            self.on_listening()
            log.info("web process listens", pid=process.pid, host=self._listen().host, port=self.port)
            # Nothing more is expected, but a full pipe would stop it.
            while await process.stdout.read(4096):
                pass
        except (TimeoutError, msgspec.MsgspecError):
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        return await process.wait()

    async def end(self) -> None:
        """After `run` was cancelled. Within STOP_S_MAX."""
        process, self._process = self._process, None
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_S_MAX):
                await process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()

    def _listen(self) -> Address:
        """A port that was free at the first start is kept: people have it in their browsers."""
        address = parse_address(self._settings.listen)
        return Address(address.host, self.port or address.port)

    def _command(self) -> Sequence[str]:
        settings, home = self._settings, self._paths.file.parent
        command = [sys.executable, "-m", "tocsin_collector.web"]
        command += ["--state", str(self._paths.state), "--control", str(self._paths.control)]
        command += ["--listen", str(self._listen()), "--lang", settings.lang]
        command += ["--session-ms", str(int(settings.session)), "--url", settings.url]
        if settings.certificate:
            command += ["--certificate", _absolute(home, settings.certificate), "--key", _absolute(home, settings.key)]
        return command


def _nobody() -> None:
    """Who is told before somebody asked to be."""


def _absolute(home: Path, file: str) -> str:
    return str(home / file)
