"""Blocks that are harmed at the exporter between their sealing and their packing, and blocks that are not."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cluster_core.blocks import BlockReference
from cluster_core.errors import TransferFailed
from cluster_core.identity import Attempt
from kv_transfer.digest import BlockDigests, block_digest
from kv_transfer.loopback_transport import LoopbackNetwork
from tests.kv_transfer.fake_pool import ATTEMPT, REQUEST, FakePool, references_of, sealed_blocks
from tests.kv_transfer.handover import job_of
from tests.kv_transfer.pair import Pair, ended, until
from tests.kv_transfer.test_wire import SLOW, TOKENS, make_pair, measured

Harm = Callable[[FakePool], None]
LATER = Attempt(2)
LAST = len(sealed_blocks(TOKENS)) - 1
"""Position of the block that is not full."""


def overwritten(pool: FakePool) -> None:
    pool.bytes[1] = pool.bytes[30]


def bit_flipped(pool: FakePool) -> None:
    """Flip the bit that weighs least: the numbers that travel are the same."""
    pool.bytes[1].view(np.uint32)[77] ^= 1


def bit_flipped_in_the_last(pool: FakePool) -> None:
    pool.bytes[LAST].view(np.uint32)[0] ^= 1


def swapped(pool: FakePool) -> None:
    pool.bytes[[1, 2]] = pool.bytes[[2, 1]]


HARMS = [overwritten, bit_flipped, bit_flipped_in_the_last, swapped]


@pytest.fixture
async def network() -> AsyncIterator[LoopbackNetwork]:
    network = LoopbackNetwork()
    yield network
    for transport in list(network.transports.values()):
        await transport.close()


async def rounding_pair(name: str, network: LoopbackNetwork) -> Pair:
    pair = await make_pair(name, name, network)
    measured(pair, SLOW)
    return pair


@pytest.mark.parametrize("name", ["int8", "fp8"])
@pytest.mark.parametrize("harm", HARMS)
async def test_harm_between_sealing_and_the_importers_coming_is_refused(
    name: str, harm: Harm, network: LoopbackNetwork
) -> None:
    pair = await rounding_pair(name, network)
    pair.export(TOKENS)
    harm(pair.prefill_pool)
    with pytest.raises(TransferFailed, match="digest differs"):
        await ended(pair.start(TOKENS))
    await pair.assert_no_holds()


@pytest.mark.parametrize("name", ["int8", "fp8"])
@pytest.mark.parametrize("harm", [None, *HARMS])
async def test_harm_to_blocks_that_were_pulled_before_they_were_sealed_is_refused(
    name: str, harm: Harm | None, network: LoopbackNetwork
) -> None:
    pair = await rounding_pair(name, network)
    export = pair.exporter.open(REQUEST, ATTEMPT)
    running = pair.start(TOKENS)
    await until(lambda: len(pair.channel.said) > 1)
    export.seal(sealed_blocks(TOKENS))
    if harm is not None:
        harm(pair.prefill_pool)
    export.finish(77)
    if harm is None:
        assert (await ended(running)).rounded
    else:
        with pytest.raises(TransferFailed, match="digest differs"):
            await ended(running)
    await pair.assert_no_holds()


async def test_harm_while_other_blocks_are_packed_is_refused(
    network: LoopbackNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = await rounding_pair("int8", network)
    wire = pair.exporter._blocks.wire
    assert wire is not None
    wire.lot_blocks = 1
    pack, packed = wire.pack, []

    def harming(blocks: list[BlockReference]) -> object:
        packed.append(blocks[0].position)
        rows = pack(blocks)
        if len(packed) == 3:
            bit_flipped_in_the_last(pair.prefill_pool)
        return rows

    monkeypatch.setattr(wire, "pack", harming)
    pair.export(TOKENS)
    with pytest.raises(TransferFailed, match=f"block {LAST} did not arrive as it was sealed"):
        await ended(pair.start(TOKENS))
    await pair.assert_no_holds()


@pytest.mark.parametrize("harmed", [False, True])
async def test_a_prefix_that_an_earlier_request_sealed_is_read_again(harmed: bool, network: LoopbackNetwork) -> None:
    pair = await rounding_pair("int8", network)
    earlier = pair.exporter.open(REQUEST, ATTEMPT)
    earlier.seal(sealed_blocks(TOKENS))
    later = pair.exporter.open(REQUEST, LATER)
    if harmed:
        bit_flipped(pair.prefill_pool)
    later.seal(sealed_blocks(TOKENS))
    later.finish(77)
    pair.serving = asyncio.create_task(pair.channel.serve(pair.exporter))
    running = asyncio.create_task(pair.importer.run(job_of(TOKENS, first_target=4, attempt=LATER), pair.channel))
    if harmed:
        with pytest.raises(TransferFailed, match="digest differs"):
            await ended(running)
    else:
        assert (await ended(running)).rounded
    await pair.assert_no_holds()


@pytest.mark.parametrize("name", ["int8", "fp8"])
async def test_the_digest_is_of_the_very_bytes_that_are_packed(
    name: str, network: LoopbackNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = await rounding_pair(name, network)
    wire, pool = pair.importer.wire, pair.decode_pool
    assert wire is not None
    pool.bytes[:] = pair.prefill_pool.bytes
    blocks = references_of(pool, sealed_blocks(TOKENS))
    expected = [block_digest(pool.buffer(block.index), block.position, block.hash) for block in blocks]
    undisturbed = wire.pack(blocks)[: len(blocks)].copy()
    digests_of = BlockDigests.of

    def harming(self: BlockDigests, *asked: Any) -> Sequence[bytes]:
        digests = digests_of(self, *asked)
        pool.bytes[:] = 0
        return digests

    monkeypatch.setattr(BlockDigests, "of", harming)
    packed = wire.pack([replace(block, digest=b"of the sealing") for block in blocks])
    assert not pool.bytes.any()
    assert [wire.unpack(row, 20) for row in packed[: len(blocks)]] == expected
    assert np.array_equal(packed[: len(blocks)], undisturbed)
