"""Looks for holds without an owner in a running worker, of every kind, counts them, and gives back what is safe.

Life of an orphan. Each hold but the cache's has an owner: a request hold the answer or prompt that the scheduler knows,
or a fetch for one; a lease hold an export that is not over; a writer hold an import that runs or settles. A hold that
two sweeps in a row find without one is an *orphan*: somebody has forgotten to give it back, which is a bug. It is
counted once and told in the log. Blocks that a request or a lease kept are free at once: nobody reads them. Those of a
writer stay in quarantine until the transport has said that no byte can land in them; only then are they free too.

A draft model's pool is not swept: it takes the blocks of answers that do not guess back by itself, when it needs them.

A sweep passes once over the holds, not over the blocks, between two steps. Nothing is done for it on the way of a
request but an entry for each lot that is received.
"""

from collections.abc import Callable, Container, Mapping
from typing import Protocol, assert_never

from cluster_core.holds import CacheHold, Hold, LeaseHold, RequestHold, WriterHold
from cluster_core.identity import WorkerId
from kv_transfer.exporter import Exporter
from kv_transfer.importer import Importer
from kv_transfer.orphans import Releases, tell_orphan


class HeldBlocks(Releases, Protocol):
    """A worker's pool, as the sweep sees it."""

    def holders(self) -> Mapping[Hold, int]:
        """Return every hold but the cache's, and how many blocks it keeps."""
        ...


class HoldSweep:
    """All holds of one worker's pool. ``requests`` says which request holds have an owner."""

    def __init__(
        self,
        *,
        worker_id: WorkerId,
        pool: HeldBlocks,
        exporter: Exporter,
        importer: Importer,
        requests: Callable[[], Container[Hold]],
    ) -> None:
        self._worker_id = worker_id
        self._pool = pool
        self._exporter = exporter
        self._receives = importer.receives
        self._requests = requests
        self._found = 0
        self._suspects: Container[Hold] = ()
        self._counted: set[Hold] = set()

    @property
    def orphaned(self) -> int:
        """Holds on blocks that nobody owned, since the start: always 0 without a bug."""
        return self._found + self._exporter.orphaned

    def sweep(self) -> None:
        """Look once. To be called now and then, between steps."""
        held = self._pool.holders()
        self._receives.forget_all_but(held)
        self._counted.intersection_update(held)
        requests = self._requests()
        ownerless = [hold for hold in held if not self._is_owned(hold, requests)]
        for hold in ownerless:
            if hold in self._suspects:
                self._take(hold, held[hold])
        self._suspects = frozenset(ownerless)

    def _is_owned(self, hold: Hold, requests: Container[Hold]) -> bool:
        match hold:
            case RequestHold():
                return hold in requests
            case LeaseHold():
                return self._exporter.keeps(hold)
            case WriterHold():
                return self._receives.is_owned(hold)
            case CacheHold():
                return True
            case _:
                assert_never(hold)

    def _take(self, hold: Hold, blocks: int) -> None:
        """Count an orphan, unless it was counted before, and give its blocks back where no byte can land in them."""
        request, is_free = "", True
        if isinstance(hold, WriterHold):
            request, is_free = self._receives.request_of(hold), self._receives.is_over(hold)
        if is_free:
            self._pool.release(hold)
        if hold not in self._counted:
            self._counted.add(hold)
            self._found += blocks
            tell_orphan(hold, blocks, self._worker_id, "given back" if is_free else "in quarantine", request)
