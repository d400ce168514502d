"""Lots of the block benchmark: the same lists on both sides, and checked where they arrive."""

import numpy as np
import pytest

from benchmarks.block_lots import KIB, KINDS, LARGEST_LOT_BYTES, LotKind, blocks_of, check, new_pool, places

POOL_BYTES = 4 * 2**20
SCATTERED = LotKind(size=4 * KIB, count=100, scattered=True)
CONTIGUOUS = LotKind(size=4 * KIB, count=100, scattered=False)


@pytest.mark.parametrize("kind", [SCATTERED, CONTIGUOUS])
def test_both_sides_draw_the_same_places_and_every_lot_has_others(kind: LotKind) -> None:
    ours, theirs = places(kind, 7, POOL_BYTES), places(kind, 7, POOL_BYTES)
    assert all(np.array_equal(one, other) for one, other in zip(ours, theirs, strict=True))
    assert not np.array_equal(ours[0], places(kind, 8, POOL_BYTES)[0])


def test_scattered_places_are_all_different_and_in_no_order() -> None:
    for side in places(SCATTERED, 1, POOL_BYTES):
        assert len(set(side.tolist())) == SCATTERED.count
        assert 0 <= side.min() <= side.max() < POOL_BYTES // SCATTERED.size
        assert (np.diff(side) == 1).mean() < 0.1


def test_contiguous_places_are_adjacent() -> None:
    for side in places(CONTIGUOUS, 1, POOL_BYTES):
        assert np.all(np.diff(side) == 1)
        assert 0 <= side[0] <= side[-1] < POOL_BYTES // CONTIGUOUS.size


def test_a_kind_that_is_too_large_for_a_pool_is_cut() -> None:
    assert LotKind(size=KIB, count=2000, scattered=True).fitting(2**20).count == 768
    assert SCATTERED.fitting(POOL_BYTES) == SCATTERED


def test_kinds_go_from_one_block_to_two_thousand_and_stay_within_bounds() -> None:
    assert {kind.count for kind in KINDS.values() if kind.size == 4 * KIB} == {1, 32, 2000}
    assert max(kind.lot_bytes for kind in KINDS.values()) <= LARGEST_LOT_BYTES


def test_a_block_that_did_not_arrive_is_found() -> None:
    source, target = new_pool(POOL_BYTES), np.zeros(POOL_BYTES, np.uint8)
    sources, targets = places(SCATTERED, 3, POOL_BYTES)
    blocks_of(target, SCATTERED.size)[targets] = blocks_of(source, SCATTERED.size)[sources]
    check(target, SCATTERED, sources, targets)
    blocks_of(target, SCATTERED.size)[targets[5], -1] ^= 1
    with pytest.raises(RuntimeError, match="did not arrive"):
        check(target, SCATTERED, sources, targets)
