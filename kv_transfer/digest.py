"""The digest that travels beside a block: a check against errors, not against enemies.

XXH3 (128 bit) over the block's bytes, seeded with the block's position and hash: a flipped bit, a message cut short,
and also a whole block that landed in another block's place give another digest. Whoever can write the bytes can compute
the digest as well, so it proves nothing about who sent them. It takes about 0.1 ms for 1 MiB.
"""

from typing import Any

import xxhash

from cluster_core.identity import BlockHash

DIGEST_BYTES = 16


def block_digest(buffer: Any, position: int, block_hash: BlockHash | None) -> bytes:
    """Return the digest of the block in ``buffer`` (see `BlockMemory.buffer`) at ``position`` of its sequence.

    A block in CUDA memory is copied to the host for it.
    """
    seed: int = xxhash.xxh3_64_intdigest(position.to_bytes(8, "little") + (block_hash or b""))
    content = buffer.cpu().numpy() if hasattr(buffer, "__cuda_array_interface__") else buffer
    digest: bytes = xxhash.xxh3_128_digest(content, seed)
    return digest
