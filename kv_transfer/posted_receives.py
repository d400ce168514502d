"""Who writes into a block: the receives that a worker's imports have posted, by the tag of their writer holds.

A receive is *owned* while its import runs, and while what the import has left settles. It is *over* when its future is
done: the transport says with it that no byte can land any more. By then every hold of its tag should be gone; one that
is not is a mistake of ours, and stays known here, so that it can be told whose it was.
"""

from asyncio import Future
from collections.abc import Container
from dataclasses import dataclass

from cluster_core.holds import Hold, WriterHold
from cluster_core.identity import RequestId
from kv_transfer.settling import Settling
from kv_transfer.target_blocks import TargetBlocks


@dataclass(frozen=True, slots=True, eq=False)
class Posted:
    """One lot of receives."""

    request_id: RequestId
    receive: Future[None]
    targets: TargetBlocks


class PostedReceives:
    """All of one importer. To be told now and then what is still held, and forgets the rest."""

    def __init__(self, settling: Settling) -> None:
        self._settling = settling
        self._posted: dict[int, Posted] = {}

    def __len__(self) -> int:
        """Return how many are known."""
        return len(self._posted)

    def add(self, tag: int, posted: Posted) -> None:
        """Note receives that were posted under ``tag``."""
        self._posted[tag] = posted

    def is_owned(self, hold: WriterHold) -> bool:
        """Whether an import waits for the bytes: it runs, or it was given up and settles."""
        posted = self._posted.get(hold.tag)
        if posted is None or posted.receive.done():
            return False
        return posted.targets.listener is not None or posted.receive in self._settling

    def is_over(self, hold: WriterHold) -> bool:
        """Whether the transport has said that no byte can land under this tag any more."""
        posted = self._posted.get(hold.tag)
        return posted is not None and posted.receive.done()

    def request_of(self, hold: WriterHold) -> str:
        """Return the request that the bytes were for; empty where that is not known."""
        posted = self._posted.get(hold.tag)
        return "" if posted is None else posted.request_id

    def forget_all_but(self, held: Container[Hold]) -> None:
        """Forget the receives that are over and have left no hold."""
        over = [tag for tag, posted in self._posted.items() if posted.receive.done() and WriterHold(tag) not in held]
        for tag in over:
            del self._posted[tag]
