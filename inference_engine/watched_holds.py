"""The pool's holds as the hand-over sees them, with a bell: whoever waits for blocks is told when some may be free."""

from collections.abc import Callable

from cluster_core.holds import Hold
from inference_engine.block_pool import BlockPool


class WatchedHolds:
    """A `kv_transfer.memory.BlockHolds` over a pool that calls ``on_release`` after each release."""

    def __init__(self, pool: BlockPool, on_release: Callable[[], None]) -> None:
        self._pool = pool
        self._on_release = on_release

    def acquire(self, index: int, hold: Hold) -> None:
        """See `BlockPool.acquire`."""
        self._pool.acquire(index, hold)

    def release(self, hold: Hold) -> int:
        """See `BlockPool.release`."""
        released = self._pool.release(hold)
        self._on_release()
        return released

    def release_block(self, index: int, hold: Hold) -> None:
        """See `BlockPool.release_block`."""
        self._pool.release_block(index, hold)
        self._on_release()

    def holders(self) -> dict[Hold, int]:
        """See `BlockPool.holders`."""
        return self._pool.holders()

    def generation(self, index: int) -> int:
        """See `BlockPool.generation`."""
        return self._pool.generation(index)
