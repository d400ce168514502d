"""The digest that travels beside a block: a check against errors, not against enemies.

XXH3 (128 bit) over the block's bytes, seeded with the block's position and hash: a flipped bit, a message cut short,
and also a whole block that landed in another block's place give another digest. Whoever can write the bytes can compute
the digest as well, so it proves nothing about who sent them. It takes about 0.1 ms for 1 MiB.
"""

from typing import Any

import xxhash

from cluster_core.identity import BlockHash
from kv_transfer.memory import BlockMemory

DIGEST_BYTES = 16


def block_digest(buffer: Any, position: int, block_hash: BlockHash | None) -> bytes:
    """Return the digest of the block in ``buffer`` (see `BlockMemory.buffer`) at ``position`` of its sequence.

    A block in CUDA memory is copied to the host for it.
    """
    seed: int = xxhash.xxh3_64_intdigest(position.to_bytes(8, "little") + (block_hash or b""))
    content = buffer.cpu().numpy() if hasattr(buffer, "__cuda_array_interface__") else buffer
    digest: bytes = xxhash.xxh3_128_digest(content, seed)
    return digest


class DigestMemo:
    """Remembers the digests of full blocks, one for each index of a pool, so that a block is read once in its life.

    A full block never changes until its index is allocated again, under another generation. Forgets by itself: what is
    new at an index takes the place of what was there.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[tuple[int, int, BlockHash], bytes]] = {}

    def digest(
        self, memory: BlockMemory, index: int, generation: int, position: int, block_hash: BlockHash | None
    ) -> bytes:
        """Return `block_digest` of block ``index``; of a full one (with a hash) as it was when first asked for."""
        if block_hash is None:
            return block_digest(memory.buffer(index), position, None)
        name = (generation, position, block_hash)
        known = self._known.get(index)
        if known is not None and known[0] == name:
            return known[1]
        digest = block_digest(memory.buffer(index), position, block_hash)
        self._known[index] = (name, digest)
        return digest
