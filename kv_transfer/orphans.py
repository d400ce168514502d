"""Gives back what nobody owns any more, and says so: each time it is a bug of ours."""

import logging
from typing import Protocol

from cluster_core.holds import Hold, LeaseHold, RequestHold

log = logging.getLogger(__name__)


class Releases(Protocol):
    """What takes a hold from every block that has it."""

    def release(self, hold: Hold) -> int:
        """Take ``hold`` from every block that has it; returns how many had it."""
        ...


def give_back_orphans(holds: Releases, hold: Hold, whose: str) -> int:
    """Free the blocks that ``hold`` keeps though nobody needs them any more; returns how many there were.

    ``whose`` names the worker, for the log.
    """
    blocks = holds.release(hold)
    if blocks:
        tell_orphan(hold, blocks, whose, "given back")
    return blocks


def tell_orphan(hold: Hold, blocks: int, whose: str, now: str, of: str = "") -> None:
    """Log blocks that were held by nobody, and what they are ``now``; ``of``: a request that the hold does not name."""
    request = f"{hold.request_id}, attempt {hold.attempt}" if isinstance(hold, RequestHold | LeaseHold) else of
    log.error(
        "%s: a bug, please report: %d blocks had a hold without an owner, now %s; request %s; %s",
        whose,
        blocks,
        now,
        request or "unknown",
        hold,
    )
