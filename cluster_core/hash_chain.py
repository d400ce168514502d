"""Block hashes: SHA-256 of (parent, token ids), cut to 128 bits, chained from a root that holds the salt.

A hash therefore stands for the block's tokens, every token before them, the model, the layout and the salt: equal
hashes mean equal KV, and two salts never share a block.
"""

import hashlib
from array import array
from collections.abc import Sequence
from itertools import pairwise

from cluster_core.identity import BlockHash

HASH_BYTES = 16


def root_hash(model_seed: bytes, cache_salt: str) -> bytes:
    """Return the parent of a first block. ``model_seed`` comes from `ModelIdentity.root_hash_seed`."""
    salt = cache_salt.encode()
    return hashlib.sha256(b"baton-root-1" + len(salt).to_bytes(4, "big") + salt + model_seed).digest()[:HASH_BYTES]


def child_hash(parent: bytes, token_ids: Sequence[int]) -> BlockHash:
    """Return the hash of a full block whose tokens are ``token_ids`` and whose predecessor's hash is ``parent``."""
    return BlockHash(hashlib.sha256(parent + array("I", token_ids).tobytes()).digest()[:HASH_BYTES])


def chain_hashes(root: bytes, token_ids: Sequence[int], block_size_tokens: int) -> list[BlockHash]:
    """Return the hashes of the full blocks of ``token_ids``; a last block that is not full has none."""
    hashes: list[BlockHash] = []
    parent = root
    bounds = range(0, len(token_ids) + 1, block_size_tokens)
    for start, end in pairwise(bounds):
        digest = child_hash(parent, token_ids[start:end])
        hashes.append(digest)
        parent = digest
    return hashes
