"""The real block pool, watched: each allocation and each hold is compared with what may be."""

from cluster_core.holds import Hold, LeaseHold, RequestHold, WriterHold
from cluster_core.identity import RequestId
from inference_engine.block_pool import BlockPool
from simulation.hash_engine import BlockBytes


class WatchedPool(BlockPool):
    """Raises `AssertionError` when a held block is given away, or one of a tenant's blocks to another tenant."""

    def __init__(self, total_blocks: int, memory: BlockBytes, tenants: dict[RequestId, str]) -> None:
        """``tenants`` maps requests to their salts."""
        super().__init__(total_blocks)
        self._changed = True
        self._memory = memory
        self._tenants = tenants
        self._tenant_of: dict[int, str | None] = {}
        self._last_generation = [0] * total_blocks

    def allocate(self, count: int, hold: Hold) -> list[int]:
        """See `BlockPool.allocate`. What it gives must have been free, and holds noise."""
        self._changed = True
        indices = super().allocate(count, hold)
        assert len(set(indices)) == len(indices), "a block was given twice"
        tenant, alone = self._tenant(hold), {hold}
        for index in indices:
            held = self._owners[index] != alone or index in self._sealed
            assert not held, f"block {index} was given away while it was held: {self.holds(index)}"
            generation = self._generations[index]
            assert generation > self._last_generation[index], f"block {index}: its generation did not rise"
            self._last_generation[index] = generation
            self._tenant_of[index] = tenant
            self._memory.scramble(index)
        return indices

    def acquire(self, index: int, hold: Hold) -> None:
        """See `BlockPool.acquire`. A request shares blocks of its own tenant alone."""
        tenant = self._tenant(hold)
        if tenant is not None:
            assert self._tenant_of[index] == tenant, f"block {index} of one tenant was lent to another"
        self._changed = True
        super().acquire(index, hold)

    def release_block(self, index: int, hold: Hold) -> None:
        """See `BlockPool.release_block`."""
        self._changed = True
        super().release_block(index, hold)

    @property
    def has_news(self) -> bool:
        """Whether `drain_events` would return something."""
        return bool(self._events)

    def has_writer(self, index: int, tag: int) -> bool:
        """Say whether a block is kept for the bytes of the lot that begins with a tag."""
        return WriterHold(tag) in self._owners[index]

    def audit_if_changed(self) -> None:
        """Do as `BlockPool.audit`, unless nothing has changed since the last time."""
        if self._changed:
            self._changed = False
            self.audit()

    def _tenant(self, hold: Hold) -> str | None:
        if not isinstance(hold, RequestHold | LeaseHold):
            return None
        return self._tenants.get(RequestId(hold.request_id.partition("~")[0]))
