"""Renews the certificate in good time: at two thirds of its life, again and again until it is done.

Not the asking (`renewal`, a process of its own) and not the stream (`uplink`, which takes the new identity when it is
quiet). Invariant: the identity in use is replaced only by one that lies whole on the disk.
"""

import asyncio
import contextlib
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
import structlog

from tocsin_agent import identity
from tocsin_agent.daemon_thread import DaemonCall
from tocsin_agent.identity import EnrolError, Identity
from tocsin_agent.renewal import Outcome
from tocsin_agent.uplink import Uplink

CHECK_S: Final = 30.0  # the wall clock may be set meanwhile
CHILD_WITHIN_S: Final = 60.0
DYING_S: Final = 0.5
RETRY_S_MIN: Final = 60.0
RETRY_S_MAX: Final = 3600.0
SPREAD: Final = 30  # a fleet that enrolled within an hour renews within a thirtieth of a life: one day of thirty

Ask = Callable[[Path, str], Awaitable[Outcome]]

log = structlog.get_logger(__name__)


async def in_process(folder: Path, address: str) -> Outcome:
    """Runs `renewal` and waits for what it says; killed when it takes too long, or when nobody waits any more."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "tocsin_agent.renewal", str(folder), address),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(CHILD_WITHIN_S):
            said, _ = await process.communicate()
        return msgspec.json.decode(said, type=Outcome)
    except TimeoutError:
        return Outcome(f"did not end within {CHILD_WITHIN_S:g} s")
    except msgspec.MsgspecError:
        return Outcome(f"ended with exit code {process.returncode}")
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError, TimeoutError):
                process.kill()
                async with asyncio.timeout(DYING_S):
                    await process.communicate()  # also closes the pipe


class Renewer:
    """Start `run` as a task. folder: of the identity. now_ms: Unix milliseconds, best by the collector's clock."""

    def __init__(
        self,
        uplink: Uplink,
        folder: Path,
        *,
        now_ms: Callable[[], int],
        uniform: Callable[[float, float], float],
        ask: Ask = in_process,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.problem = ""  # why the last try failed; empty: none did
        self._uplink = uplink
        self._folder = folder
        self._now_ms = now_ms
        self._uniform = uniform
        self._ask = ask
        self._sleep = sleep

    async def run(self) -> None:
        while True:
            await self._due()
            failures = 0
            while not await self._renewed(failures):
                failures += 1
                await self._sleep(self._retry_s(failures))
                await self._connected()

    async def _due(self) -> None:
        """Returns when two thirds of the certificate's life, and this agent's share of the spread, are over."""
        present = self._uplink.identity
        spread_ms = self._uniform(0, present.life_ms / SPREAD)
        due_ms = present.not_after_ms - present.life_ms / 3 + spread_ms
        while not present.not_after_ms or self._now_ms() < due_ms:
            await self._sleep(CHECK_S)
        await self._connected()

    async def _connected(self) -> None:
        """Who gets no stream gets no certificate either: it is the same listener, and the same judgement."""
        while not self._uplink.link.is_open:
            await self._sleep(CHECK_S)

    async def _renewed(self, failures: int) -> bool:
        try:
            outcome = await self._ask(self._folder, self._uplink.address)
            fresh = None if outcome.problem else await self._loaded()
        except (OSError, EnrolError) as exc:
            outcome, fresh = Outcome(str(exc)), None
        self.problem = outcome.problem
        if fresh is None:
            ends_s = (self._uplink.identity.not_after_ms - self._now_ms()) // 1000
            log.warning("certificate not renewed", problem=outcome.problem, tries=failures + 1, ends_in_s=ends_s)
            return False
        log.info("certificate renewed", not_after_ms=fresh.not_after_ms)
        self._uplink.present(fresh)
        return True

    async def _loaded(self) -> Identity | None:
        return await DaemonCall("identity", partial(identity.load, self._folder)).result

    def _retry_s(self, failures: int) -> float:
        grown = min(RETRY_S_MAX, RETRY_S_MIN * 2.0 ** min(failures - 1, 16))
        return grown / 2 + self._uniform(0, grown / 2)
