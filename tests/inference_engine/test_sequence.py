"""A sequence's blocks: attached, reserved, sealed, given back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster_core.hash_chain import chain_hashes
from cluster_core.holds import RequestHold
from cluster_core.identity import Attempt, RequestId
from inference_engine.block_pool import BlockPool, NoFreeBlocks
from inference_engine.sequence import TokenSequence

ROOT = b"root"


def make(pool: BlockPool, token_ids: list[int], name: str = "a") -> TokenSequence:
    hold = RequestHold(RequestId(name), Attempt(1))
    return TokenSequence(pool=pool, hold=hold, root=ROOT, token_ids=token_ids, block_size_tokens=4)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=30), st.data())
def test_blocks_are_sealed_as_they_fill_and_found_again(tokens: list[int], data: st.DataObject) -> None:
    pool = BlockPool(20)
    sequence = make(pool, tokens)
    assert sequence.attach_cached(len(tokens) - 1) == []
    filled = []
    while sequence.pending:
        count = data.draw(st.integers(1, sequence.pending))
        sequence.reserve(sequence.computed + count)
        filled += sequence.advance(count)
    assert [block.hash for block in filled] == chain_hashes(ROOT, tokens, 4)
    assert [block.position for block in filled] == list(range(len(tokens) // 4))
    table = list(sequence.block_table)
    sequence.give_back()
    assert pool.counts().held == 0

    again = make(pool, tokens)
    gained = again.attach_cached(len(tokens) - 1)
    assert again.computed == (len(tokens) - 1) // 4 * 4 == 4 * len(gained)
    assert again.block_table == table[: len(gained)]
    again.give_back()
    pool.audit()


def test_tokens_that_were_drawn_extend_the_chain() -> None:
    pool = BlockPool(4)
    sequence = make(pool, [1, 2, 3])
    sequence.reserve(3)
    assert sequence.advance(3) == []
    sequence.append(4)
    sequence.reserve(4)
    (filled,) = sequence.advance(1)
    assert filled.hash == chain_hashes(ROOT, [1, 2, 3, 4], 4)[0]


@pytest.mark.parametrize("ends_at_once", [False, True])
def test_what_was_completed_elsewhere_is_sealed_after_the_next_step_or_at_the_end(*, ends_at_once: bool) -> None:
    pool, tokens = BlockPool(8), list(range(10))
    sequence = make(pool, tokens)
    sequence.reserve(11)
    sequence.complete()
    assert (sequence.pending, pool.cached_hashes()) == (0, [])
    if not ends_at_once:
        sequence.append(10)
        sequence.advance(1)
        assert pool.cached_hashes() == chain_hashes(ROOT, tokens, 4)
    sequence.give_back()
    assert pool.cached_hashes() == chain_hashes(ROOT, tokens, 4)
    assert pool.counts().held == 0
    pool.audit()


def test_what_came_rounded_is_not_sealed_at_the_end() -> None:
    pool = BlockPool(8)
    sequence = make(pool, list(range(10)))
    sequence.reserve(11)
    sequence.private = True
    sequence.complete()
    sequence.give_back()
    assert pool.cached_hashes() == []


def test_a_block_sealed_meanwhile_replaces_the_reserved_one() -> None:
    pool = BlockPool(8)
    slow, fast = make(pool, list(range(10)), "slow"), make(pool, list(range(10)), "fast")
    slow.reserve(10)
    fast.reserve(10)
    fast.advance(10)
    gained = slow.attach_cached(9)
    assert [block.index for block in gained] == fast.block_table[:2] == slow.block_table[:2]
    assert slow.computed == 8
    slow.give_back()
    fast.give_back()
    pool.audit()
    assert pool.counts() == (8, 0, 2)


def test_a_reservation_that_fails_changes_nothing() -> None:
    pool = BlockPool(2)
    sequence = make(pool, list(range(12)))
    sequence.reserve(4)
    with pytest.raises(NoFreeBlocks):
        sequence.reserve(12)
    assert len(sequence.block_table) == 1


def test_another_salt_finds_nothing() -> None:
    pool = BlockPool(4)
    sequence = make(pool, list(range(8)))
    sequence.reserve(8)
    sequence.advance(8)
    hold = RequestHold(RequestId("b"), Attempt(1))
    other = TokenSequence(pool=pool, hold=hold, root=b"other", token_ids=range(8), block_size_tokens=4)
    assert other.attach_cached(7) == []


def test_a_preempted_sequence_starts_again_through_the_cache() -> None:
    pool = BlockPool(4)
    sequence = make(pool, list(range(9)))
    sequence.reserve(9)
    sequence.advance(9)
    sequence.give_back()
    assert (sequence.computed, sequence.block_table) == (0, [])
    sequence.attach_cached(8)
    assert sequence.computed == 8
