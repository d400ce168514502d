"""A pool of NumPy blocks with holds and generations, as the workers' pools have them, and checks of its own."""

from collections import Counter, defaultdict

import numpy as np
from numpy.typing import NDArray

from cluster_core.blocks import BlockReference
from cluster_core.hash_chain import chain_hashes
from cluster_core.holds import Hold, LeaseHold, RequestHold, WriterHold
from cluster_core.identity import Attempt, BlockHash, RequestId
from cluster_core.layout import KvLayout
from kv_transfer.digest import block_digest
from kv_transfer.export_memory import SealedBlock

LAYOUT = KvLayout(layers=2, kv_heads=2, head_dim=16, block_size_tokens=16, dtype="float32")
TOKEN_BYTES = LAYOUT.token_bytes
REQUEST = RequestId("r-1")
ATTEMPT = Attempt(1)
REQUEST_HOLD = RequestHold(REQUEST, ATTEMPT)


class FakePool:
    def __init__(self, blocks: int, seed: int = 0, layout: KvLayout = LAYOUT) -> None:
        self.block_bytes = layout.block_bytes
        self._token_bytes = layout.token_bytes
        self.bytes = np.random.default_rng(seed).integers(0, 256, (blocks, layout.block_bytes), dtype=np.uint8)
        self.holds: dict[int, set[Hold]] = defaultdict(set)
        self.generations = [1] * blocks

    @property
    def rows(self) -> NDArray[np.uint8]:
        return self.bytes

    def buffer(self, index: int) -> NDArray[np.uint8]:
        block: NDArray[np.uint8] = self.bytes[index]
        return block

    def clear_unused(self, index: int, tokens: int) -> None:
        self.bytes[index, tokens * self._token_bytes :] = 0

    def acquire(self, index: int, hold: Hold) -> None:
        assert hold not in self.holds[index]
        self.holds[index].add(hold)

    def release(self, hold: Hold) -> int:
        having = [index for index, holds in self.holds.items() if hold in holds]
        for index in having:
            self.holds[index].remove(hold)
        return len(having)

    def release_block(self, index: int, hold: Hold) -> None:
        self.holds[index].remove(hold)

    def generation(self, index: int) -> int:
        return self.generations[index]

    def holders(self) -> dict[Hold, int]:
        return dict(Counter(hold for holds in self.holds.values() for hold in holds))

    def count(self, kind: type[LeaseHold | WriterHold]) -> int:
        return sum(isinstance(hold, kind) for holds in self.holds.values() for hold in holds)


def hashes_of(tokens: int) -> tuple[BlockHash, ...]:
    return tuple(chain_hashes(b"root", range(tokens), LAYOUT.block_size_tokens))


def sealed_blocks(tokens: int, first_index: int = 0) -> list[SealedBlock]:
    """Return the blocks of a prompt of ``tokens`` tokens that lie at ``first_index`` and after."""
    hashes, size = hashes_of(tokens), LAYOUT.block_size_tokens
    return [
        SealedBlock(
            position=position,
            index=first_index + position,
            hash=hashes[position] if position < len(hashes) else None,
            tokens=min(size, tokens - position * size),
        )
        for position in range(LAYOUT.blocks_for(tokens))
    ]


def references_of(pool: FakePool, blocks: list[SealedBlock]) -> list[BlockReference]:
    return [
        BlockReference(
            position=block.position,
            index=block.index,
            generation=pool.generation(block.index),
            hash=block.hash,
            digest=block_digest(pool.buffer(block.index), block.position, block.hash),
            tokens=block.tokens,
        )
        for block in blocks
    ]
