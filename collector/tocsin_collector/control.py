"""The control socket: how the web process and the commands on this machine ask the engine process for something.

One line of JSON each way over a unix socket that only its owner may open (0600); the folder's mode is the only key, so what
comes in was checked for roles already by whoever speaks. Not what the verbs do (`verbs.py`). Invariant: every line gets exactly
one answer, an error too, and nothing a peer sends can end the server.
"""

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import structlog

LINE_BYTES_MAX = 64 * 1024
ANSWER_BYTES_MAX = 16 * 1024 * 1024
CONNECTIONS_MAX = 64
IDLE_S_MAX = 60.0
CALL_S_MAX = 30.0

log = structlog.get_logger("tocsin.control")

# Takes the decoded object of one line, gives the fields of the answer; raises ControlError for what is refused.
Handler = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]


class ControlError(Exception):
    """A request that was refused, or an engine that does not answer. `code` is for programs, the rest for people."""

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(f"{message}; {hint}" if hint else message)
        self.code = code
        self.message = message
        self.hint = hint

    def to_answer(self) -> dict[str, Any]:
        return {"ok": False, "error": {"code": self.code, "message": self.message, "hint": self.hint}}


class ControlServer:
    """Serves `handler` at `path`. `start` replaces a socket that a dead engine left behind, never a live one."""

    def __init__(self, path: Path, handler: Handler) -> None:
        self._path = path
        self._handler = handler
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Raises ControlError("running") when another engine serves this socket, OSError when it cannot be made."""
        if self._path.exists():
            if await _is_alive(self._path):
                raise ControlError("running", f"another collector serves {self._path}", "stop it first")
            self._path.unlink()
        # The socket is born with the umask's mode: between bind and chmod nobody else may slip in.
        before = os.umask(0o177)
        try:
            self._server = await asyncio.start_unix_server(self._serve, str(self._path), limit=LINE_BYTES_MAX)
        finally:
            os.umask(before)

    async def stop(self) -> None:
        if self._server is None:
            return
        self._server.close()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)
        await self._server.wait_closed()
        self._path.unlink(missing_ok=True)
        self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            if len(self._open) > CONNECTIONS_MAX:
                busy = ControlError("busy", f"more than {CONNECTIONS_MAX} connections", "try again in a moment")
                await _write(writer, busy.to_answer())
                return
            await self._converse(reader, writer)
        except (ConnectionError, TimeoutError):
            pass
        except asyncio.CancelledError:
            # Only `stop` cancels us; asyncio's own stream callback would print a stack trace for it.
            pass
        finally:
            self._open.discard(task)
            writer.close()
            with contextlib.suppress(ConnectionError, TimeoutError, asyncio.CancelledError):
                await asyncio.wait_for(writer.wait_closed(), 1.0)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                line = await asyncio.wait_for(reader.readline(), IDLE_S_MAX)
            except ValueError:  # longer than the reader's limit: its end cannot be found any more
                long = ControlError("too-long", f"a line has at most {LINE_BYTES_MAX} bytes")
                await _write(writer, long.to_answer())
                return
            if not line.endswith(b"\n"):
                return  # the peer went away, perhaps in the middle of a line: half a wish is none
            await _write(writer, await self._answer(line))

    async def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            request = msgspec.json.decode(line, type=dict[str, Any])
            async with asyncio.timeout(CALL_S_MAX):
                return {"ok": True, **await self._handler(request)}
        except msgspec.DecodeError as error:
            return ControlError("malformed", f"not a JSON object: {error}").to_answer()
        except ControlError as error:
            return error.to_answer()
        except TimeoutError:
            return ControlError("timeout", f"no answer within {CALL_S_MAX:.0f} s", "the store may be busy").to_answer()
        except Exception:
            log.exception("control request failed")
            return ControlError("internal", "the engine failed on this request", "its log says why").to_answer()


class ControlClient:
    """Calls the engine. One connection a call: a restart of the engine in between goes unnoticed."""

    def __init__(self, path: Path, *, timeout_s: float = CALL_S_MAX + 1.0) -> None:
        self._path = path
        self._timeout_s = timeout_s

    async def call(self, do: str, **fields: Any) -> dict[str, Any]:
        """The answer's fields without "ok". Raises ControlError: the engine's own, or code "unreachable"."""
        return await self.send({"do": do, **fields})

    async def send(self, request: dict[str, Any]) -> dict[str, Any]:
        line = msgspec.json.encode(request) + b"\n"
        if len(line) > LINE_BYTES_MAX:
            raise ControlError("too-long", f"a request has at most {LINE_BYTES_MAX} bytes, this one {len(line)}")
        try:
            async with asyncio.timeout(self._timeout_s):
                raw = await self._exchange(line)
        except (OSError, TimeoutError) as error:
            hint = "is `tocsin-collector run` running?"
            raise ControlError("unreachable", f"the engine does not answer at {self._path}", hint) from error
        return _opened(raw)

    async def _exchange(self, line: bytes) -> bytes:
        reader, writer = await asyncio.open_unix_connection(str(self._path), limit=ANSWER_BYTES_MAX)
        try:
            writer.write(line)
            await writer.drain()
            try:
                return await reader.readline()
            except ValueError as error:
                raise ControlError("too-long", f"the answer has more than {ANSWER_BYTES_MAX} bytes") from error
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


def _opened(raw: bytes) -> dict[str, Any]:
    """An answer's fields. Raises ControlError when it is an error, or none at all."""
    if not raw.endswith(b"\n"):
        raise ControlError("unreachable", "the engine ended before it answered", "look at its log")
    answer = msgspec.json.decode(raw, type=dict[str, Any])
    if answer.pop("ok", False):
        return answer
    error = answer.get("error", {})
    raise ControlError(error.get("code", "internal"), error.get("message", ""), error.get("hint", ""))


async def _is_alive(path: Path) -> bool:
    try:
        async with asyncio.timeout(1.0):
            _, writer = await asyncio.open_unix_connection(str(path))
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True


async def _write(writer: asyncio.StreamWriter, answer: dict[str, Any]) -> None:
    writer.write(msgspec.json.encode(answer) + b"\n")
    async with asyncio.timeout(CALL_S_MAX):
        await writer.drain()
