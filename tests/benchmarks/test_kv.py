"""Two real processes and small pools: every side of the block benchmark moves its lots and checks them."""

import pytest

from benchmarks.block_lots import KIB, LotKind
from benchmarks.kv_orders import SHARED_MEMORY, TCP
from benchmarks.kv_receiver import both_sides
from benchmarks.nixl_sides import OPERATIONS, installed, nixl_pair

POOL_BYTES = 8 * 2**20
SCATTERED = LotKind(size=4 * KIB, count=100, scattered=True)
CONTIGUOUS = LotKind(size=64 * KIB, count=32, scattered=False)


async def test_every_side_moves_its_lots() -> None:
    async with both_sides(POOL_BYTES) as (receiver, handovers):
        for kind in (SCATTERED, CONTIGUOUS):
            assert await receiver.ours_gb_s(kind, SHARED_MEMORY) > 0
            assert await receiver.ours_gb_s(kind, TCP) > 0
            assert await receiver.memcpy_gb_s(kind) > 0
            assert await receiver.digest_gb_s(kind) > 0
            assert await receiver.cma_gb_s(kind) > 0
            assert await receiver.sockets_gb_s(kind) > 0
            assert await receiver.ours_streaming_gb_s(kind) > 0
            assert await receiver.cma_streaming_gb_s(kind) > 0
        assert await receiver.round_trip_us(3) > 0
        assert await handovers.handover_s() > 0


@pytest.mark.skipif(not installed(), reason="NIXL is not installed")
async def test_nixl_moves_the_same_lots() -> None:
    with nixl_pair(POOL_BYTES) as pair:
        for operation in OPERATIONS:
            assert await pair.gb_s(SCATTERED, operation) > 0
            assert await pair.gb_s(CONTIGUOUS, operation) > 0
            assert await pair.gb_s(SCATTERED, operation, streaming=True) > 0
            assert await pair.gb_s(CONTIGUOUS, operation, streaming=True) > 0
