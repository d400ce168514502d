"""Borrowed blocks in the pool: held while they are on their way, cached and published once they are whole."""

import asyncio

import pytest

from cluster_core.handoff import FetchJob, FetchReport, FetchSource
from cluster_core.hash_chain import chain_hashes
from cluster_core.holds import RequestHold, WriterHold
from cluster_core.identity import Attempt, Incarnation, RequestId, WorkerId
from inference_engine.block_pool import BlockPool, NoFreeBlocks
from inference_engine.borrowed_prefixes import BorrowedPrefixes
from inference_engine.sequence import TokenSequence

ROOT = b"root"
SIZE = 4
TOKENS = list(range(40))
HASHES = chain_hashes(ROOT, TOKENS, SIZE)
REQUEST = RequestId("r"), Attempt(1)


def make(pool: BlockPool, tokens: list[int] | None = None, window: int = 0) -> TokenSequence:
    return TokenSequence(
        pool=pool,
        hold=RequestHold(*REQUEST),
        root=ROOT,
        token_ids=TOKENS if tokens is None else tokens,
        block_size_tokens=SIZE,
        window_tokens=window,
    )


def source(blocks: int) -> FetchSource:
    return FetchSource(
        worker_id=WorkerId("decode-1"), incarnation=Incarnation(1), address="", blocks=blocks, patience_s=1.0
    )


class Borrower:
    """A pool, and a lender whose blocks come when ``moved`` is set; a writer holds their targets meanwhile."""

    def __init__(self, total_blocks: int = 16) -> None:
        self.pool = BlockPool(total_blocks)
        self.jobs: list[FetchJob] = []
        self.moved: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.borrowed = BorrowedPrefixes(self.fetch)
        self.heard: list[FetchReport | None] = []

    async def fetch(self, job: FetchJob) -> FetchReport:
        self.jobs.append(job)
        for number, target in enumerate(job.targets):
            self.pool.acquire(target, WriterHold(number))
        moved = await self.moved
        self.land()
        return FetchReport(
            lender=job.source.worker_id,
            asked_blocks=len(job.targets),
            moved_blocks=moved,
            moved_bytes=moved,
            transfer_s=0.1,
            elapsed_s=0.1,
        )

    def land(self) -> None:
        for number, target in enumerate(self.jobs[-1].targets):
            self.pool.release_block(target, WriterHold(number))

    async def settle(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)
        self.pool.audit()


async def test_what_comes_is_cached_under_its_hash_and_published() -> None:
    one = Borrower()
    assert one.borrowed.start(REQUEST, make(one.pool), source(9), one.heard.append) is not None
    await one.settle()
    assert one.pool.counts().held == 9
    assert one.pool.find_run(HASHES) == []
    one.moved.set_result(6)
    await one.settle()
    assert [report.moved_blocks for report in one.heard if report is not None] == [6]
    assert (one.pool.counts().held, one.pool.counts().cached) == (0, 6)
    assert len(one.pool.find_run(HASHES)) == 6
    (event,) = one.pool.drain_events()
    assert list(event.hashes) == HASHES[:6]  # type: ignore[union-attr]  # blocks were stored
    sequence = make(one.pool)
    sequence.attach_cached(len(TOKENS) - 1)
    assert sequence.computed == 24


async def test_the_own_beginning_is_held_meanwhile_and_nothing_is_asked_for_twice() -> None:
    one = Borrower()
    first = make(one.pool, TOKENS[:13])
    first.reserve(13)
    first.advance(13)
    first.give_back()
    one.borrowed.start(REQUEST, make(one.pool), source(9), one.heard.append)
    await one.settle()
    (job,) = one.jobs
    assert (job.first, len(job.targets), list(job.hashes)) == (3, 6, HASHES[:9])
    assert one.pool.counts().held == 9
    one.moved.set_result(6)
    await one.settle()
    assert one.borrowed.start(REQUEST, make(one.pool), source(9), one.heard.append) is None
    assert one.borrowed.start(REQUEST, make(one.pool), None, one.heard.append) is None
    assert one.pool.counts() == (16, 0, 9)


async def test_the_last_token_is_never_fetched() -> None:
    one = Borrower()
    one.borrowed.start(REQUEST, make(one.pool), source(10), one.heard.append)
    await one.settle()
    assert len(one.jobs[0].targets) == 9
    assert one.borrowed.start(REQUEST, make(one.pool, TOKENS[:4]), source(1), one.heard.append) is None
    one.moved.set_result(9)
    await one.settle()


async def test_blocks_into_which_bytes_may_land_stay_nobodys_after_a_cancel() -> None:
    one = Borrower()
    borrowing = one.borrowed.start(REQUEST, make(one.pool), source(9), one.heard.append)
    assert borrowing is not None
    await one.settle()
    one.borrowed.cancel(borrowing)
    await one.settle()
    assert one.pool.counts().held == 9
    assert one.pool.available() == 7
    one.land()
    assert one.pool.counts() == (16, 0, 0)
    assert one.heard == []


async def test_a_window_model_fetches_only_what_is_read_again() -> None:
    one = Borrower()
    one.borrowed.start(REQUEST, make(one.pool, window=9), source(9), one.heard.append)
    await one.settle()
    (job,) = one.jobs
    assert (job.first, len(job.targets)) == (7, 2)
    one.moved.set_result(2)
    await one.settle()
    sequence = make(one.pool, window=9)
    sequence.attach_cached(len(TOKENS) - 1)
    assert sequence.computed == 36


async def test_without_room_nothing_begins() -> None:
    one = Borrower(total_blocks=8)
    with pytest.raises(NoFreeBlocks):
        one.borrowed.start(REQUEST, make(one.pool), source(9), one.heard.append)
    assert one.pool.counts() == (8, 0, 0)


async def test_a_fetch_that_breaks_its_promise_fails_nobody() -> None:
    one = Borrower()
    one.borrowed.start(REQUEST, make(one.pool), source(9), one.heard.append)
    await one.settle()
    one.moved.set_exception(RuntimeError("a mistake of ours"))
    await one.settle()
    (report,) = one.heard
    assert report is not None
    assert (report.moved_blocks, report.failure) == (0, "RuntimeError")
