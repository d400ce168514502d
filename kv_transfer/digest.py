"""The digest that travels beside a block: a check against errors, not against enemies.

XXH3 (128 bit) over the block's bytes, seeded with the block's position and hash: a flipped bit, a message cut short,
and also a whole block that landed in another block's place give another digest. Whoever can write the bytes can compute
the digest as well, so it proves nothing about who sent them. It takes about 0.1 ms for 1 MiB on a CPU.

It is computed on the device that holds the blocks (`BlockDigests`), and is the same on all of them.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, Protocol

import xxhash

from cluster_core.blocks import BlockReference
from cluster_core.identity import BlockHash

DIGEST_BYTES = 16


def _seed(position: int, block_hash: BlockHash | None) -> int:
    seed: int = xxhash.xxh3_64_intdigest(position.to_bytes(8, "little") + (block_hash or b""))
    return seed


def block_digest(buffer: Any, position: int, block_hash: BlockHash | None) -> bytes:
    """Return the digest of the block in ``buffer`` (see `BlockMemory.buffer`) at ``position`` of its sequence.

    A block in CUDA memory is copied to the host for it: where there are several, see `BlockDigests`.
    """
    content = buffer.cpu().numpy() if hasattr(buffer, "__cuda_array_interface__") else buffer
    digest: bytes = xxhash.xxh3_128_digest(content, _seed(position, block_hash))
    return digest


class _RowDigests(Protocol):
    """See `kv_transfer.digest_triton.RowDigests`."""

    def of(self, indices: Sequence[int], seeds: Sequence[int]) -> list[bytes]:
        """Return the digests of rows."""
        ...


class DigestedRows(Protocol):
    """The part of a `kv_transfer.memory.BlockMemory` that is read for its digests."""

    @property
    def rows(self) -> Any:
        """All blocks as one matrix of bytes."""
        ...

    def buffer(self, index: int) -> Any:
        """Return a block's bytes."""
        ...


class BlockDigests:
    """The digests of one memory's blocks, whose bytes stay where they are. Belongs to one thread.

    The blocks of a GPU are digested there, all that are asked for by one launch, which the caller waits for. It does
    not wait for anything else that the GPU does: whoever has written a block has seen to it that the write is done.
    """

    def __init__(self, memory: DigestedRows) -> None:
        """Compile what a GPU needs, which takes seconds where it was never done before."""
        self._memory = memory
        self._device = _on_device(memory.rows)

    def of(
        self, indices: Sequence[int], positions: Sequence[int], hashes: Sequence[BlockHash | None]
    ) -> Sequence[bytes]:
        """Return `block_digest` of each of the blocks ``indices``."""
        if self._device is not None:
            return self._device.of(indices, [_seed(*name) for name in zip(positions, hashes, strict=True)])
        buffers = map(self._memory.buffer, indices)
        return [block_digest(*block) for block in zip(buffers, positions, hashes, strict=True)]


def _on_device(rows: Any) -> _RowDigests | None:
    """Return what digests ``rows`` where they are; None for host memory, and where the kernels cannot do it."""
    if not hasattr(rows, "__cuda_array_interface__") or find_spec("triton") is None:
        return None
    from kv_transfer.digest_triton import RowDigests, suits  # noqa: PLC0415  # no part of CPU installs

    return RowDigests(rows) if suits(rows) else None


class DigestMemo:
    """Remembers the digests of full blocks, one for each index of a pool, so that a block is read once in its life.

    A full block never changes until its index is allocated again, under another generation. Forgets by itself: what is
    new at an index takes the place of what was there.
    """

    def __init__(self, digests: BlockDigests) -> None:
        self._digests = digests
        self._known: dict[int, tuple[tuple[int, int, BlockHash], bytes]] = {}

    def of(self, blocks: Sequence[BlockReference]) -> list[bytes]:
        """Return the digests of ``blocks``; of full ones (with a hash) as they were when first asked for."""
        remembered = [self._recall(block) for block in blocks]
        unread = [block for block, digest in zip(blocks, remembered, strict=True) if digest is None]
        computed = self._digests.of(
            [block.index for block in unread], [block.position for block in unread], [block.hash for block in unread]
        )
        for block, digest in zip(unread, computed, strict=True):
            if block.hash is not None:
                self._known[block.index] = (block.generation, block.position, block.hash), digest
        fresh = iter(computed)
        return [next(fresh) if digest is None else digest for digest in remembered]

    def _recall(self, block: BlockReference) -> bytes | None:
        known = self._known.get(block.index)
        if known is None or block.hash is None or known[0] != (block.generation, block.position, block.hash):
            return None
        return known[1]
