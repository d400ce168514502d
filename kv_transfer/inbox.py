"""What one task has to see to, in order. Lighter than `asyncio.Queue`: blocks land by dozens, and each put counts."""

import asyncio
from asyncio import Future
from collections import deque
from typing import Generic, TypeVar

ItemT = TypeVar("ItemT")


class Inbox(Generic[ItemT]):
    """Items for a single reader. Belongs to the event loop."""

    def __init__(self) -> None:
        self._items: deque[ItemT] = deque()
        self._reader: Future[None] | None = None

    def __len__(self) -> int:
        """Return how many items wait."""
        return len(self._items)

    def put(self, item: ItemT) -> None:
        """Add an item."""
        self._items.append(item)
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def take(self) -> ItemT:
        """Return the first item; there must be one."""
        return self._items.popleft()

    def take_last(self) -> ItemT | None:
        """Return the item that was put last, None where none waits."""
        return self._items.pop() if self._items else None

    async def wait(self) -> None:
        """Wait until there is an item."""
        while not self._items:
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
