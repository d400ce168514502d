"""What a `kv_transfer.near_transport` needs of a kind of memory, and how a lot of rows that are copied there ends.

Rows land in an arrival until nothing is missing, or it fails and with it what else its peer awaits; the sender of an
offer hears when nothing of it will be read any more. All of it happens on the event loop.
"""

import errno
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from cluster_core.errors import LegFailed, TransferFailed, WorkerLost
from kv_transfer.lot_ledger import Arrival, Match, Offer
from kv_transfer.lots import settle
from kv_transfer.near_messages import Fate, Head


class NearMemory(Protocol):
    """What this process has of one kind of memory, and sees of other processes'."""

    def start(self) -> bytes:
        """Get ready, and return what two processes of one machine must have in common to read each other's.

        Raises `PartUnavailable` where that is not allowed.
        """
        ...

    def describe(self, address: int) -> bytes:
        """Return what another process must know before it reads at ``address``; empty where that is nothing.

        Raises `TransferFailed` for an address that is not of this kind of memory, or cannot be shared.
        """
        ...

    def reader(self, pid: int) -> Any:
        """Return what reads another process until its ``close``. Raises `OSError` when there is no such process."""
        ...

    def learn(self, reader: Any, description: bytes) -> None:
        """Take what a process describes; where that fails, reading does, and says why."""
        ...


class Copies(Protocol):
    """What one transport has yet to copy, and who copies it."""

    def took_at_once(self, source: Any, head: Head, packet: memoryview, arrival: Arrival) -> bool:
        """Copy what a packet offers, which is all that ``arrival`` awaits, there and then; return whether it was done.

        What failed was done, too: nothing of the packet is of interest after that.
        """
        ...

    def add(self, match: Match[Offer]) -> None:
        """Take what has met; `go_on` begins with it."""
        ...

    def go_on(self) -> None:
        """Copy, now and in later turns."""
        ...

    def under_way(self) -> Iterable[Match[Offer]]:
        """Return what is not copied altogether."""
        ...

    def drop(self) -> None:
        """Begin no slice any more for arrivals that are over."""
        ...

    def close(self) -> None:
        """Return when nothing is copied any more; all arrivals are over."""
        ...


def note_landed(arrival: Arrival, places: Sequence[int]) -> None:
    """Tell that blocks at ``places`` of a lot are here."""
    arrival.missing -= len(places)
    arrival.landed(places)
    if not arrival.missing and not arrival.over:
        arrival.owner.finish(arrival)


def count_fetched(offer: Offer, rows: int) -> None:
    """Tell the sender when nothing of ``offer`` will be read any more."""
    offer.unfetched -= rows
    if offer.unfetched or offer.content is not None:
        return
    fate = Fate.UNREADABLE if offer.unreadable else Fate.WITHDRAWN if offer.withdrawn else Fate.FETCHED
    offer.source.answer(fate, offer.number)


def fail(arrival: Arrival, error: LegFailed) -> None:
    """End ``arrival``, and with it what else its peer awaits."""
    arrival.failure = arrival.failure or error
    arrival.owner.abort()


def end(arrival: Arrival) -> None:
    """Say that ``arrival``, which was aborted, is over, as soon as it is: nothing lands in it any more."""
    if not arrival.reading:
        settle(arrival.done, arrival.failure or TransferFailed("the receive was aborted"))


def failure_of(error: OSError) -> LegFailed:
    """Return what it means that a process could not be read."""
    return WorkerLost(str(error)) if error.errno == errno.ESRCH else TransferFailed(str(error))
