"""One blocking call in a daemon thread, awaited: for calls the kernel may never return from.

Not a pool: asyncio's own executor is joined at exit, and a hung call would keep the agent from stopping. Invariant: giving
up on the future leaves the thread behind and harms nobody.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from functools import partial
from typing import Generic, TypeVar

T = TypeVar("T")


class DaemonCall(threading.Thread, Generic[T]):
    """Started at once; `await call.result`. `is_alive` tells whether it is still in there."""

    def __init__(self, name: str, function: Callable[[], T]) -> None:
        super().__init__(name=name, daemon=True)
        self._function = function
        self._loop = asyncio.get_running_loop()
        self.result: asyncio.Future[T] = self._loop.create_future()
        self.start()

    def run(self) -> None:
        try:
            value = self._function()
        except Exception as error:  # at the thread's edge: it belongs to whoever awaits
            self._hand_over(partial(self.result.set_exception, error))
        else:
            self._hand_over(partial(self.result.set_result, value))

    def _hand_over(self, settle: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop may be gone by now
            self._loop.call_soon_threadsafe(lambda: None if self.result.done() else settle())
