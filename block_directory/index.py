"""Which worker holds which prefix, answered from memory.

Life of an entry: a worker's life (one incarnation) owns one bit. A block's entry is the set of the bits of its holders,
so a look-up is one dictionary access and one AND a block, and ends at the first block that nobody holds. When a life
ends, its bit leaves the mask of the live ones: that is the whole drop. Its entries are wiped a few at a time by later
calls; only then the bit is given to somebody else.

Predicted entries stand in for a worker's own: from the moment a request is sent there until its event arrives or their
time is up. They use the same bits.
"""

import heapq
import itertools
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from cluster_core.identity import BlockHash, Incarnation, WorkerId

_ENDED_LIVES_REMEMBERED = 1024
_WIPE_AT_LEAST = 64
_MAX_PREDICTIONS = 262_144


@dataclass(slots=True, eq=False)
class _Life:
    worker_id: WorkerId
    incarnation: Incarnation
    bit: int
    hashes: set[BlockHash] = field(default_factory=set)
    predicted: dict[BlockHash, float] = field(default_factory=dict)
    """Hash -> the moment until which it is believed."""


class PrefixIndex:
    """An in-memory index over every worker's blocks. One thread calls it."""

    def __init__(self, *, max_blocks: int = 4_000_000, clock: Callable[[], float] = time.monotonic) -> None:
        """Remember at most ``max_blocks`` (worker, block) pairs; what comes beyond is counted and forgotten."""
        self._max_blocks = max_blocks
        self._clock = clock
        self._holders: dict[BlockHash, int] = {}
        self._predicted: dict[BlockHash, int] = {}
        self._lives: dict[Incarnation, _Life] = {}
        self._current: dict[WorkerId, _Life] = {}
        self._by_bit: dict[int, _Life] = {}
        self._live_bits = 0
        self._free_bits: list[int] = []
        self._bits_made = 0
        self._entries = 0
        self._ended: OrderedDict[Incarnation, None] = OrderedDict()
        self._to_wipe: deque[_Life] = deque()
        self._expiries: list[tuple[float, int, _Life, tuple[BlockHash, ...]]] = []
        self._expiring = 0
        self._order = itertools.count()
        self.refused_blocks = 0

    def begin(self, worker_id: WorkerId, incarnation: Incarnation) -> None:
        """Let a life count as live, because the directory lists it. An earlier life of the same worker ends.

        A life that had ended, its registration having run out while it was paused or out of reach, begins again without
        blocks. Events alone never bring an ended life back.
        """
        self._ended.pop(incarnation, None)
        self._life(worker_id, incarnation)

    def stored(self, worker_id: WorkerId, incarnation: Incarnation, hashes: Sequence[BlockHash]) -> None:
        """Note that the worker holds these blocks. A life not seen before begins."""
        life = self._life(worker_id, incarnation)
        if life is None:
            return
        self.wipe(max(_WIPE_AT_LEAST, 2 * len(hashes)))
        holders, mine, bit = self._holders, life.hashes, life.bit
        for block_hash in hashes:
            if life.predicted:
                self._unpredict(life, block_hash)
            if block_hash in mine:
                continue
            if self._entries >= self._max_blocks:
                self.refused_blocks += 1
                continue
            mine.add(block_hash)
            self._entries += 1
            holders[block_hash] = holders.get(block_hash, 0) | bit

    def removed(self, worker_id: WorkerId, incarnation: Incarnation, hashes: Sequence[BlockHash]) -> None:
        """Note that the worker no longer holds these blocks."""
        life = self._life(worker_id, incarnation)
        if life is None:
            return
        for block_hash in hashes:
            self._unpredict(life, block_hash)
            if block_hash in life.hashes:
                life.hashes.remove(block_hash)
                self._forget_holder(life, block_hash)
        self.wipe(_WIPE_AT_LEAST)

    def cleared(self, worker_id: WorkerId, incarnation: Incarnation) -> None:
        """Note that the worker holds nothing, and is not about to. Constant time."""
        life = self._life(worker_id, incarnation)
        if life is not None and (life.hashes or life.predicted):
            self._retire(life)
            self._enter(worker_id, incarnation)

    def drop(self, incarnation: Incarnation) -> None:
        """End a life for good: constant time, and its late events are ignored."""
        self._ended[incarnation] = None
        self._ended.move_to_end(incarnation)
        while len(self._ended) > _ENDED_LIVES_REMEMBERED:
            self._ended.popitem(last=False)
        life = self._lives.get(incarnation)
        if life is not None:
            self._retire(life)
            if self._current.get(life.worker_id) is life:
                del self._current[life.worker_id]

    def predict(self, worker_id: WorkerId, hashes: Sequence[BlockHash], ttl_s: float) -> None:
        """Believe for ``ttl_s`` seconds that the worker holds these blocks. Does nothing for a worker not live."""
        life = self._current.get(worker_id)
        now = self._clock()
        self._expire(now)
        if life is None or ttl_s <= 0.0:
            return
        new = tuple(itertools.islice((each for each in hashes if each not in life.hashes), _MAX_PREDICTIONS))
        if not new:
            return
        while self._expiring + len(new) > _MAX_PREDICTIONS:
            self._expire_first(None)
        until = now + ttl_s
        for block_hash in new:
            life.predicted[block_hash] = max(until, life.predicted.get(block_hash, until))
            self._predicted[block_hash] = self._predicted.get(block_hash, 0) | life.bit
        heapq.heappush(self._expiries, (until, next(self._order), life, new))
        self._expiring += len(new)

    def longest_prefix(self, hashes: Sequence[BlockHash], *, predicted_too: bool = True) -> dict[WorkerId, int]:
        """Return how many leading blocks each live worker holds; a worker that lacks the first is left out.

        Without ``predicted_too``, only blocks that a worker has told of.
        """
        if self._expiries:
            self._expire(self._clock())
        holders, predicted = self._holders, self._predicted if predicted_too else {}
        alive = self._live_bits
        lengths: dict[WorkerId, int] = {}
        if not alive or not hashes:
            return lengths
        for position, block_hash in enumerate(hashes):
            held = holders.get(block_hash, 0)
            if predicted:
                held |= predicted.get(block_hash, 0)
            if held & alive != alive:
                if position:
                    self._note(lengths, alive & ~held, position)
                alive &= held
                if not alive:
                    return lengths
        self._note(lengths, alive, len(hashes))
        return lengths

    def held_blocks(self, worker_id: WorkerId) -> int:
        """Return how many blocks the worker has told of and not taken back."""
        life = self._current.get(worker_id)
        return len(life.hashes) if life is not None else 0

    def wipe(self, limit: int) -> int:
        """Wipe up to ``limit`` entries of ended lives; returns how many are left. Every change wipes a few."""
        while self._to_wipe and limit > 0:
            life = self._to_wipe[0]
            while limit > 0 and life.hashes:
                self._forget_holder(life, life.hashes.pop())
                limit -= 1
            while limit > 0 and life.predicted:
                self._unpredict(life, next(iter(life.predicted)))
                limit -= 1
            if not life.hashes and not life.predicted:
                self._to_wipe.popleft()
                self._free_bits.append(life.bit)
        return sum(len(life.hashes) + len(life.predicted) for life in self._to_wipe)

    def _life(self, worker_id: WorkerId, incarnation: Incarnation) -> _Life | None:
        life = self._lives.get(incarnation)
        if life is not None:
            return life if life.worker_id == worker_id else None
        if incarnation in self._ended:
            return None
        before = self._current.get(worker_id)
        if before is not None:
            self.drop(before.incarnation)
        return self._enter(worker_id, incarnation)

    def _enter(self, worker_id: WorkerId, incarnation: Incarnation) -> _Life:
        self.wipe(_WIPE_AT_LEAST)
        if self._free_bits:
            bit = self._free_bits.pop()
        else:
            bit = 1 << self._bits_made
            self._bits_made += 1
        life = _Life(worker_id=worker_id, incarnation=incarnation, bit=bit)
        self._lives[incarnation] = self._current[worker_id] = self._by_bit[bit] = life
        self._live_bits |= bit
        return life

    def _retire(self, life: _Life) -> None:
        self._live_bits &= ~life.bit
        del self._lives[life.incarnation], self._by_bit[life.bit]
        self._to_wipe.append(life)

    def _note(self, lengths: dict[WorkerId, int], bits: int, length: int) -> None:
        while bits:
            lowest = bits & -bits
            lengths[self._by_bit[lowest].worker_id] = length
            bits ^= lowest

    def _forget_holder(self, life: _Life, block_hash: BlockHash) -> None:
        self._entries -= 1
        left = self._holders[block_hash] & ~life.bit
        if left:
            self._holders[block_hash] = left
        else:
            del self._holders[block_hash]

    def _unpredict(self, life: _Life, block_hash: BlockHash) -> None:
        if life.predicted.pop(block_hash, None) is None:
            return
        left = self._predicted[block_hash] & ~life.bit
        if left:
            self._predicted[block_hash] = left
        else:
            del self._predicted[block_hash]

    def _expire(self, now: float) -> None:
        while self._expiries and self._expiries[0][0] <= now:
            self._expire_first(now)

    def _expire_first(self, now: float | None) -> None:
        """End the oldest prediction; with a moment, only those of its blocks that were not predicted again."""
        _, _, life, hashes = heapq.heappop(self._expiries)
        self._expiring -= len(hashes)
        for block_hash in hashes:
            if now is None or life.predicted.get(block_hash, now) <= now:
                self._unpredict(life, block_hash)
