"""What a broken hand-over leaves: blocks that are valid all the same, and an export that another importer takes."""

import asyncio
import dataclasses
from collections.abc import Callable

import pytest

from cluster_core.errors import ExportGone, LegFailed, TransferFailed
from cluster_core.handoff import BlocksSealed, ExporterMessage, PullBlocks
from cluster_core.holds import LeaseHold
from kv_transfer.exporter import Export
from kv_transfer.import_job import Imported, ImportJob
from tests.kv_transfer.fake_pool import ATTEMPT, REQUEST, sealed_blocks
from tests.kv_transfer.handover import Channel, job_of
from tests.kv_transfer.pair import TIMEOUT_S, Pair, ended, until
from tests.kv_transfer.test_handover_ends import Garbled

TOKENS = 92
"""Five full blocks and one that is not."""


def begin(pair: Pair, job: ImportJob, channel: Channel) -> "asyncio.Task[Imported]":
    pair.serving = asyncio.create_task(channel.serve(pair.exporter))
    return asyncio.create_task(pair.importer.run(job, channel))


def seal_some(pair: Pair, positions: range | list[int]) -> Export:
    export = pair.exporter.open(REQUEST, ATTEMPT)
    blocks = sealed_blocks(TOKENS)
    for position in positions:
        export.seal([blocks[position]])
    return export


async def all_landed(pair: Pair, job: ImportJob, positions: range | list[int]) -> None:
    """Wait until the blocks lie in their targets, and have been looked at."""
    blocks = sealed_blocks(TOKENS)

    def landed() -> bool:
        return all(
            (pair.decode_pool.bytes[job.targets[place]] == pair.prefill_pool.bytes[blocks[place].index]).all()
            for place in positions
        )

    await until(landed)
    for _ in range(20):
        await asyncio.sleep(0)


def lose_the_stream(pair: Pair, _running: "asyncio.Task[Imported]") -> None:
    pair.channel.to_importer.put_nowait(None)


def cancel(_pair: Pair, running: "asyncio.Task[Imported]") -> None:
    running.cancel()


def fail_the_prefill(pair: Pair, _running: "asyncio.Task[Imported]") -> None:
    pair.exporter.close("the prefill worker ends")


@pytest.mark.parametrize("end", [lose_the_stream, cancel, fail_the_prefill])
async def test_blocks_that_landed_and_were_checked_are_told(
    pair: Pair, end: Callable[[Pair, "asyncio.Task[Imported]"], None]
) -> None:
    job = job_of(TOKENS, first_target=10, kept=frozenset({0}))
    running = begin(pair, job, pair.channel)
    seal_some(pair, range(4))
    await all_landed(pair, job, [1, 2, 3])
    assert job.remains.verified == frozenset()
    end(pair, running)
    with pytest.raises((LegFailed, asyncio.CancelledError)):
        await ended(running)
    assert job.remains.verified == {1, 2, 3}
    pair.channel.to_exporter.put_nowait(None)
    pair.exporter.close("the test ends")
    await pair.assert_no_holds()


async def test_after_a_digest_that_differs_nothing_of_the_hand_over_is_believed(pair: Pair) -> None:
    job = job_of(TOKENS, first_target=10)
    running = begin(pair, job, pair.channel)
    export = seal_some(pair, range(3))
    await all_landed(pair, job, range(3))
    last = sealed_blocks(TOKENS)[3]

    def flip(message: ExporterMessage) -> list[ExporterMessage]:
        if not isinstance(message, BlocksSealed):
            return [message]
        (block,) = message.blocks
        return [BlocksSealed(blocks=(dataclasses.replace(block, digest=bytes(16)),))]

    pair.channel.twist = flip
    export.seal([last])
    with pytest.raises(TransferFailed, match="digest"):
        await ended(running)
    assert job.remains.verified == frozenset()
    await pair.assert_no_holds()


async def test_nothing_is_believed_of_an_exporter_that_makes_no_sense(switched: Pair) -> None:
    channel = switched.channel = Garbled()
    channel.kind = type(None)
    job = job_of(TOKENS, first_target=10)
    running = begin(switched, job, channel)
    export = seal_some(switched, range(3))
    await all_landed(switched, job, range(3))
    channel.kind = BlocksSealed
    export.seal([sealed_blocks(TOKENS)[3]])
    with pytest.raises(TransferFailed, match="makes no sense"):
        await ended(running)
    assert job.remains.verified == frozenset()
    await switched.assert_no_holds()


@pytest.mark.parametrize("finished", [False, True])
async def test_who_was_bound_later_takes_the_export_over(pair: Pair, finished: bool) -> None:
    first_job = job_of(TOKENS, first_target=10)
    first = begin(pair, first_job, pair.channel)
    turned_away = pair.serving
    export = seal_some(pair, range(4))
    await all_landed(pair, first_job, range(4))
    if finished:
        pair.channel.twist = lambda _: []
        export.seal(sealed_blocks(TOKENS)[4:])
        export.finish(3)
    second_channel = Channel()
    second_job = dataclasses.replace(job_of(TOKENS, first_target=20), binding=1)
    second = begin(pair, second_job, second_channel)
    await until(lambda: any(isinstance(message, PullBlocks) for message in second_channel.said))
    if not finished:
        with pytest.raises(ExportGone, match="given to another decode worker"):
            await ended(first)
        assert first_job.remains.verified == {0, 1, 2, 3}, "it can still be of use where it lies"
        export.seal(sealed_blocks(TOKENS)[4:])
        export.finish(3)
    assert turned_away is not None
    await asyncio.wait_for(turned_away, TIMEOUT_S)
    first.cancel()
    imported = await ended(second)
    assert imported.first_token_id == 3
    assert imported.report.moved_blocks == len(second_job.targets)
    await asyncio.gather(first, return_exceptions=True)
    await pair.assert_no_holds()


async def test_who_was_bound_earlier_is_late_even_when_nobody_listens(pair: Pair) -> None:
    later = dataclasses.replace(job_of(TOKENS, first_target=10), binding=1)
    running = begin(pair, later, pair.channel)
    export = seal_some(pair, range(4))
    await all_landed(pair, later, range(4))
    running.cancel()
    pair.channel.to_exporter.put_nowait(None)
    assert pair.serving is not None
    await pair.serving
    assert not export.claimed
    with pytest.raises(ExportGone, match="being handed over already"):
        await ended(begin(pair, job_of(TOKENS, first_target=20), Channel()))
    again = dataclasses.replace(later, targets=tuple(range(20, 26)))
    channel = Channel()
    running = begin(pair, again, channel)
    export.seal(sealed_blocks(TOKENS)[4:])
    export.finish(3)
    await ended(running)
    await until(lambda: pair.prefill_pool.count(LeaseHold) == 0)
