"""Who may use which block of KV memory, and which blocks can be found again by hash.

Life of a block: *free*, with no holds; *allocated* to a request, which raises its generation; *sealed* once full, which
adds the cache's hold and makes it findable; *cached* when every other hold is gone; free again when an allocation takes
it from the cache, the least recently released first. A block that was never sealed is free as soon as its last hold
goes.

A hold that is not the cache's keeps a block from every other allocation, whatever becomes of the others: aborting a
request removes the request's hold and leaves a writer's, so late bytes reach only blocks that nobody else was given.
"""

import itertools
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from cluster_core.blocks import BlockEvent, BlocksRemoved, BlocksStored
from cluster_core.holds import CacheHold, Hold
from cluster_core.identity import BlockHash


class NoFreeBlocks(Exception):
    """Too few blocks are free or only cached. The pool is as it was."""


class PoolCounts(NamedTuple):
    """Blocks by what keeps them. What is neither held nor cached is free."""

    total: int
    held: int
    """Held by a request, a lease or a writer."""
    cached: int
    """Held by the prefix cache alone."""


@dataclass(frozen=True, slots=True)
class _Sealed:
    hash: BlockHash
    token_ids: tuple[int, ...]


class BlockPool:
    """Holds, generations and the prefix cache of ``total_blocks`` blocks. One thread uses it; it owns no memory."""

    def __init__(self, total_blocks: int) -> None:
        self._owners: list[set[Hold]] = [set() for _ in range(total_blocks)]
        self._generations = [0] * total_blocks
        self._free = list(reversed(range(total_blocks)))
        self._blocks_of: dict[Hold, dict[int, None]] = {}
        self._sealed: dict[int, _Sealed] = {}
        self._by_hash: dict[BlockHash, int] = {}
        self._only_cached: OrderedDict[int, None] = OrderedDict()
        self._events: list[tuple[type[BlocksStored | BlocksRemoved], BlockHash]] = []

    def allocate(self, count: int, hold: Hold) -> list[int]:
        """Give ``count`` blocks to ``hold``, all or none, each under a new generation.

        Free blocks go first, then the cached ones that were released longest ago. Raises `NoFreeBlocks`.
        """
        if count > self.available():
            message = f"{count} blocks asked for, {self.available()} can be had"
            raise NoFreeBlocks(message)
        indices = [self._free.pop() if self._free else self._evict() for _ in range(count)]
        blocks = self._blocks_of.setdefault(hold, {}) if indices else {}
        for index in indices:
            self._generations[index] += 1
            self._owners[index].add(hold)
            blocks[index] = None
        return indices

    def acquire(self, index: int, hold: Hold) -> None:
        """Add ``hold`` to a block that something else, if only the cache, keeps already."""
        assert self._owners[index] or index in self._sealed, f"block {index} is free: it must be allocated"
        self._only_cached.pop(index, None)
        self._add(index, hold)

    def release(self, hold: Hold) -> int:
        """Take ``hold`` from every block that has it, the latest acquired first. Returns how many had it."""
        indices = list(self._blocks_of.get(hold, ()))
        for index in reversed(indices):
            self.release_block(index, hold)
        return len(indices)

    def release_block(self, index: int, hold: Hold) -> None:
        """Take ``hold`` from one block, which must have it."""
        self._owners[index].remove(hold)
        blocks = self._blocks_of[hold]
        del blocks[index]
        if not blocks:
            del self._blocks_of[hold]
        if self._owners[index]:
            return
        if index in self._sealed:
            self._only_cached[index] = None
        else:
            self._free.append(index)

    def generation(self, index: int) -> int:
        """How often the block has been allocated."""
        return self._generations[index]

    def seal(self, index: int, block_hash: BlockHash, token_ids: tuple[int, ...]) -> None:
        """Let a held, full block be found by hash. Of two blocks with one hash the older stays the one that is found.

        ``token_ids`` are the block's own tokens, which `find_prefix` compares.
        """
        assert self._owners[index], f"block {index} is sealed without a holder"
        if block_hash in self._by_hash or index in self._sealed:
            return
        self._sealed[index] = _Sealed(block_hash, token_ids)
        self._by_hash[block_hash] = index
        self._events.append((BlocksStored, block_hash))

    def find_prefix(self, hashes: Sequence[BlockHash], token_ids: Sequence[int], block_size: int) -> list[int]:
        """Return the blocks of the longest cached prefix: ``hashes[i]`` names tokens ``i * block_size`` onwards.

        The tokens are compared too, so that not even a collision of hashes can lend a wrong block. Takes no hold.
        """
        found: list[int] = []
        for position, block_hash in enumerate(hashes):
            index = self._by_hash.get(block_hash)
            start = position * block_size
            if index is None or self._sealed[index].token_ids != tuple(token_ids[start : start + block_size]):
                break
            found.append(index)
        return found

    def find_run(self, hashes: Sequence[BlockHash]) -> list[int]:
        """Return the blocks that are found under the first of ``hashes``, up to one that is not. Takes no hold.

        By hash alone: for another worker, which compares what it gets with tokens of its own.
        """
        return [self._by_hash[each] for each in itertools.takewhile(self._by_hash.__contains__, hashes)]

    def available(self) -> int:
        """How many blocks an allocation could get now."""
        return len(self._free) + len(self._only_cached)

    def counts(self) -> PoolCounts:
        """Count the blocks by what keeps them."""
        total = len(self._owners)
        return PoolCounts(total=total, held=total - self.available(), cached=len(self._only_cached))

    def holds(self, index: int) -> frozenset[Hold]:
        """Return the block's holds, the cache's among them."""
        cache: tuple[Hold, ...] = (CacheHold(),) if index in self._sealed else ()
        return frozenset((*self._owners[index], *cache))

    def holders(self) -> dict[Hold, int]:
        """Return every hold but the cache's, and how many blocks it keeps. Costs a walk over the holds."""
        return {hold: len(blocks) for hold, blocks in self._blocks_of.items()}

    def drain_events(self) -> list[BlockEvent]:
        """Return what the cache gained and lost since the last call, in order, neighbours of a kind in one event."""
        drained: list[BlockEvent] = []
        start = 0
        for end in range(1, len(self._events) + 1):
            if end == len(self._events) or self._events[end][0] is not self._events[start][0]:
                kind = self._events[start][0]
                drained.append(kind(hashes=tuple(block_hash for _, block_hash in self._events[start:end])))
                start = end
        self._events.clear()
        return drained

    def cached_hashes(self) -> list[BlockHash]:
        """Return every hash that can be found now."""
        return list(self._by_hash)

    def audit(self) -> None:
        """Check that every block is free, held or cached, exactly once, and that the indexes agree.

        Raises `AssertionError`. Costs a walk over the pool: for tests and for an idle worker.
        """
        free, sealed, only_cached = set(self._free), self._sealed, self._only_cached
        assert len(free) == len(self._free), "a block is free twice"
        named = 0
        for index, owners in enumerate(self._owners):
            assert (index in free) == (not owners and index not in sealed), f"block {index}: free and held disagree"
            assert (index in only_cached) == (index in sealed and not owners), f"block {index}: LRU is wrong"
            named += len(owners)
        for hold, blocks in self._blocks_of.items():
            assert blocks, f"{hold} holds nothing"
            for index in blocks:
                assert hold in self._owners[index], f"{hold} names block {index}, which it does not hold"
            named -= len(blocks)
        assert named == 0, "a block has a hold that does not know it"
        assert {sealed.hash: index for index, sealed in self._sealed.items()} == self._by_hash, "hashes disagree"

    def _add(self, index: int, hold: Hold) -> None:
        assert hold not in self._owners[index], f"block {index} has {hold} already"
        self._owners[index].add(hold)
        self._blocks_of.setdefault(hold, {})[index] = None

    def _evict(self) -> int:
        index, _ = self._only_cached.popitem(last=False)
        sealed = self._sealed.pop(index)
        del self._by_hash[sealed.hash]
        self._events.append((BlocksRemoved, sealed.hash))
        return index
