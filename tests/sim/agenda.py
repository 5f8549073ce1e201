"""Virtual time: one heap of what is going to happen, in milliseconds, and a short memory of what has.

Nothing here waits and nothing reads a clock. The invariant: of two things due at one moment the one planned first comes first,
so that a seed plays the same way every time.
"""

import heapq
from collections import deque
from collections.abc import Callable
from typing import Any

RECENT_MAX = 60


class Agenda:
    """now_ms: true time, which is also the collector's clock."""

    def __init__(self, start_ms: int, *, speak: Callable[[str], None] | None = None) -> None:
        self.now_ms = start_ms
        self.start_ms = start_ms
        self.recent: deque[tuple[int, str, tuple[Any, ...]]] = deque(maxlen=RECENT_MAX)
        self._speak = speak
        self._heap: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._planned = 0

    def after(self, delay_ms: int, act: Callable[..., None], *arguments: Any) -> None:
        self._planned += 1
        heapq.heappush(self._heap, (self.now_ms + max(0, delay_ms), self._planned, act, arguments))

    def run(self, until_ms: int) -> None:
        while self._heap and self._heap[0][0] <= until_ms:
            self.now_ms, _, act, arguments = heapq.heappop(self._heap)
            act(*arguments)
        self.now_ms = until_ms

    def tell(self, what: str, *facts: Any) -> None:
        """Remember an event for the failure message; formatted only when someone reads it."""
        self.recent.append((self.now_ms, what, facts))
        if self._speak is not None:
            self._speak(self.line(self.now_ms, what, facts))

    def story(self) -> str:
        return "\n".join(self.line(*event) for event in self.recent)

    def line(self, at_ms: int, what: str, facts: tuple[Any, ...]) -> str:
        return f"{(at_ms - self.start_ms) / 1000:9.3f}  {what} " + " ".join(str(fact) for fact in facts)
