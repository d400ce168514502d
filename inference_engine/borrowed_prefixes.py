"""Fills the cache with the beginning of a prompt that another worker's cache holds.

Life of a borrowing. A prompt is about to be admitted, and its order names a lender. A short sequence, of the lender's
part of the prompt alone, *attaches* what the own cache has, *reserves* blocks for the rest, and a task fetches into
them. What came and is whole is *sealed*: from then on it is found by hash, like anything that was computed here, and
told to the directory. Then the sequence gives its blocks back to the cache, and the prompt is admitted as if it had
found them there. So a fetch that brings less, or nothing, needs no treatment: what is not in the cache is computed.

While the task runs, its sequence holds the blocks, and a writer holds those into which bytes may still land. Cancelling
ends the sequence's hold at once, and the writer's when no byte can land any more.

Several prompts may want the same blocks at one time. The first fetches, the others wait for that and look again.
"""

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from cluster_core.handoff import FetchJob, FetchReport, FetchSource
from cluster_core.holds import Hold, RequestHold
from cluster_core.identity import Attempt, BlockHash, RequestId
from inference_engine.block_pool import NoFreeBlocks
from inference_engine.sequence import TokenSequence

log = logging.getLogger(__name__)

FetchBlocks: TypeAlias = Callable[[FetchJob], Awaitable[FetchReport]]
"""Fills the job's targets, and says how far they are whole. Raises nothing: what fails is in the report."""


@dataclass(slots=True, eq=False, kw_only=True)
class Borrowing:
    """A fetch for one prompt. ``on_end`` hears its report; or None where another prompt's fetch has brought blocks."""

    on_end: Callable[[FetchReport | None], None]
    task: "asyncio.Task[FetchReport] | None" = None
    hold: RequestHold | None = None
    """What keeps the blocks that it fetches into, while its task runs."""
    followers: "list[Borrowing]" = field(default_factory=list)


class BorrowedPrefixes:
    """All fetches of one worker. Belongs to the event loop."""

    def __init__(self, fetch: FetchBlocks) -> None:
        self._fetch = fetch
        self._leaders: dict[BlockHash, Borrowing] = {}
        """Those with a task, by the first block that they fetch."""
        self._started = itertools.count(1)

    def start(
        self,
        request: tuple[RequestId, Attempt],
        sequence: TokenSequence,
        source: FetchSource | None,
        on_end: Callable[[FetchReport | None], None],
    ) -> Borrowing | None:
        """Begin to fetch what ``source`` has of ``sequence``; None where the own cache lacks nothing of it.

        Without a source, wait for another prompt's fetch where there is one that brings the next block, else None.
        ``on_end`` is called once, later, unless the borrowing is cancelled. Raises `NoFreeBlocks`.
        """
        blocks = (len(sequence.token_ids) - 1) // sequence.block_size_tokens
        blocks = blocks if source is None else min(source.blocks, blocks)
        if not blocks or (source is None and not self._leaders):
            return None
        borrowing = Borrowing(on_end=on_end)
        hold = RequestHold(*request, submission=next(self._started), fetching=True)
        prefix = sequence.prefix(blocks, hold)
        prefix.start_at_tail()
        prefix.attach_cached(len(prefix.token_ids))
        first = prefix.computed // prefix.block_size_tokens
        leader = self._leaders.get(prefix.hashes()[first]) if prefix.pending else None
        if leader is not None:
            prefix.give_back()
            leader.followers.append(borrowing)
            return borrowing
        if source is None or not prefix.pending:
            prefix.give_back()
            return None
        try:
            prefix.reserve(len(prefix.token_ids))
        except NoFreeBlocks:
            prefix.give_back()
            raise
        job = FetchJob(
            request_id=hold.request_id,
            attempt=hold.attempt,
            source=source,
            first=first,
            targets=tuple(prefix.block_table[first:]),
            hashes=tuple(prefix.hashes()),
        )
        self._lead(borrowing, prefix, job)
        return borrowing

    def cancel(self, borrowing: Borrowing) -> None:
        """Stop a borrowing whose end nobody waits for any more."""
        borrowing.on_end = _unheard
        if borrowing.task is not None:
            borrowing.task.cancel()

    def known_holds(self) -> set[Hold]:
        """Return what keeps the blocks that are being fetched into."""
        return {leader.hold for leader in self._leaders.values() if leader.hold is not None}

    async def close(self) -> None:
        """Stop every fetch and wait for that."""
        tasks = [leader.task for leader in self._leaders.values() if leader.task is not None]
        for leader in list(self._leaders.values()):
            self.cancel(leader)
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)

    def _lead(self, borrowing: Borrowing, prefix: TokenSequence, job: FetchJob) -> None:
        self._leaders[job.hashes[job.first]] = borrowing
        borrowing.hold = prefix.hold
        task = borrowing.task = asyncio.create_task(self._bring(job), name=f"fetch for {job.request_id}")
        task.add_done_callback(lambda done: self._over(borrowing, prefix, job, done))

    async def _bring(self, job: FetchJob) -> FetchReport:
        return await self._fetch(job)

    def _over(
        self, borrowing: Borrowing, prefix: TokenSequence, job: FetchJob, task: "asyncio.Task[FetchReport]"
    ) -> None:
        """Keep what came; tell the prompt, and those that have waited for the same.

        After a failure the followers compute too: the next of them would most likely wait for the same in vain.
        """
        del self._leaders[job.hashes[job.first]]
        report: FetchReport | None = None
        if not task.cancelled():
            report = _report_of(task, job)
            prefix.advance(report.moved_blocks * prefix.block_size_tokens)
        prefix.give_back()
        borrowing.on_end(report)
        in_vain = report is not None and (report.failure != "" or not report.moved_blocks)
        told = replace(report, moved_blocks=0, moved_bytes=0) if report is not None and in_vain else None
        for follower in borrowing.followers:
            follower.on_end(told)


def _report_of(task: "asyncio.Task[FetchReport]", job: FetchJob) -> FetchReport:
    error = task.exception()
    if error is None:
        return task.result()
    log.error("a fetch failed in an unforeseen way", exc_info=error)
    return FetchReport(
        lender=job.source.worker_id,
        asked_blocks=len(job.targets),
        moved_blocks=0,
        moved_bytes=0,
        transfer_s=0.0,
        elapsed_s=0.0,
        failure=type(error).__name__,
    )


def _unheard(_report: FetchReport | None) -> None:
    """Stand for somebody who has gone."""
