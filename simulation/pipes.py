"""One direction of a call: messages in order, and last a status."""

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Any

import grpc

from simulation.network import Network
from simulation.virtual_loop import Host

WINDOW_MESSAGES = 16
"""Unread messages of one direction after which its writer waits."""


@dataclass(frozen=True, slots=True)
class Status:
    """How a call ended."""

    code: grpc.StatusCode
    details: str = ""
    trailers: Any = ()


OK = Status(grpc.StatusCode.OK)
HALF_CLOSE = Status(grpc.StatusCode.OK, "no more requests")


class Pipe:
    """One direction of a call: messages in order, then perhaps a status. Read on ``target``, written on ``source``."""

    def __init__(self, network: Network, source: Host, target: Host) -> None:
        self.closed = False
        self._network = network
        self._source = source
        self._target = target
        self._items: deque[bytes | Status] = deque()
        self._unread = 0
        self._last_s = 0.0
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None

    def send(self, item: bytes | Status) -> None:
        """Put an item on its way."""
        if not self.closed:
            self._unread += 1
            self._last_s = self._network.deliver(self._source, self._target, self._last_s, self._arrive, item)

    @property
    def full(self) -> bool:
        """Whether a writer must wait for `room`."""
        return self._unread >= WINDOW_MESSAGES and not self.closed

    async def room(self) -> None:
        """Wait until it is no longer full."""
        while self.full:
            self._writer = self._network.loop.create_future()
            await self._writer

    async def read(self) -> bytes | Status:
        """Wait for the next item."""
        items = self._items
        while not items:
            self._reader = self._network.loop.create_future()
            await self._reader
        self._unread -= 1
        if self._writer is not None:
            _wake(self._writer)
        return items.popleft()

    def end(self, status: Status) -> None:
        """Let the reader see ``status`` next, whatever was on its way; nothing arrives any more."""
        self.closed = True
        self._items.clear()
        self._items.append(status)
        _wake(self._reader)
        _wake(self._writer)

    def _arrive(self, item: bytes | Status) -> None:
        if not self.closed:
            self._items.append(item)
            reader = self._reader
            if reader is not None and not reader.done():
                reader.set_result(None)


def _wake(waiter: "asyncio.Future[None] | None") -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
