"""What a hand-over needs of a worker's pool: the bytes of a block, and its holds."""

from typing import Any, Protocol

from cluster_core.holds import Hold


class BlockMemory(Protocol):
    """The bytes. Blocks all have the same size."""

    @property
    def block_bytes(self) -> int:
        """Bytes of one block."""
        ...

    @property
    def rows(self) -> Any:
        """All blocks as one contiguous matrix of bytes, a row for each: an array, or a CUDA tensor (see `buffer`)."""
        ...

    def buffer(self, index: int) -> Any:
        """Return the contiguous bytes of block ``index``, to be read and written in place.

        Either an object with a writable buffer (a NumPy array, a memoryview), or one with ``__cuda_array_interface__``
        and a ``cpu()`` (a CUDA tensor of bytes; PyTorch has no such interface for bfloat16, so view it as uint8).
        """
        ...

    def clear_unused(self, index: int, tokens: int) -> None:
        """Zero the slots of block ``index`` from token ``tokens`` on: what another request left there stays here."""
        ...


class BlockHolds(Protocol):
    """Who keeps a block from being reused. A block whose holds are gone may be given to anybody."""

    def acquire(self, index: int, hold: Hold) -> None:
        """Add ``hold`` to block ``index``."""
        ...

    def release(self, hold: Hold) -> int:
        """Remove ``hold`` from every block that has it; returns how many had it."""
        ...

    def release_block(self, index: int, hold: Hold) -> None:
        """Remove ``hold`` from block ``index``."""
        ...

    def generation(self, index: int) -> int:
        """Return the number that is new at every allocation of block ``index``."""
        ...
