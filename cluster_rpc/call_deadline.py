"""The deadline of one call, for the server's side of it."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from cluster_core.errors import DeadlineExceeded
from cluster_rpc.guard import Context

Result = TypeVar("Result")


class CallDeadline:
    """Remembers when the caller's time is up; every wait of the call goes through `wait`."""

    def __init__(self, context: Context) -> None:
        remaining_s = context.time_remaining()
        self._at = None if remaining_s is None else asyncio.get_running_loop().time() + remaining_s

    async def wait(self, awaitable: Awaitable[Result]) -> Result:
        """Await the awaitable, at most until the deadline. Raises `DeadlineExceeded`."""
        if self._at is None:
            return await awaitable
        try:
            async with asyncio.timeout_at(self._at):
                return await awaitable
        except TimeoutError as error:
            message = "the request's time is up"
            raise DeadlineExceeded(message) from error
