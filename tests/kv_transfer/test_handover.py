"""Exporter and importer together: what arrives, and what is refused."""

import asyncio
import dataclasses
from functools import partial
from typing import Any

import numpy as np
import pytest

from cluster_core.errors import ExportGone, TransferFailed
from cluster_core.handoff import (
    AcceptBlocks,
    BlocksSealed,
    ExporterMessage,
    ExportFinished,
    PullBlocks,
    RejectBlocks,
)
from tests.kv_transfer.fake_pool import ATTEMPT, REQUEST, TOKEN_BYTES, FakePool, sealed_blocks
from tests.kv_transfer.handover import SETTINGS, Channel, job_of
from tests.kv_transfer.pair import TIMEOUT_S, Pair, drop, ended, same, until


@pytest.mark.parametrize("tokens", [1, 15, 16, 17, 32, 500])
async def test_a_prompt_of_any_length_arrives(pair: Pair, tokens: int) -> None:
    running = pair.start(tokens)
    pair.export(tokens)
    imported = await ended(running)
    assert imported.first_token_id == 77
    blocks = len(sealed_blocks(tokens))
    report = imported.report
    assert (report.moved_blocks, report.kept_blocks) == (blocks, 0)
    assert report.moved_bytes == blocks * pair.prefill_pool.block_bytes
    assert report.transport == pair.decode.name
    pair.assert_same(tokens)
    await pair.assert_no_holds()
    assert isinstance(pair.channel.said[-1], AcceptBlocks)


async def test_blocks_move_while_the_prefill_runs(pair: Pair) -> None:
    pair.importer.clock = pair.clock
    running = pair.start(100)
    export = pair.exporter.open(REQUEST, ATTEMPT)
    await until(pair.is_pulled)
    blocks = sealed_blocks(100)
    there, here = pair.prefill_pool.bytes, pair.decode_pool.bytes
    for block in blocks:
        pair.clock.now += 0.01
        export.seal([block])
        ends = block.position + 1
        await until(partial(same, there[:ends], here[4 : 4 + ends]))
    assert not running.done()
    pair.clock.now += 0.25
    export.finish(5)
    report = (await ended(running)).report
    assert report.exposed_s == pytest.approx(0.25), "since the last block was sealed"
    assert report.messages == len(blocks)
    assert report.overlapped_s <= 0.06 + 1e-9, "since the first block was sealed"
    await pair.assert_no_holds()


async def test_the_end_goes_with_the_last_blocks_or_by_itself(pair: Pair) -> None:
    pair.importer.clock = pair.clock
    running = pair.start(40)
    export = pair.exporter.open(REQUEST, ATTEMPT)
    await until(pair.is_pulled)
    blocks = sealed_blocks(40)
    pair.clock.now += 2.0
    export.seal(blocks[:1])
    await until(lambda: len(pair.channel.heard) == 2)
    pair.clock.now += 1.0
    export.seal(blocks[1:])
    export.finish(5, (6, 7))
    imported = await ended(running)
    assert (imported.first_token_id, imported.fork_token_ids) == (5, (6, 7))
    last = pair.channel.heard[-1]
    assert len(pair.channel.heard) == 3
    assert isinstance(last, BlocksSealed)
    assert last.finished == ExportFinished(first_token_id=5, fork_token_ids=(6, 7), ended_s=3.0)
    assert last.filled_s == 3.0
    assert imported.report.exposed_s == 0.0, "by this clock all that follows takes no time"


async def test_only_what_is_lacking_is_moved(pair: Pair) -> None:
    kept = frozenset({0, 1, 3})
    running = pair.start(90, kept=kept)
    pair.export(90)
    report = (await ended(running)).report
    assert (report.moved_blocks, report.kept_blocks) == (3, 3)
    pair.assert_same(90, kept=kept)
    await pair.assert_no_holds()


async def test_a_full_hit_moves_nothing(pair: Pair) -> None:
    running = pair.start(64, kept=frozenset(range(4)))
    pair.export(64)
    report = (await ended(running)).report
    assert (report.moved_blocks, report.moved_bytes, report.transfer_s) == (0, 0, 0.0)
    await pair.assert_no_holds()


async def test_many_handovers_at_once(pair: Pair) -> None:
    running = [pair.start(60)]
    pair.export(60)
    others = []
    for number in range(2, 6):
        request, channel = type(REQUEST)(f"r-{number}"), Channel()
        export = pair.exporter.open(request, ATTEMPT)
        export.seal(sealed_blocks(60, first_index=4 * number))
        export.finish(number)
        others.append(asyncio.create_task(channel.serve(pair.exporter)))
        job = dataclasses.replace(job_of(60, first_target=4 + 4 * number), request_id=request)
        running.append(asyncio.create_task(pair.importer.run(job, channel)))
    results = [await ended(one) for one in running]
    assert [result.first_token_id for result in results] == [77, 2, 3, 4, 5]
    for number in range(2, 6):
        there = pair.prefill_pool.bytes[4 * number : 4 * number + 4]
        assert np.array_equal(there, pair.decode_pool.bytes[4 + 4 * number : 8 + 4 * number])
    await pair.assert_no_holds()


async def test_no_more_than_the_limit_is_in_flight(switched: Pair) -> None:
    settings = dataclasses.replace(SETTINGS, blocks_in_flight=3)
    pair = Pair(switched.prefill, switched.decode, settings)
    running = pair.start(320)
    pair.export(320)
    await ended(running)
    pulls = [message.positions for message in pair.channel.said if isinstance(message, PullBlocks)]
    assert max(len(positions) for positions in pulls) == 3
    assert sorted(position for positions in pulls for position in positions) == list(range(20))


async def test_what_another_request_left_in_a_part_filled_block_stays_here(pair: Pair) -> None:
    running = pair.start(20)
    pair.export(20)
    await ended(running)
    assert not pair.decode_pool.bytes[5, 4 * TOKEN_BYTES :].any()
    assert pair.decode_pool.bytes[5, : 4 * TOKEN_BYTES].any()


def _flip_a_bit(pair: Pair) -> None:
    pair.prefill_pool.bytes[2, 1234] ^= 4


def _swap_two_blocks(pair: Pair) -> None:
    pair.prefill_pool.bytes[[1, 2]] = pair.prefill_pool.bytes[[2, 1]]


def _reuse_a_block(pair: Pair) -> None:
    pair.prefill_pool.generations[2] += 1


async def test_a_bit_that_flips_after_a_prefix_was_cached_is_caught_when_it_is_exported_again(pair: Pair) -> None:
    running = pair.start(64)
    pair.export(64)
    await ended(running)
    pair.prefill_pool.bytes[2, 1234] ^= 4
    request, pair.channel = type(REQUEST)("r-2"), Channel()
    pair.exporter.open(request, ATTEMPT).seal(sealed_blocks(64))
    serving = asyncio.create_task(pair.channel.serve(pair.exporter))
    job = dataclasses.replace(job_of(64, first_target=20), request_id=request)
    with pytest.raises(TransferFailed, match="digest"):
        await asyncio.wait_for(pair.importer.run(job, pair.channel), TIMEOUT_S)
    await serving
    await pair.assert_no_holds()


@pytest.mark.parametrize("harm", [_flip_a_bit, _swap_two_blocks])
async def test_harm_between_sealing_and_reading_is_caught(pair: Pair, harm: Any) -> None:
    pair.export(60)
    harm(pair)
    with pytest.raises(TransferFailed, match="digest"):
        await ended(pair.start(60))
    await pair.assert_no_holds()
    assert isinstance(pair.channel.said[-1], RejectBlocks)


async def test_a_block_that_was_reused_before_it_is_sent_is_not_sent(pair: Pair) -> None:
    pair.export(60)
    _reuse_a_block(pair)
    with pytest.raises(ExportGone, match="block 2 was reused while it was exported"):
        await ended(pair.start(60))
    await pair.assert_no_holds()


async def test_a_block_that_is_reused_while_it_is_sent_ends_the_hand_over(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair.export(64)

    def reuse_while_it_is_read(pool: FakePool) -> Any:
        if pool is pair.prefill_pool:
            _reuse_a_block(pair)
        return pool.bytes

    monkeypatch.setattr(FakePool, "rows", property(reuse_while_it_is_read))
    pair.channel.twist = drop(ExportFinished)
    with pytest.raises(ExportGone, match="block 2 was reused while it was exported"):
        await ended(pair.start(64))
    await pair.assert_no_holds()


def _change_sealed(**changes: Any) -> Any:
    def twist(message: ExporterMessage) -> list[ExporterMessage]:
        if isinstance(message, BlocksSealed):
            first, *others = message.blocks
            message = BlocksSealed(blocks=(dataclasses.replace(first, **changes), *others))
        return [message]

    return twist


@pytest.mark.parametrize(
    ("twist", "reason"),
    [
        (_change_sealed(hash=b"h" * 16), "hash"),
        (_change_sealed(hash=None), "hash"),
        (_change_sealed(digest=b""), "without a digest"),
        (_change_sealed(digest=b"d" * 16), "digest differs"),
        (_change_sealed(tokens=15), "cannot hold"),
        (_change_sealed(position=9), "does not exist"),
        (_change_sealed(position=1), "expected hash"),
        (drop(BlocksSealed), "finished without"),
    ],
)
async def test_a_reference_that_cannot_be_right_is_refused(pair: Pair, twist: Any, reason: str) -> None:
    pair.channel.twist = twist
    pair.export(60)
    with pytest.raises(TransferFailed, match=reason):
        await ended(pair.start(60))
    await pair.assert_no_holds()


async def test_a_duplicated_message_about_sealed_blocks_changes_nothing(pair: Pair) -> None:
    pair.channel.twist = lambda message: [message] * (2 if isinstance(message, BlocksSealed) else 1)
    pair.export(60)
    assert (await ended(pair.start(60))).report.moved_blocks == 4
