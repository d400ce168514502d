"""Names of blocks as they travel between workers, and the events that tell of a cache's content."""

from dataclasses import dataclass

from cluster_core.identity import BlockHash


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockReference:
    """One exported block of one exporter's life. The stream it travels on names worker and incarnation.

    ``generation`` is new at every allocation of the block, so a reference outlives its block harmlessly.
    """

    position: int
    """The block's place in its sequence: 0, 1, 2, ..."""
    index: int
    """The block's place in the exporter's pool."""
    generation: int
    hash: BlockHash | None
    """None for a prompt's last block when it is not full."""
    digest: bytes
    """16 bytes over the block's content and position (see `kv_transfer.digest`)."""
    tokens: int
    """Valid tokens: the block size, or fewer in a last block."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlocksStored:
    """These blocks have been sealed and can be found by hash."""

    hashes: tuple[BlockHash, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlocksRemoved:
    """These blocks are gone."""

    hashes: tuple[BlockHash, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheCleared:
    """All blocks are gone."""


BlockEvent = BlocksStored | BlocksRemoved | CacheCleared
