"""The state of the configured systemd units, asked with one read-only `systemctl show`.

Nothing runs while no unit is configured. Invariant: unit names go as arguments after "--", never through a shell.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from tocsin_agent.config import HostSettings
from tocsin_agent.probes import Column, Family, Measurement, ProbeError
from tocsin_proto.records import SeriesKind

STATES = {
    "inactive": 0,
    "active": 1,
    "failed": 2,
    "activating": 3,
    "deactivating": 4,
    "reloading": 5,
    "maintenance": 6,
    "refreshing": 7,
    "not found": 8,
}
COLUMN = Column("service.active", "1", SeriesKind.STATE, tuple((number, name) for name, number in STATES.items()))
OUTPUT_BYTES_MAX = 256 * 1024
DEADLINE_S = 5.0


class ServicesProbe:
    def __init__(self, host: HostSettings) -> None:
        self._family = Family("service", [COLUMN], host.interval)
        self._units = [_unit(name) for name in host.services]

    async def collect(self) -> AsyncIterator[Measurement]:
        if not self._units:
            return
        for unit, state in parse(await _show(self._units), self._units).items():
            if state in STATES:
                yield Measurement(self._family.of(unit)[0], STATES[state])


def parse(output: str, units: list[str]) -> dict[str, str]:
    """State word per asked unit: systemctl answers one block per unit, in the order asked, blank lines between."""
    blocks = [dict(line.partition("=")[::2] for line in block.splitlines()) for block in output.strip().split("\n\n")]
    if len(blocks) != len(units):
        raise ProbeError(f"systemctl described {len(blocks)} of {len(units)} units")
    return {
        unit: "not found" if block.get("LoadState") == "not-found" else block.get("ActiveState", "")
        for unit, block in zip(units, blocks, strict=True)
    }


async def _show(units: list[str]) -> str:
    argv = ["systemctl", "show", "--property=LoadState,ActiveState", "--", *units]
    try:
        asked = await asyncio.create_subprocess_exec(
            *argv, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
    except OSError as error:
        raise ProbeError(f"systemctl cannot be started ({error.strerror}): clear host.services on this host") from error
    try:
        async with asyncio.timeout(DEADLINE_S):
            output, complaint = await asked.communicate()
    except TimeoutError:
        raise ProbeError(f"systemctl did not answer within {DEADLINE_S:g} s") from None
    finally:
        if asked.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                asked.kill()
    if asked.returncode:
        raise ProbeError(f"systemctl: {complaint[:200].decode(errors='replace').strip()}")
    return output[:OUTPUT_BYTES_MAX].decode(errors="replace")


def _unit(name: str) -> str:
    return name if "." in name else f"{name}.service"
