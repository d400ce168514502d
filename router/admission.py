"""How many requests are served at once, and who is next.

A bounded number of requests is live; a bounded number waits, those of priority 0 first and each priority in order of
arrival; the rest is refused at once with a hint when to come back. Refusing costs microseconds, so an overloaded router
stays as fast as an idle one for those whom it serves.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from cluster_core.errors import Overloaded
from cluster_core.failpoints import reach
from router.settings import RouterSettings

PRIORITIES = 8
SHORTEST_RETRY_S = 0.1
LONGEST_RETRY_S = 30.0
SMOOTHING = 0.1

_Waiter = asyncio.Future[None]


class Admission:
    """The bounded live set and the bounded queue before it."""

    def __init__(self, settings: RouterSettings, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._clock = clock
        self._live = 0
        self._waiting: tuple[dict[int, _Waiter], ...] = tuple({} for _ in range(PRIORITIES))
        self._arrivals = 0
        self._live_s = 1.0

    @property
    def live(self) -> int:
        """Requests that have been let in."""
        return self._live

    @property
    def queued(self) -> int:
        """Requests that wait."""
        return sum(len(waiters) for waiters in self._waiting)

    @asynccontextmanager
    async def place(self, priority: int) -> AsyncIterator[None]:
        """Hold a place of the live set for the block's duration.

        Raises `Overloaded` at once when the queue is full, and after `queue_timeout_s` when it did not move. Whoever
        is cancelled while waiting leaves the queue.
        """
        if self._live < self._settings.max_live_requests and not self.queued:
            self._live += 1
        else:
            await self._wait(priority)
        entered = self._clock()
        try:
            yield
        finally:
            self._live_s += SMOOTHING * (self._clock() - entered - self._live_s)
            self._leave()

    async def _wait(self, priority: int) -> None:
        queued = self.queued
        if queued >= self._settings.max_queued_requests:
            message = f"the queue is full: {self._live} requests are served and {queued} wait"
            raise Overloaded(message, self._retry_after_s())
        self._arrivals += 1
        number = self._arrivals
        waiter: _Waiter = asyncio.get_running_loop().create_future()
        self._waiting[priority][number] = waiter
        try:
            async with asyncio.timeout(self._settings.queue_timeout_s):
                await reach("router.enqueue")
                await waiter
        except TimeoutError:
            self._give_up(waiter)
            message = f"the request waited {self._settings.queue_timeout_s:g} s in the queue"
            raise Overloaded(message, self._retry_after_s()) from None
        except asyncio.CancelledError:
            self._give_up(waiter)
            raise
        finally:
            self._waiting[priority].pop(number, None)

    def _give_up(self, waiter: _Waiter) -> None:
        """Pass on a place that was given in the very moment in which its taker left."""
        if waiter.done() and not waiter.cancelled():
            self._leave()

    def _leave(self) -> None:
        """Give the place to the next in the queue, or make it free."""
        for waiters in self._waiting:
            while waiters:
                waiter = waiters.pop(next(iter(waiters)))
                if not waiter.done():
                    waiter.set_result(None)
                    return
        self._live -= 1

    def _retry_after_s(self) -> float:
        """Guess when a place will be free: the queue's length at the rate at which requests have ended."""
        rounds = (self.queued + 1) / self._settings.max_live_requests
        return min(LONGEST_RETRY_S, max(SHORTEST_RETRY_S, rounds * self._live_s))
