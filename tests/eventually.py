"""Waiting for something that another task or thread brings about, with a bound."""

import asyncio
from collections.abc import Callable

LOOK_S = 0.002


async def eventually(condition: Callable[[], bool], within_s: float = 5.0) -> None:
    """Return as soon as ``condition`` holds; fail when it has not after ``within_s`` seconds."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within_s
    while True:
        if condition():
            return
        assert loop.time() < deadline, "it did not come about in time"
        await asyncio.sleep(LOOK_S)
