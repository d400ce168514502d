"""Runs the imports of a decode worker: one task an answer, from the reserved blocks to the first token."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

from cluster_core.errors import BatonError, Cancelled, LegFailed
from cluster_core.failpoints import reach
from cluster_rpc.worker_messages import PrefillOrigin
from decode_worker.answer import Answer
from kv_transfer.import_job import Imported, ImportJob, Remains

log = logging.getLogger(__name__)


class BlockSource(Protocol):
    """Brings a prompt's blocks from the worker that prefills it."""

    def __call__(self, origin: PrefillOrigin, job: ImportJob) -> Awaitable[Imported]:
        """Fill the job's targets. Raises a `LegFailed`; after it nothing writes to blocks without a writer's hold."""
        ...


class PromptImports:
    """The running imports. Exactly one of ``arrived`` and ``failed`` is called for each, when its task is over."""

    def __init__(
        self,
        source: BlockSource,
        *,
        arrived: Callable[[Answer, Imported], None],
        failed: Callable[[Answer, BatonError, frozenset[int]], None],
    ) -> None:
        """``failed`` is told which positions hold valid blocks all the same."""
        self._source = source
        self._arrived = arrived
        self._failed = failed
        self._tasks: dict[Answer, asyncio.Task[Imported]] = {}

    def start(self, answer: Answer) -> None:
        """Begin to import what the answer's blocks lack: those attached from the cache are kept."""
        order, sequence = answer.order, answer.sequence
        assert order.origin is not None
        length = len(order.prompt_token_ids)
        size = sequence.block_size_tokens
        job = ImportJob(
            request_id=order.request_id,
            attempt=order.attempt,
            exporter=order.origin.worker_id,
            exporter_incarnation=order.origin.incarnation,
            targets=tuple(sequence.block_table[: -(-length // size)]),
            kept=frozenset(range(sequence.dropped, sequence.computed // size)),
            first=sequence.dropped,
            hashes=tuple(sequence.hashes()),
            binding=order.origin.binding,
        )
        task = asyncio.create_task(self._bring(order.origin, job), name=f"import {order.request_id}")
        self._tasks[answer] = task
        task.add_done_callback(lambda done: self._over(answer, done, job.remains))

    def running(self) -> tuple[Answer, ...]:
        """Return the answers whose imports have not stopped yet."""
        return tuple(self._tasks)

    def cancel(self, answer: Answer) -> None:
        """Stop an import; `failed` is called once it has stopped."""
        self._tasks[answer].cancel()

    async def close(self) -> None:
        """Stop every import and wait for that."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)

    async def _bring(self, origin: PrefillOrigin, job: ImportJob) -> Imported:
        await reach("d.reserve")
        imported = await self._source(origin, job)
        await reach("d.first_step")
        return imported

    def _over(self, answer: Answer, task: asyncio.Task[Imported], remains: Remains) -> None:
        del self._tasks[answer]
        error: BaseException | None = None
        if task.cancelled():
            error = Cancelled("the import was cancelled")
        elif (error := task.exception()) is None:
            self._arrived(answer, task.result())
            return
        if not isinstance(error, BatonError):
            log.error("an import failed in an unforeseen way", exc_info=error)
            error = LegFailed(f"the import failed: {type(error).__name__}")
        self._failed(answer, error, remains.verified)
