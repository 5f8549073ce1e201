"""What the running agent says of itself to `tocsin-agent status`, over a socket in its state folder.

Not metrics: those go to the collector. Invariant: read only - whoever connects gets one JSON record and nothing is read
from him; the socket's folder (0700) decides who may.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import structlog

log = structlog.get_logger(__name__)

SOCKET = "status.sock"
STATUS_BYTES_MAX = 4 * 1024 * 1024
ANSWER_WITHIN_S = 3.0


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """Times are Unix milliseconds, 0 for never."""

    version: str
    pid: int
    started_ms: int
    now_ms: int
    agent: str  # who the collector takes us for
    collector: str
    connected: bool
    uplink: str
    last_ack_ms: int
    certificate_expires_ms: int
    certificate_problem: str = ""  # why it was not renewed
    backlog_bytes: int
    backlog_frames: int
    dropped_frames: int
    rejected_frames: int
    targets: int
    series: int
    overruns: int
    probe_errors: int
    problems: dict[str, str]
    assignment_etag: str
    refused: tuple[str, ...]


@asynccontextmanager
async def serve(folder: Path, status: Callable[[], Status]) -> AsyncIterator[None]:
    """Answers while the block runs. Without a socket (another system, a full disk) the agent runs all the same."""

    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, TimeoutError):
            writer.write(msgspec.json.encode(status()) + b"\n")
            async with asyncio.timeout(ANSWER_WITHIN_S):
                await writer.drain()
        writer.close()

    server = None
    try:
        with _reachable(folder) as path:
            Path(path).unlink(missing_ok=True)
            server = await asyncio.start_unix_server(answer, path)
    except (OSError, AttributeError, NotImplementedError) as error:
        log.warning("no status socket", folder=str(folder), error=str(error))
    try:
        yield
    finally:
        if server is not None:
            server.close()
            with contextlib.suppress(OSError):
                (folder / SOCKET).unlink(missing_ok=True)


def ask(folder: Path) -> Status | None:
    """The status of the agent that runs on this state folder; None when none does. OSError when it may not be asked."""
    try:
        with _reachable(folder) as path, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asked:
            asked.settimeout(ANSWER_WITHIN_S)
            asked.connect(path)
            raw = b""
            while (part := asked.recv(65536)) and len(raw) < STATUS_BYTES_MAX:
                raw += part
    except (FileNotFoundError, ConnectionRefusedError):
        return None
    return msgspec.json.decode(raw, type=Status)


@contextlib.contextmanager
def _reachable(folder: Path) -> Iterator[str]:
    """A path to the socket that fits into a socket's address (some 100 bytes), however deep the folder is."""
    descriptors = Path("/proc/self/fd")
    if len(os.fsencode(folder / SOCKET)) < 100 or not descriptors.is_dir():
        yield str(folder / SOCKET)
        return
    folder_fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"{descriptors}/{folder_fd}/{SOCKET}"
    finally:
        os.close(folder_fd)
