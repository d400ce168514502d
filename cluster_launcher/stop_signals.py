"""Ctrl-C, SIGTERM and a closed terminal, turned into an orderly end of one task.

The first signal cancels the task, whose ``finally`` blocks end what it started. The second one, for the impatient, ends
this process's descendants by their pids and leaves at once.
"""

import asyncio
import os
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

import psutil

from cluster_launcher.exit_codes import ExitCode

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_GRACE_S = 5.0

Result = TypeVar("Result")


class Stopped(Exception):
    """A signal asked for the end, and everything has ended in good order."""


class StopSignals:
    """Installs the handlers; made and used on the main thread's event loop."""

    def __init__(self) -> None:
        """Nothing is installed before `run`."""
        self._task: asyncio.Task[Any] | None = None
        self._count = 0

    async def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run ``work`` to its end. Raises `Stopped` when a signal ended it."""
        task = asyncio.ensure_future(work)
        self._task = task
        self.install()
        try:
            return await task
        except asyncio.CancelledError:
            if self._count:
                raise Stopped from None
            raise
        finally:
            loop = asyncio.get_running_loop()
            for number in SIGNALS:
                loop.remove_signal_handler(number)

    def install(self) -> None:
        """Install the handlers. Done again after Ray's start, which puts a handler of its own over SIGTERM."""
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self._on_signal)

    def _on_signal(self) -> None:
        self._count += 1
        if self._count > 1:
            kill_descendants(descendants())
            os._exit(ExitCode.INTERRUPTED)
        if self._task is not None:
            self._task.cancel()


def descendants() -> list[psutil.Process]:
    """Return the processes that this one has started, directly or not."""
    return psutil.Process().children(recursive=True)


def kill_descendants(processes: list[psutil.Process]) -> None:
    """Kill processes by pid; psutil compares start times first, so a reused pid is safe."""
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


async def wait_until_gone(processes: list[psutil.Process], grace_s: float = _GRACE_S) -> list[psutil.Process]:
    """Give processes that were told to end a few seconds; kill and return those that stay."""
    _, alive = await asyncio.to_thread(psutil.wait_procs, processes, grace_s)
    kill_descendants(alive)
    return list(alive)
