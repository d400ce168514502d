"""One request's tokens and the blocks that hold their KV.

Life of a sequence: made with its prompt, it *attaches* what the cache knows of it, *reserves* blocks for what a step
will write, *advances* when the step has written, which seals the blocks that became full, *appends* the token that was
drawn, and *gives back* every block at its end. It may give back in mid-life too (preemption) and start again from its
tokens.

``computed`` counts the leading tokens whose KV is in the blocks. The last token of a sequence is never computed when a
step is planned, since its logits are what the step is for.

Where every layer of the model has a window, blocks that lie before all windows are of no use to any token to come: the
sequence *drops* them as it advances, and the cache alone decides how long they can still be found. The block table
keeps their positions; its entries there name the oldest block that is still held, so that a kernel which reads more
than it needs, and gives it no weight, reads the sequence's own memory and never another request's.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from cluster_core.hash_chain import child_hash
from cluster_core.holds import RequestHold
from cluster_core.identity import BlockHash
from cluster_core.layout import first_block_in_window
from inference_engine.block_pool import BlockPool


@dataclass(frozen=True, slots=True, kw_only=True)
class FilledBlock:
    """A full block of a sequence, immutable from now on."""

    position: int
    index: int
    hash: BlockHash


class TokenSequence:
    """Tokens, block table and hash chain of one request.

    ``root`` is the parent of its first block's hash; ``window_tokens`` is that of `KvLayout`, 0 drops nothing.
    """

    def __init__(
        self,
        *,
        pool: BlockPool,
        hold: RequestHold,
        root: bytes,
        token_ids: Sequence[int],
        block_size_tokens: int,
        window_tokens: int = 0,
    ) -> None:
        self.token_ids = list(token_ids)
        self.block_table: list[int] = []
        self.computed = 0
        self.cached = 0
        """How many of the computed tokens the cache spared."""
        self.dropped = 0
        """Positions of the block table, from the first on, whose blocks are not held any more."""
        self.private = False
        """Whether its blocks are sealed no more: some came rounded, and what follows them was computed from those."""
        self._pool = pool
        self._hold = hold
        self._root = root
        self.block_size_tokens = block_size_tokens
        self._window_tokens = window_tokens
        self._hashes: list[BlockHash] = []
        self._filled = 0

    @property
    def hold(self) -> RequestHold:
        """What keeps its blocks."""
        return self._hold

    @property
    def pending(self) -> int:
        """Tokens whose KV is still to be computed."""
        return len(self.token_ids) - self.computed

    def hashes(self) -> list[BlockHash]:
        """Return the hashes of all full blocks that the tokens make, computed or not."""
        while (len(self._hashes) + 1) * self.block_size_tokens <= len(self.token_ids):
            parent = self._hashes[-1] if self._hashes else self._root
            self._hashes.append(child_hash(parent, self._tokens_of(len(self._hashes))))
        return self._hashes

    def start_at_tail(self) -> None:
        """Drop at once what will be of no use when all tokens are computed: others compute them, elsewhere.

        For a sequence without blocks that is to be imported.
        """
        assert not self.block_table, "a sequence that has blocks has begun already"
        self.dropped = self._filled = self._first_read(len(self.token_ids))
        self.computed = self.dropped * self.block_size_tokens
        self.block_table = [0] * self.dropped  # named by `_point_dropped` once there is a block to name

    def attach_cached(self, limit_tokens: int) -> list[FilledBlock]:
        """Take the blocks that the cache has for the next tokens, up to ``limit_tokens`` tokens in all.

        May be called again later: a block that another request has sealed meanwhile replaces the reserved one. Returns
        the blocks gained that are of use after the last token; `computed` counts all that need not be computed.
        """
        if self.computed % self.block_size_tokens:
            return []
        start, found = self._find_cached(limit_tokens // self.block_size_tokens)
        if not found:
            return []
        if start > self._filled:
            self._drop(start)
        for position, index in enumerate(found, start=start):
            if position < len(self.block_table):
                self._pool.release_block(self.block_table[position], self._hold)
                self.block_table[position] = index
            else:
                self.block_table.append(index)
            self._pool.acquire(index, self._hold)
        self._filled = start + len(found)
        self.cached += self._filled * self.block_size_tokens - self.computed
        self.computed = self._filled * self.block_size_tokens
        gained = self._useful(start, self._filled)
        self._point_dropped()
        self._drop(self._first_read(self.computed))
        return gained

    def reserve(self, tokens: int) -> None:
        """Make the block table long enough for ``tokens`` tokens. Raises `NoFreeBlocks` and changes nothing then."""
        missing = -(-tokens // self.block_size_tokens) - len(self.block_table)
        if missing > 0:
            self.block_table += self._pool.allocate(missing, self._hold)
            self._point_dropped()

    def reserve_ahead(self, tokens: int) -> None:
        """Reserve what the sequence should have before it begins to read up to ``tokens`` tokens.

        That is blocks for all of them, or for what is computed and one window more: blocks are dropped on the way.
        What is to be imported always fits into that. Raises as `reserve`.
        """
        if self._window_tokens:
            tokens = min(tokens, self.computed + self._window_tokens + self.block_size_tokens)
        self.reserve(tokens)

    def advance(self, count: int) -> list[FilledBlock]:
        """Count ``count`` more tokens as computed; seal the blocks that this filled, drop those that became useless.

        A private sequence seals nothing. Returns those of the filled blocks that are of use after the last token.
        """
        self.computed += count
        assert self.computed <= len(self.token_ids), "more computed than there is"
        first = self._filled
        self._seal_filled()
        gained = self._useful(first, self._filled) if first < self._filled else []
        if self._window_tokens:
            self._drop(self._first_read(self.computed))
        return gained

    def complete(self) -> None:
        """Count all tokens as computed. What became full is sealed later: by the next `advance`, or `give_back`.

        Of a long prompt that has been imported, sealing takes a millisecond in which its first step could begin.
        """
        self.computed = len(self.token_ids)

    def append(self, token_id: int) -> None:
        """Add a token that was drawn."""
        self.token_ids.append(token_id)

    def trim(self) -> None:
        """Give back blocks that were reserved beyond what all tokens need: for guesses that failed."""
        needed = -(-len(self.token_ids) // self.block_size_tokens)
        while len(self.block_table) > needed:
            self._pool.release_block(self.block_table.pop(), self._hold)

    def fork(self, hold: RequestHold) -> tuple["TokenSequence", tuple[int, int] | None]:
        """Return a sequence of the same tokens, all of them computed, that shares every full block.

        A block that is not full is not shared, since both go on writing in it: the second value names it and the block
        that its content must be copied to before a step. Raises `NoFreeBlocks` and changes nothing then.
        """
        assert not self.pending, "what is not computed cannot be shared"
        other = self.without_blocks(hold)
        full, rest = divmod(self.computed, self.block_size_tokens)
        own = self._pool.allocate(1, hold) if rest else []
        for index in self.block_table[self.dropped : full]:
            self._pool.acquire(index, hold)
        other.block_table = self.block_table[:full] + own
        other.computed, other.dropped = self.computed, self.dropped
        other.private = self.private
        other._hashes, other._filled = list(self.hashes()), self._filled  # noqa: SLF001  # of the same class
        other._point_dropped()  # noqa: SLF001  # as above
        return other, (self.block_table[full], own[0]) if own else None

    def without_blocks(self, hold: RequestHold) -> "TokenSequence":
        """Return a sequence of the same tokens that has nothing computed yet."""
        return TokenSequence(
            pool=self._pool,
            hold=hold,
            root=self._root,
            token_ids=self.token_ids,
            block_size_tokens=self.block_size_tokens,
            window_tokens=self._window_tokens,
        )

    def prefix(self, blocks: int, hold: RequestHold) -> "TokenSequence":
        """Return a sequence of the tokens of the first ``blocks`` full blocks that has no block yet."""
        assert 0 < blocks <= len(self.hashes()), "a prefix of full blocks"
        other = TokenSequence(
            pool=self._pool,
            hold=hold,
            root=self._root,
            token_ids=self.token_ids[: blocks * self.block_size_tokens],
            block_size_tokens=self.block_size_tokens,
            window_tokens=self._window_tokens,
        )
        other._hashes = self._hashes[:blocks]
        return other

    def give_back(self) -> None:
        """Give every block back, the last first, so that the cache forgets the end of a chain before its beginning."""
        self._seal_filled()
        for index in reversed(self.block_table[self.dropped :]):
            self._pool.release_block(index, self._hold)
        self.block_table.clear()
        self.computed = self.cached = 0
        self.dropped = self._filled = 0
        self.private = False  # what is computed from the tokens anew is exact

    def _seal_filled(self) -> None:
        first, self._filled = self._filled, self.computed // self.block_size_tokens
        if self.private or first >= self._filled:
            return
        hashes = self.hashes()
        for position in range(first, self._filled):
            self._pool.seal(self.block_table[position], hashes[position], self._tokens_of(position))

    def _first_read(self, tokens: int) -> int:
        return first_block_in_window(tokens, self._window_tokens, self.block_size_tokens)

    def _find_cached(self, end: int) -> tuple[int, list[int]]:
        """Return blocks of the cache with which the sequence can go on, below position ``end``, and the first's place.

        They follow what is computed; or, where nothing is yet, they may be the last that the next token sees, however
        much before them the cache has forgotten: a block's hash stands for all tokens before it too.
        """
        first, hashes, size = self._filled, self.hashes(), self.block_size_tokens
        if first or not self._window_tokens:
            wanted = hashes[first:end]
            return first, self._pool.find_prefix(wanted, self.token_ids[self.computed : end * size], size)
        found: list[int] = []
        for position in range(end - 1, -1, -1):
            block = self._pool.find_prefix(hashes[position : position + 1], self._tokens_of(position), size)
            found = found + block if block else []
            if found and position <= self._first_read((position + len(found)) * size):
                return position, found[::-1]
        return 0, []

    def _drop(self, end: int) -> None:
        """Give back what is held below position ``end``; the block table keeps its positions."""
        if end <= self.dropped:
            return
        for index in self.block_table[self.dropped : end]:
            self._pool.release_block(index, self._hold)
        self.block_table += [0] * (end - len(self.block_table))
        self.dropped = end
        self._point_dropped()

    def _point_dropped(self) -> None:
        if self.dropped and len(self.block_table) > self.dropped:
            self.block_table[: self.dropped] = self.block_table[self.dropped : self.dropped + 1] * self.dropped

    def _useful(self, first: int, end: int) -> list[FilledBlock]:
        """Return the blocks from position ``first`` to ``end`` that the token after the last one reads."""
        return self._blocks(max(first, self._first_read(len(self.token_ids))), end)

    def _blocks(self, first: int, end: int) -> list[FilledBlock]:
        hashes = self.hashes() if first < end else []
        return [
            FilledBlock(position=position, index=self.block_table[position], hash=hashes[position])
            for position in range(first, end)
        ]

    def _tokens_of(self, position: int) -> tuple[int, ...]:
        return tuple(self.token_ids[position * self.block_size_tokens : (position + 1) * self.block_size_tokens])
