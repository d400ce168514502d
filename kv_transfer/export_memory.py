"""Blocks of the own pool that an export offers: where they lie, who keeps them, and how an importer is told of them."""

from collections.abc import Sequence
from dataclasses import dataclass

from cluster_core.blocks import BlockReference
from cluster_core.holds import LeaseHold
from cluster_core.identity import BlockHash
from cluster_core.layout import KvLayout
from kv_transfer.digest import DigestMemo
from kv_transfer.memory import BlockHolds, BlockMemory
from kv_transfer.wire import Wire


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedBlock:
    """A block of the own pool whose content is final."""

    position: int
    index: int
    hash: BlockHash | None
    """None for a prompt's last block when it is not full."""
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportMemory:
    """What all exports of a worker share."""

    memory: BlockMemory
    holds: BlockHolds
    layout: KvLayout
    digests: DigestMemo
    wire: Wire | None = None
    """How blocks may be packed on their way, where an importer offers to take them so."""

    def promise(self, block: SealedBlock, lease: LeaseHold) -> BlockReference:
        """Keep ``block`` for whoever has the lease; returns its reference, without a digest yet."""
        self.holds.acquire(block.index, lease)
        if block.tokens < self.layout.block_size_tokens:
            self.memory.clear_unused(block.index, block.tokens)
        return BlockReference(
            position=block.position,
            index=block.index,
            generation=self.holds.generation(block.index),
            hash=block.hash,
            digest=b"",
            tokens=block.tokens,
        )

    def seal(self, blocks: Sequence[BlockReference]) -> tuple[BlockReference, ...]:
        """Return the references with the digests of their content."""
        digests = self.digests.of(blocks)
        return tuple(
            BlockReference(
                position=block.position,
                index=block.index,
                generation=block.generation,
                hash=block.hash,
                digest=digest,
                tokens=block.tokens,
            )
            for block, digest in zip(blocks, digests, strict=True)
        )
