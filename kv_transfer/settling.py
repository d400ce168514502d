"""Receives of hand-overs that were given up, until no byte can land in their blocks any more."""

import asyncio
from asyncio import Future
from collections.abc import Collection, Mapping

from kv_transfer.transport import Peer


class Settling:
    """All of one importer. Each receive ends by itself or, after a while, by force; its writer hold goes with it."""

    def __init__(self) -> None:
        self._tasks: dict[asyncio.Task[None], Peer] = {}
        self._receives: dict[Future[None], Collection[int]] = {}

    def __len__(self) -> int:
        """Return how many blocks bytes may still land in."""
        return sum(map(len, self._receives.values()))

    def __contains__(self, receive: object) -> bool:
        """Say whether a receive is waited for here."""
        return receive in self._receives

    def add(self, peer: Peer, receives: Mapping[Future[None], Collection[int]], patience_s: float) -> None:
        """Let the lots of one hand-over come to their end, after ``patience_s`` seconds by force.

        With each come its blocks that have not landed yet; the collection shrinks as they do.
        """
        self._receives.update(receives)
        for receive in receives:
            receive.add_done_callback(self._receives.pop)
        task = asyncio.create_task(_settle(peer, set(receives), patience_s))
        self._tasks[task] = peer
        task.add_done_callback(self._tasks.pop)

    async def close(self) -> None:
        """Abort what is left. The transport's own closing comes after."""
        tasks = list(self._tasks)
        for task, peer in self._tasks.items():
            peer.abort()
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _settle(peer: Peer, receives: set[Future[None]], patience_s: float) -> None:
    if patience_s > 0:
        await asyncio.wait(receives, timeout=patience_s)
    peer.abort()
