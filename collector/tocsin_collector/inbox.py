"""What waits to be stepped: items in order, bounded by making whoever brings one wait.

Not the batches (`batch.py`). Invariant: an item is queued before its bringer waits, so that one that is cancelled there leaves
nothing admitted behind that is not queued.
"""

import asyncio
from collections import deque
from collections.abc import Sequence

from tocsin_collector.batch import ITEM_BYTES, FrameItem, Item, LetterItem


class Inbox:
    """items_max, bytes_max: beyond either, `put` waits. Falsy when empty."""

    def __init__(self, items_max: int, bytes_max: int) -> None:
        self.bytes = 0
        self._items_max = items_max
        self._bytes_max = bytes_max
        self._items: deque[Item] = deque()
        self._room = asyncio.Event()

    def __len__(self) -> int:
        return len(self._items)

    def add(self, item: Item) -> None:
        self._items.append(item)
        self.bytes += size_of(item)

    async def room(self) -> None:
        """Return when there is room for another: at once, nearly always."""
        while self._is_crowded:
            self._room.clear()
            await self._room.wait()

    def next(self) -> Item:
        item = self._items.popleft()
        self.bytes -= size_of(item)
        if not self._is_crowded:
            self._room.set()
        return item

    def put_back(self, items: Sequence[Item]) -> None:
        """Before everything else, in this order."""
        self._items.extendleft(reversed(items))
        self.bytes += sum(map(size_of, items))

    def close(self) -> None:
        """Nobody is to wait any more."""
        self._items_max = self._bytes_max = 1 << 62
        self._room.set()

    @property
    def _is_crowded(self) -> bool:
        return len(self._items) > self._items_max or self.bytes > self._bytes_max


def size_of(item: Item) -> int:
    if type(item) is FrameItem:
        return len(item.message) + ITEM_BYTES
    return (len(item.body) if type(item) is LetterItem else 0) + ITEM_BYTES
