"""The block pool against a model of sets: conservation, holds, no early free (failures I1 to I3)."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from cluster_core.blocks import BlocksRemoved, BlocksStored
from cluster_core.holds import CacheHold, Hold, LeaseHold, RequestHold, WriterHold
from cluster_core.identity import Attempt, BlockHash, RequestId
from inference_engine.block_pool import BlockPool, NoFreeBlocks


def request_hold(number: int) -> RequestHold:
    return RequestHold(RequestId(f"r{number}"), Attempt(1))


def hash_of(number: int) -> BlockHash:
    return BlockHash(number.to_bytes(16, "big"))


class BlockPoolMachine(RuleBasedStateMachine):
    """Allocates, lends, seals and releases at random; ``held`` and ``sealed`` are the model."""

    holds = Bundle("holds")

    @initialize(total=st.integers(1, 12))
    def start(self, total: int) -> None:
        self.total = total
        self.pool = BlockPool(total)
        self.held: dict[int, set[Hold]] = {index: set() for index in range(total)}
        self.sealed: dict[int, BlockHash] = {}
        self.generations = [0] * total
        self.serial = 0

    @rule(target=holds, count=st.integers(1, 5))
    def allocate(self, count: int) -> object:
        self.serial += 1
        hold = request_hold(self.serial)
        can_be_had = sum(not owners for owners in self.held.values())
        try:
            indices = self.pool.allocate(count, hold)
        except NoFreeBlocks:
            assert can_be_had < count
            return multiple()
        for index in indices:
            assert not self.held[index], "a held block was given away"
            assert self.pool.generation(index) == self.generations[index] + 1
            self.generations[index] += 1
            self.sealed.pop(index, None)
            self.held[index].add(hold)
        return hold

    @rule(target=holds, hold=holds, writer=st.booleans())
    def acquire_another(self, hold: Hold, writer: bool) -> Hold:
        self.serial += 1
        other: Hold = WriterHold(self.serial) if writer else LeaseHold(RequestId(f"r{self.serial}"), Attempt(1))
        for index, owners in self.held.items():
            if hold in owners:
                self.pool.acquire(index, other)
                owners.add(other)
        return other

    @rule(hold=consumes(holds))
    def release(self, hold: Hold) -> None:
        expected = [index for index, owners in self.held.items() if hold in owners]
        assert self.pool.release(hold) == len(expected)
        for index in expected:
            self.held[index].discard(hold)

    @rule(hold=holds)
    def release_one(self, hold: Hold) -> None:
        mine = [index for index, owners in self.held.items() if hold in owners]
        if mine:
            self.pool.release_block(mine[0], hold)
            self.held[mine[0]].discard(hold)

    @rule(hold=holds, number=st.integers(0, 20))
    def seal(self, hold: Hold, number: int) -> None:
        mine = [index for index, owners in self.held.items() if hold in owners]
        if mine:
            self.pool.seal(mine[0], hash_of(number), (number,))
            if hash_of(number) not in self.sealed.values() and mine[0] not in self.sealed:
                self.sealed[mine[0]] = hash_of(number)

    @rule(target=holds, number=st.integers(0, 20))
    def hit(self, number: int) -> object:
        found = self.pool.find_prefix([hash_of(number)], (number,), 1)
        assert found == [index for index, known in self.sealed.items() if known == hash_of(number)]
        if not found:
            return multiple()
        self.serial += 1
        self.pool.acquire(found[0], request_hold(self.serial))
        self.held[found[0]].add(request_hold(self.serial))
        return request_hold(self.serial)

    @invariant()
    def holds_agree(self) -> None:
        for index, owners in self.held.items():
            cache = {CacheHold()} if index in self.sealed else set()
            assert self.pool.holds(index) == owners | cache

    @invariant()
    def conserved(self) -> None:
        self.pool.audit()
        counts = self.pool.counts()
        assert counts.held == sum(bool(owners) for owners in self.held.values())
        assert counts.cached == sum(not self.held[index] for index in self.sealed)
        assert self.pool.available() == self.total - counts.held

    @invariant()
    def events_tell_the_cache(self) -> None:
        told: set[BlockHash] = getattr(self, "told", set())
        for event in self.pool.drain_events():
            match event:
                case BlocksStored(hashes=hashes):
                    told |= set(hashes)
                case BlocksRemoved(hashes=hashes):
                    told -= set(hashes)
        self.told = told
        assert told == set(self.sealed.values()) == set(self.pool.cached_hashes())


TestBlockPool = BlockPoolMachine.TestCase
TestBlockPool.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


def test_a_writers_hold_outlives_the_requests() -> None:
    pool = BlockPool(2)
    indices = pool.allocate(2, request_hold(1))
    pool.acquire(indices[0], WriterHold(7))
    pool.release(request_hold(1))
    assert pool.available() == 1
    assert pool.allocate(1, request_hold(2)) == [indices[1]]
    with pytest.raises(NoFreeBlocks):
        pool.allocate(1, request_hold(2))
    pool.release(WriterHold(7))
    assert pool.allocate(1, request_hold(2)) == [indices[0]]


def test_the_end_of_a_chain_is_forgotten_before_its_beginning() -> None:
    pool = BlockPool(3)
    indices = pool.allocate(3, request_hold(1))
    for number, index in enumerate(indices):
        pool.seal(index, hash_of(number), (number,))
    pool.release(request_hold(1))
    pool.allocate(1, request_hold(2))
    chain = [hash_of(number) for number in range(3)]
    assert pool.find_prefix(chain, (0, 1, 2), 1) == indices[:2]


def test_tokens_are_compared_on_a_hit() -> None:
    pool = BlockPool(1)
    (index,) = pool.allocate(1, request_hold(1))
    pool.seal(index, hash_of(1), (5, 6))
    assert pool.find_prefix([hash_of(1)], (5, 6), 2) == [index]
    assert pool.find_prefix([hash_of(1)], (5, 7), 2) == []


def test_a_second_block_with_the_same_hash_is_not_cached() -> None:
    pool = BlockPool(2)
    first, second = pool.allocate(2, request_hold(1))
    pool.seal(first, hash_of(1), (1,))
    pool.seal(second, hash_of(1), (1,))
    pool.release(request_hold(1))
    assert pool.counts() == (2, 0, 1)
    assert pool.drain_events() == [BlocksStored(hashes=(hash_of(1),))]


def test_an_allocation_is_all_or_nothing() -> None:
    pool = BlockPool(2)
    with pytest.raises(NoFreeBlocks):
        pool.allocate(3, request_hold(1))
    assert pool.counts() == (2, 0, 0)
    assert [pool.generation(0), pool.generation(1)] == [0, 0]
