"""An event loop whose clock jumps: whatever waits for time waits for nothing.

Not a mock of asyncio: the real selector loop runs, with real sockets and subprocesses beside; only its clock is ours.
With `patient`, real descriptors get that long (real seconds) before time jumps.
"""

import asyncio
import selectors
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

from tocsin_proto.records import Clock

T = TypeVar("T")


class _Selector(selectors.DefaultSelector):  # type: ignore[misc, valid-type]
    def __init__(self, loop: "VirtualLoop") -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            return super().select(10.0)  # nothing planned: only the outside world can wake us, and it must
        ready = super().select(min(timeout, self._loop.patience_s))
        if not ready and timeout > 0:
            self._loop.now_s += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self, patience_s: float = 0.0) -> None:
        self.now_s = 1000.0
        self.patience_s = patience_s
        super().__init__(_Selector(self))

    def time(self) -> float:
        return self.now_s


class VirtualClocks:
    """The agent's clocks on the virtual loop."""

    def __init__(self, wall_ms: int = 1_800_000_000_000) -> None:
        self._wall_ms = wall_ms

    def mono_ms(self) -> int:
        return round(asyncio.get_running_loop().time() * 1000)

    def wall_ms(self) -> int:
        return self._wall_ms + self.mono_ms()

    def now(self) -> Clock:
        return Clock(self.wall_ms(), self.mono_ms(), 7)


def run_virtual(main: Coroutine[Any, Any, T], patience_s: float = 0.0, real_s_max: float = 20.0) -> T:
    started = time.monotonic()
    with asyncio.Runner(loop_factory=lambda: VirtualLoop(patience_s)) as runner:
        result = runner.run(main)
    assert time.monotonic() - started < real_s_max, "virtual time must not take real time"
    return result
