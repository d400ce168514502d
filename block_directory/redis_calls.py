"""Calls to a server that end in time, whatever the server or the client library does.

The library now and then loses a cancellation that arrives while it closes a connection. Each call therefore runs in a
task of its own: when the caller is cancelled or its time is up, the caller goes on at once, and the task is left to end
by its socket's timeout.
"""

import asyncio
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from redis.exceptions import RedisError

from cluster_core.errors import PartUnavailable


class HasTimeout(Protocol):
    """Whoever makes the calls."""

    @property
    def call_timeout_s(self) -> float:
        """How long one may take."""


Caller = TypeVar("Caller", bound=HasTimeout)
Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")

_left_alone: set[asyncio.Task[Any]] = set()


def bounded(
    method: Callable[Concatenate[Caller, Arguments], Coroutine[Any, Any, Answer]],
) -> Callable[Concatenate[Caller, Arguments], Coroutine[Any, Any, Answer]]:
    """Make a method one call: it ends within ``call_timeout_s`` and raises only `PartUnavailable` for the server."""

    @wraps(method)
    async def call(caller: Caller, /, *arguments: Arguments.args, **named: Arguments.kwargs) -> Answer:
        return await within(caller.call_timeout_s, method(caller, *arguments, **named))

    return call


async def within(timeout_s: float, work: Coroutine[Any, Any, Answer]) -> Answer:
    """Return what ``work`` returns. Raises `PartUnavailable` when it fails or takes longer."""
    task = asyncio.create_task(work)
    try:
        await asyncio.wait({task}, timeout=timeout_s)
    finally:
        if not task.done():
            task.cancel()
            _left_alone.add(task)
            task.add_done_callback(_forget)
    if not task.done():
        message = f"the directory's server does not answer within {timeout_s:g} s"
        raise PartUnavailable(message)
    try:
        return task.result()
    except (RedisError, OSError) as error:
        message = f"the directory's server does not answer ({type(error).__name__}: {error})".replace("\n", " ")
        raise PartUnavailable(message) from error


def _forget(task: asyncio.Task[Any]) -> None:
    _left_alone.discard(task)
    if not task.cancelled():
        task.exception()
