"""A fetch: blocks of one worker's cache in another's, or as many of them as can be had."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace

import pytest

from cluster_core.errors import WorkerLost
from cluster_core.handoff import (
    AcceptBlocks,
    BlocksSealed,
    ExporterMessage,
    FetchJob,
    FetchReport,
    FetchSource,
    OpenFetch,
    PullBlocks,
)
from cluster_core.holds import LeaseHold, WriterHold
from cluster_core.identity import BlockHash, Incarnation, WorkerId
from kv_transfer import lending
from kv_transfer.exporter import Exporter
from kv_transfer.fetcher import Fetcher
from kv_transfer.import_job import Imported, ImportJob
from tests.kv_transfer.fake_pool import ATTEMPT, LAYOUT, REQUEST, hashes_of
from tests.kv_transfer.handover import EXPORTER_LIFE, SETTINGS
from tests.kv_transfer.pair import Pair, same, until

BLOCKS = 12
HASHES = hashes_of(BLOCKS * LAYOUT.block_size_tokens)
FIRST_INDEX = 20
"""Where the lender has its blocks; the borrower's targets begin at 4."""


@dataclass
class Fetch:
    """A borrower and a lender, and what they say to each other."""

    pair: Pair
    cached: dict[BlockHash, int] = field(
        default_factory=lambda: {each: FIRST_INDEX + position for position, each in enumerate(HASHES)}
    )
    silent: bool = False

    def __post_init__(self) -> None:
        pair = self.pair
        pair.exporter = Exporter(
            transport=pair.prefill,
            memory=pair.prefill_pool,
            holds=pair.prefill_pool,
            incarnation=EXPORTER_LIFE,
            layout=LAYOUT,
            settings=SETTINGS,
            find_run=self.find_run,
            clock=pair.clock,
        )
        self.fetcher = Fetcher(pair.importer, self.bring)

    def find_run(self, hashes: Sequence[BlockHash]) -> list[int]:
        found: list[int] = []
        for each in hashes:
            if each not in self.cached:
                break
            found.append(self.cached[each])
        return found

    async def bring(self, _source: FetchSource, job: ImportJob) -> Imported:
        if not self.silent:
            self.pair.serving = asyncio.create_task(self.pair.channel.serve(self.pair.exporter))
        try:
            return await self.pair.importer.run(job, self.pair.channel)
        except BaseException:
            self.pair.channel.to_exporter.put_nowait(None)  # as a call that was cancelled
            raise

    def start(
        self, first: int = 0, patience_s: float = 10.0, life: Incarnation = EXPORTER_LIFE
    ) -> "asyncio.Task[FetchReport]":
        source = FetchSource(
            worker_id=WorkerId("decode-1"), incarnation=life, address="", blocks=BLOCKS, patience_s=patience_s
        )
        job = FetchJob(
            request_id=REQUEST,
            attempt=ATTEMPT,
            source=source,
            first=first,
            targets=tuple(range(4 + first, 4 + BLOCKS)),
            hashes=HASHES,
        )
        return asyncio.create_task(self.fetcher.fetch(job))

    def assert_came(self, positions: range) -> None:
        """Check the borrower's blocks: those at ``positions`` are the lender's, the others are not."""
        there, here = self.pair.prefill_pool.bytes, self.pair.decode_pool.bytes
        for position in range(BLOCKS):
            assert same(there[FIRST_INDEX + position], here[4 + position]) == (position in positions), position


@pytest.fixture
async def fetch(pair: Pair) -> AsyncIterator[Fetch]:
    one = Fetch(pair)
    yield one
    await pair.assert_no_holds()
    if pair.serving is not None:
        pair.channel.to_exporter.put_nowait(None)
        await asyncio.wait_for(pair.serving, 5)
    assert pair.exporter.orphaned == 0


async def test_what_the_lender_has_arrives(fetch: Fetch) -> None:
    report = await fetch.start()
    assert (report.asked_blocks, report.moved_blocks, report.failure) == (BLOCKS, BLOCKS, "")
    assert report.moved_bytes == BLOCKS * LAYOUT.block_bytes
    assert 0 < report.transfer_s <= report.elapsed_s
    fetch.assert_came(range(BLOCKS))
    assert isinstance(fetch.pair.channel.said[0], OpenFetch)
    await until(lambda: isinstance(fetch.pair.channel.said[-1], AcceptBlocks))
    learned = {link.peer: link.imports for link in fetch.pair.importer.links.reports()}
    assert learned == {"decode-1": 1}


async def test_only_what_follows_the_own_prefix_is_asked_for(fetch: Fetch) -> None:
    report = await fetch.start(first=5)
    assert (report.asked_blocks, report.moved_blocks) == (7, 7)
    fetch.assert_came(range(5, BLOCKS))


@pytest.mark.parametrize("held", [0, 1, 7])
async def test_a_lender_that_has_less_gives_less(fetch: Fetch, held: int) -> None:
    del fetch.cached[HASHES[held]]
    report = await fetch.start()
    assert (report.moved_blocks, report.failure) == (held, "")
    fetch.assert_came(range(held))
    pulled = [
        position for said in fetch.pair.channel.said if isinstance(said, PullBlocks) for position in said.positions
    ]
    assert pulled == list(range(held)), "nothing is asked for that is not there"


async def test_lent_blocks_are_held_as_long_as_the_fetch_runs(fetch: Fetch) -> None:
    def look(message: ExporterMessage) -> list[ExporterMessage]:
        if isinstance(message, BlocksSealed):
            holds = fetch.pair.prefill_pool.holds[FIRST_INDEX]
            assert [type(hold) for hold in holds] == [LeaseHold]
        return [message]

    fetch.pair.channel.twist = look
    assert (await fetch.start()).moved_blocks == BLOCKS
    await until(lambda: not fetch.pair.prefill_pool.count(LeaseHold))


async def test_digests_are_computed_a_few_at_a_time(fetch: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lending, "LENT_AT_ONCE_BYTES", 5 * LAYOUT.block_bytes)
    assert (await fetch.start()).moved_blocks == BLOCKS
    lots = [len(heard.blocks) for heard in fetch.pair.channel.heard if isinstance(heard, BlocksSealed)]
    assert lots == [5, 5, 2]
    fetch.assert_came(range(BLOCKS))


async def test_what_came_before_the_lender_died_is_kept(fetch: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lending, "LENT_AT_ONCE_BYTES", 5 * LAYOUT.block_bytes)
    channel = fetch.pair.channel

    def die(message: ExporterMessage) -> list[ExporterMessage]:
        dead = any(isinstance(heard, BlocksSealed) for heard in channel.heard[:-1])
        return [] if dead else [message]

    channel.twist = die
    running = fetch.start()
    await until(lambda: same(fetch.pair.decode_pool.bytes[8], fetch.pair.prefill_pool.bytes[FIRST_INDEX + 4]))
    await until(lambda: not fetch.pair.decode_pool.count(WriterHold))
    channel.to_importer.put_nowait(None)
    report = await running
    assert report.moved_blocks == 5
    assert "the stream ended" in report.failure
    fetch.assert_came(range(5))


async def test_a_lender_that_sends_wrong_bytes_is_believed_in_nothing(fetch: Fetch) -> None:
    def spoil(message: ExporterMessage) -> list[ExporterMessage]:
        if isinstance(message, BlocksSealed):
            wrong = replace(message.blocks[7], digest=bytes(16))
            return [BlocksSealed(blocks=(*message.blocks[:7], wrong, *message.blocks[8:]))]
        return [message]

    fetch.pair.channel.twist = spoil
    report = await fetch.start()
    assert report.moved_blocks == 0
    assert "its digest differs" in report.failure


def another_hash(blocks: BlocksSealed) -> BlocksSealed:
    return BlocksSealed(blocks=(replace(blocks.blocks[0], hash=HASHES[3]), *blocks.blocks[1:]))


def a_gap(blocks: BlocksSealed) -> BlocksSealed:
    return BlocksSealed(blocks=blocks.blocks[1:])


@pytest.mark.parametrize("twist", [another_hash, a_gap])
async def test_other_blocks_than_those_asked_for_are_refused(
    fetch: Fetch, twist: Callable[[BlocksSealed], BlocksSealed]
) -> None:
    fetch.pair.channel.twist = lambda message: [twist(message) if isinstance(message, BlocksSealed) else message]
    report = await fetch.start()
    assert report.moved_blocks == 0
    assert "expected hash" in report.failure or "comes next" in report.failure


async def test_a_silent_lender_costs_the_patience_and_no_more(fetch: Fetch) -> None:
    fetch.silent = True
    report = await fetch.start(patience_s=0.02)
    assert report.moved_blocks == 0
    assert "did not lend its blocks within 0.02 s" in report.failure
    assert report.elapsed_s >= 0.02


async def test_another_life_of_the_lender_lends_nothing(fetch: Fetch) -> None:
    report = await fetch.start(life=Incarnation(99))
    assert report.moved_blocks == 0
    assert "restarted" in report.failure


@pytest.mark.parametrize("after", ["nothing", "sealed"])
async def test_a_fetch_that_is_cancelled_leaves_nothing(fetch: Fetch, after: str) -> None:
    running = fetch.start()
    if after == "sealed":
        await until(lambda: any(isinstance(heard, BlocksSealed) for heard in fetch.pair.channel.heard))
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    await fetch.pair.assert_no_holds()


async def test_a_loan_whose_borrower_cannot_be_reached_ends(fetch: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    async def connect(_address: bytes) -> None:
        message = "no way there"
        raise WorkerLost(message)

    monkeypatch.setattr(fetch.pair.prefill, "connect", connect)
    report = await fetch.start()
    assert "no way there" in report.failure
    await until(lambda: fetch.pair.prefill_pool.count(LeaseHold) == BLOCKS)
    fetch.pair.clock.now += SETTINGS.lease_s + 1
    assert await fetch.pair.exporter.sweep() == 1
    assert fetch.pair.exporter.orphaned == 0
    assert not fetch.pair.prefill_pool.count(LeaseHold)
