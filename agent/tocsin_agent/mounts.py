"""Filesystem sizes under a deadline: a mount that hangs is named, and delays no other.

Not a probe: `probes/filesystems.py` decides what is watched and under which names. Two ways to ask, one answer:
`ThreadMeter` for local filesystems (cheap; a call that hangs costs one abandoned daemon thread until it returns), and
`ProcessMeter` for network filesystems (a worker process that is killed at the deadline).
Invariant: `measure` returns within about `deadline_s` per mount that newly hangs, whatever the kernel does.
"""

import asyncio
import contextlib
import json
import sys
import threading
from asyncio.subprocess import Process
from collections.abc import Sequence
from errno import EIO
from pathlib import Path

from tocsin_agent import mount_worker
from tocsin_agent.mount_worker import Usage
from tocsin_proto.records import Record

HUNG_THREADS_MAX = 32  # each holds a stack; past this the mounts that are left are reported as not responding
HUNG_RETRY_S = 30.0  # how soon a hung network mount is asked again: each try costs a process
DYING_S = 0.5  # how long the end of the agent waits for a killed worker
ANSWER_BYTES_MAX = 64 * 1024


class Answer(Record, frozen=True, gc=False):
    """What one mount said. No usage, no errno: `hung`, or no folder at all."""

    usage: Usage | None = None
    errno: int = 0
    hung: bool = False


HUNG = Answer(hung=True)


class ThreadMeter:
    """Measures mounts one after the other in a daemon thread; a hung call is left behind with its thread."""

    def __init__(self) -> None:
        self._stuck: dict[str, threading.Thread] = {}

    async def measure(self, paths: Sequence[str], deadline_s: float) -> dict[str, Answer]:
        self._stuck = {path: thread for path, thread in self._stuck.items() if thread.is_alive()}
        answers: dict[str, Answer] = {path: HUNG for path in paths if path in self._stuck}
        left = [path for path in paths if path not in answers]
        while left:
            if len(self._stuck) >= HUNG_THREADS_MAX:
                return answers | dict.fromkeys(left, HUNG)
            errand = _Errand(left, asyncio.get_running_loop())
            errand.start()
            try:
                async with asyncio.timeout(deadline_s):
                    await errand.done.wait()
            except TimeoutError:
                errand.abandoned = True
            # A copy: the thread may still be writing.
            answers |= dict(errand.answers)
            left = [path for path in left if path not in answers]
            if left:
                # The first without an answer is where it hangs; those behind it get a new thread.
                answers[left[0]] = HUNG
                self._stuck[left[0]] = errand
                left = left[1:]
        return answers

    async def close(self) -> None:
        self._stuck.clear()  # daemon threads: they do not keep the process


class _Errand(threading.Thread):
    """One pass over some mounts. `abandoned` makes it end as soon as the kernel lets it."""

    def __init__(self, paths: Sequence[str], loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(name="mounts", daemon=True)
        self._paths = tuple(paths)
        self._loop = loop
        self.answers: dict[str, Answer] = {}
        self.done = asyncio.Event()
        self.abandoned = False

    def run(self) -> None:
        for path in self._paths:
            if self.abandoned:
                return
            try:
                self.answers[path] = Answer(usage=mount_worker.measure(path))
            except OSError as error:
                self.answers[path] = Answer(errno=error.errno or 0)
        with contextlib.suppress(RuntimeError):  # the loop may be gone by now
            self._loop.call_soon_threadsafe(self.done.set)


class ProcessMeter:
    """Measures mounts through one lasting worker process; killed and started again when a mount hangs."""

    def __init__(self) -> None:
        self._worker: Process | None = None
        self._hung_until_s: dict[str, float] = {}
        self._dying: dict[str, Process] = {}  # by the mount it hangs in: killed, but a dead mount may hold even that

    @property
    def pid(self) -> int | None:
        return self._worker.pid if self._worker else None

    async def measure(self, paths: Sequence[str], deadline_s: float) -> dict[str, Answer]:
        now_s = asyncio.get_running_loop().time()
        self._hung_until_s = {path: until for path, until in self._hung_until_s.items() if path in paths}
        self._dying = {path: worker for path, worker in self._dying.items() if worker.returncode is None}
        answers: dict[str, Answer] = {}
        for path in paths:
            if path in self._dying or self._hung_until_s.get(path, 0.0) > now_s:
                answers[path] = HUNG
                continue
            answers[path] = await self._ask(path, deadline_s)
            if answers[path].hung:
                self._hung_until_s[path] = now_s + HUNG_RETRY_S
            else:
                self._hung_until_s.pop(path, None)
        return answers

    async def _ask(self, path: str, deadline_s: float) -> Answer:
        """One question, asked again once when the worker died under it: that is not the mount's fault."""
        try:
            async with asyncio.timeout(deadline_s):
                for _ in range(2):
                    with contextlib.suppress(OSError, ValueError):
                        said = json.loads(await self._exchange(json.dumps(path).encode() + b"\n"))
                        usage = said.get("usage")
                        return Answer(usage=tuple(usage) if usage else None, errno=said.get("errno", 0))
                    self._kill(path)
            return Answer(errno=EIO)
        except TimeoutError:
            self._kill(path)
            return HUNG
        except BaseException:
            # Cancelled between question and answer: the next answer would belong to the wrong question.
            self._kill(path)
            raise

    async def _exchange(self, question: bytes) -> bytes:
        worker = self._worker or await self._start()
        assert worker.stdin is not None
        assert worker.stdout is not None
        worker.stdin.write(question)
        await worker.stdin.drain()
        return await worker.stdout.readline()

    async def _start(self) -> Process:
        self._worker = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            "-S",
            str(Path(mount_worker.__file__)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            limit=ANSWER_BYTES_MAX,
        )
        return self._worker

    def _kill(self, path: str) -> None:
        """Not awaited: a process inside a dead mount may need long to die. asyncio reaps it."""
        worker, self._worker = self._worker, None
        if worker is None:
            return
        self._dying[path] = worker
        with contextlib.suppress(ProcessLookupError):
            worker.kill()
        if worker.stdin is not None:
            worker.stdin.close()

    async def close(self) -> None:
        self._kill("")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DYING_S):
                for worker in self._dying.values():
                    await worker.communicate()  # also closes the pipes
