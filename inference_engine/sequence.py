"""One request's tokens and the blocks that hold their KV.

Life of a sequence: made with its prompt, it *attaches* what the cache knows of it, *reserves* blocks for what a step
will write, *advances* when the step has written, which seals the blocks that became full, *appends* the token that was
drawn, and *gives back* every block at its end. It may give back in mid-life too (preemption) and start again from its
tokens.

``computed`` counts the leading tokens whose KV is in the blocks. The last token of a sequence is never computed when a
step is planned, since its logits are what the step is for.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from cluster_core.hash_chain import child_hash
from cluster_core.holds import RequestHold
from cluster_core.identity import BlockHash
from inference_engine.block_pool import BlockPool


@dataclass(frozen=True, slots=True, kw_only=True)
class FilledBlock:
    """A full block of a sequence, immutable from now on."""

    position: int
    index: int
    hash: BlockHash


class TokenSequence:
    """Tokens, block table and hash chain of one request. ``root`` is the parent of its first block's hash."""

    def __init__(
        self, *, pool: BlockPool, hold: RequestHold, root: bytes, token_ids: Sequence[int], block_size_tokens: int
    ) -> None:
        self.token_ids = list(token_ids)
        self.block_table: list[int] = []
        self.computed = 0
        self._pool = pool
        self._hold = hold
        self._root = root
        self.block_size_tokens = block_size_tokens
        self._hashes: list[BlockHash] = []
        self._filled = 0

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

    def attach_cached(self, limit_tokens: int) -> list[FilledBlock]:
        """Take the blocks that the cache has for the next tokens, up to ``limit_tokens`` tokens in all.

        May be called again later: a block that another request has sealed meanwhile replaces the reserved one. Returns
        the blocks gained; `computed` counts them.
        """
        if self.computed % self.block_size_tokens:
            return []
        first = self.computed // self.block_size_tokens
        wanted = self.hashes()[first : limit_tokens // self.block_size_tokens]
        found = self._pool.find_prefix(wanted, self.token_ids[self.computed : limit_tokens], self.block_size_tokens)
        for position, index in enumerate(found, start=first):
            if position < len(self.block_table):
                self._pool.release_block(self.block_table[position], self._hold)
                self.block_table[position] = index
            else:
                self.block_table.append(index)
            self._pool.acquire(index, self._hold)
        self.computed += len(found) * self.block_size_tokens
        self._filled = self.computed // self.block_size_tokens
        return self._blocks(first, self._filled)

    def reserve(self, tokens: int) -> None:
        """Make the block table long enough for ``tokens`` tokens. Raises `NoFreeBlocks` and changes nothing then."""
        missing = -(-tokens // self.block_size_tokens) - len(self.block_table)
        if missing > 0:
            self.block_table += self._pool.allocate(missing, self._hold)

    def advance(self, count: int) -> list[FilledBlock]:
        """Count ``count`` more tokens as computed; seal and return the blocks that this filled."""
        self.computed += count
        assert self.computed <= len(self.token_ids), "more computed than there is"
        first, self._filled = self._filled, self.computed // self.block_size_tokens
        if first == self._filled:
            return []
        filled = self._blocks(first, self._filled)
        for block in filled:
            self._pool.seal(block.index, block.hash, self._tokens_of(block.position))
        return filled

    def append(self, token_id: int) -> None:
        """Add a token that was drawn."""
        self.token_ids.append(token_id)

    def give_back(self) -> None:
        """Give every block back, the last first, so that the cache forgets the end of a chain before its beginning."""
        for index in reversed(self.block_table):
            self._pool.release_block(index, self._hold)
        self.block_table.clear()
        self.computed = 0
        self._filled = 0

    def _blocks(self, first: int, end: int) -> list[FilledBlock]:
        hashes = self.hashes()
        return [
            FilledBlock(position=position, index=self.block_table[position], hash=hashes[position])
            for position in range(first, end)
        ]

    def _tokens_of(self, position: int) -> tuple[int, ...]:
        return tuple(self.token_ids[position * self.block_size_tokens : (position + 1) * self.block_size_tokens])
