"""Requests that are being served, and the one way to end them from outside.

A request is served by one task, its gRPC handler. `LiveRequest.end` cancels that task with a reason; where the scope is
left, the cancellation turns into the reason. A cancellation that came from gRPC (the client is gone) passes through
unchanged. This is how `asyncio.timeout` works; here the deadline is only one of the reasons.

The handler is an async generator that the call guard drives, so a message is written while the generator is suspended
at a ``yield``. gRPC cannot send a status while a cancelled first write is still under way; therefore a request that is
being written is ended after its write, and only when a slow client keeps it from ending for `WRITE_GRACE_S` seconds it
is cancelled there. The generator then sees `GeneratorExit`, which means the same.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from cluster_core.errors import BatonError, DeadlineExceeded, DuplicateRequest
from cluster_core.identity import RequestId

WRITE_GRACE_S = 0.5


class LiveRequest:
    """One request while it is served."""

    def __init__(self, request_id: RequestId, task: "asyncio.Task[object]") -> None:
        self.request_id = request_id
        self._task = task
        self._reason: BatonError | None = None
        self._cancelling = task.cancelling()
        self._deadline: asyncio.TimerHandle | None = None
        self._write_grace: asyncio.TimerHandle | None = None
        self._writing = False
        self._cancelled = False

    def end_after(self, seconds: float, reason: BatonError) -> None:
        """End the request so many seconds from now."""
        self._deadline = asyncio.get_running_loop().call_later(seconds, self.end, reason)

    def let_be(self) -> None:
        """Stop the timers: nothing can end the request any more."""
        for timer in (self._deadline, self._write_grace):
            if timer is not None:
                timer.cancel()

    def begin_write(self) -> None:
        """Note that the task is about to write to the client."""
        self._writing = True

    def end_write(self) -> None:
        """Note that the write is done. Raises the reason with which the request was ended meanwhile."""
        self._writing = False
        if self._reason is not None:
            raise self._reason

    def end(self, reason: BatonError) -> None:
        """End the request: its task raises ``reason``. The first reason counts."""
        if self._reason is None:
            self._reason = reason
            if self._writing:
                self._write_grace = asyncio.get_running_loop().call_later(WRITE_GRACE_S, self._cancel)
            else:
                self._cancel()

    def reason_of_cancellation(self) -> BatonError | None:
        """Take back the cancellation that `end` asked for and return its reason; None if somebody else cancelled."""
        if self._cancelled and self._task.uncancel() <= self._cancelling:
            return self._reason
        return None

    def _cancel(self) -> None:
        self._cancelled = True
        self._task.cancel()


class LiveRequests:
    """The live requests by id."""

    def __init__(self) -> None:
        self._live: dict[RequestId, LiveRequest] = {}
        self._none = asyncio.Event()
        self._none.set()

    def __len__(self) -> int:
        return len(self._live)

    @contextmanager
    def scope(self, request_id: RequestId, deadline_s: float | None) -> Iterator[LiveRequest]:
        """Serve ``request_id`` in this block, which must end within ``deadline_s`` seconds.

        Raises `DuplicateRequest` when the id is live, and within the block whatever the request was ended with.
        """
        if request_id in self._live:
            field = "request_id"
            raise DuplicateRequest(field, f"{request_id} is in use by a live request; choose another one, or none")
        task = asyncio.current_task()
        assert task is not None
        request = LiveRequest(request_id, task)
        self._live[request_id] = request
        self._none.clear()
        if deadline_s is not None:
            request.end_after(deadline_s, DeadlineExceeded("the request's time is up"))
        try:
            yield request
        except (asyncio.CancelledError, GeneratorExit) as cancelled:
            reason = request.reason_of_cancellation()
            if reason is None:
                raise
            raise reason from cancelled
        finally:
            self.release(request)

    def release(self, request: LiveRequest) -> None:
        """Free the id: the answer is complete."""
        request.let_be()
        if self._live.get(request.request_id) is request:
            del self._live[request.request_id]
            if not self._live:
                self._none.set()

    async def wait_until_none(self) -> None:
        """Wait until no request is live."""
        await self._none.wait()

    def end(self, request_id: RequestId, reason: BatonError) -> bool:
        """End the request ``request_id``; False when it is not live."""
        request = self._live.get(request_id)
        if request is None:
            return False
        request.end(reason)
        return True

    def end_all(self, reason: BatonError) -> None:
        """End every live request."""
        for request in list(self._live.values()):
            request.end(reason)
