"""A prefill worker as a Ray actor. Ray starts and restarts its process; requests never pass through Ray."""

import asyncio
from typing import Any

from cluster_core.identity import WorkerId
from cluster_core.settings_reader import Document
from cluster_rpc.worker_process import Worker, WorkerThread, describe


class PrefillWorkerActor:
    """Made into an actor by the launcher, with `ray.remote`. Its process ends when the worker breaks.

    The methods are coroutines, so that Ray lets `close` run while `describe` still waits.
    """

    def __init__(self, document: Document, worker_id: str, directory_url: str) -> None:
        def build() -> Worker:
            from prefill_worker.wiring import build_worker  # noqa: PLC0415  # while the collector rests

            return build_worker(document, WorkerId(worker_id), directory_url)

        self._thread = WorkerThread(build)
        self._thread.start()

    async def describe(self) -> dict[str, Any]:
        """Wait until the worker serves and return its registration. Raises what kept it from starting."""
        return describe(await asyncio.wrap_future(self._thread.record))

    async def close(self) -> None:
        """Drain the worker and end it; the actor's process stays until Ray ends it."""
        await asyncio.to_thread(self._thread.stop)
