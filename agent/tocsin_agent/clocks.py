"""The agent's two clocks and the name of this boot: the one place that reads them.

Invariant: `mono_ms` never runs back and counts on during suspend where the system can; decisions are made on it, and
the wall clock is only ever a stamp.
"""

import time
from hashlib import blake2b
from pathlib import Path
from secrets import token_bytes

from tocsin_proto.records import Clock

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_MONO = getattr(time, "CLOCK_BOOTTIME", getattr(time, "CLOCK_MONOTONIC", None))


class Clocks:
    """`boot`: 64 bits that differ from boot to boot."""

    def __init__(self, boot: int) -> None:
        self._boot = boot

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def mono_ms(self) -> int:
        return (time.clock_gettime_ns(_MONO) if _MONO is not None else time.monotonic_ns()) // 1_000_000

    def now(self) -> Clock:
        return Clock(self.wall_ms(), self.mono_ms(), self._boot)


def boot() -> int:
    """The system's own name of this boot, hashed; where it has none, luck: each start of the agent counts as a boot."""
    try:
        named = BOOT_ID.read_bytes().strip()
    except OSError:
        named = b""
    return int.from_bytes(blake2b(named or token_bytes(16), digest_size=8).digest(), "big")
