"""A bounded queue from the legs of an attempt to the one coroutine that writes to the client.

When the client reads slowly the mailbox fills, the legs stop reading their streams, and gRPC's flow control makes the
workers wait: memory stays bounded without anybody counting bytes. What piled up is taken in one go, so a slow client
gets fewer, longer chunks. `asyncio.Queue` would need a call for each item on both sides.
"""

import asyncio
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Mailbox(Generic[Item]):
    """Many senders, one receiver, one event loop."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._items: list[Item] = []
        self._arrival: asyncio.Future[None] | None = None
        self._senders: list[asyncio.Future[None]] = []

    def __len__(self) -> int:
        return len(self._items)

    def try_send(self, item: Item) -> bool:
        """Put ``item`` in if there is room."""
        if len(self._items) >= self._capacity:
            return False
        self._put(item)
        return True

    async def send(self, item: Item) -> None:
        """Put ``item`` in, waiting for room."""
        while len(self._items) >= self._capacity:
            room = asyncio.get_running_loop().create_future()
            self._senders.append(room)
            await room
        self._put(item)

    def send_last(self, item: Item) -> None:
        """Put ``item`` in whether or not there is room: a sender's last word is never lost."""
        self._put(item)

    async def receive_all(self) -> list[Item]:
        """Wait until there is something, and take all of it."""
        if not self._items:
            self._arrival = asyncio.get_running_loop().create_future()
            try:
                await self._arrival
            finally:
                self._arrival = None
        items, self._items = self._items, []
        for room in self._senders:
            if not room.done():
                room.set_result(None)
        self._senders.clear()
        return items

    def _put(self, item: Item) -> None:
        self._items.append(item)
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)
