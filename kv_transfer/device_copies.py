"""What a `kv_transfer.device_transport` has yet to copy: slices of a launch each, one in a turn of the event loop."""

from asyncio import AbstractEventLoop
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kv_transfer.device_rows import DevicePlan, SharedMemory
from kv_transfer.lot_ledger import Arrival, Match, Offer, part_of, places_in
from kv_transfer.near_copies import count_fetched, fail, failure_of, note_landed
from kv_transfer.near_messages import Head


@dataclass(slots=True, eq=False)
class _Copy:
    """Rows that are being fetched."""

    match: Match[Offer]
    plan: DevicePlan
    places: Sequence[int]


class DeviceCopies:
    """See `kv_transfer.near_copies.Copies`."""

    def __init__(self, loop: AbstractEventLoop, memory: SharedMemory) -> None:
        self._loop = loop
        self._memory = memory
        self._copies: deque[_Copy] = deque()
        self._turning = False

    def took_at_once(self, _source: Any, _head: Head, _packet: memoryview, _arrival: Arrival) -> bool:
        """Leave it to a turn."""
        return False

    def add(self, match: Match[Offer]) -> None:
        """Take what has met."""
        arrival = match.arrival
        here, there = part_of(arrival.rows, match.places), part_of(match.offer.rows, match.offered)
        plan = DevicePlan(self._memory, arrival.matrix, here, there)
        self._copies.append(_Copy(match, plan, places_in(match.places, arrival.tags.count)))

    def go_on(self) -> None:
        """Copy, now and in later turns."""
        if self._copies and not self._turning:
            self._turn()

    def under_way(self) -> list[Match[Offer]]:
        """Return what is not copied altogether."""
        return [copy.match for copy in self._copies]

    def drop(self) -> None:
        """Copy nothing any more for arrivals that are over: from now on no byte lands in them."""
        dropped = [copy for copy in self._copies if copy.match.arrival.over]
        self._copies = deque(copy for copy in self._copies if not copy.match.arrival.over)
        for copy in dropped:
            count_fetched(copy.match.offer, copy.plan.rows_left)

    def close(self) -> None:
        """Do nothing: what was launched has been waited for."""

    def _turn(self) -> None:
        """Copy a slice, and go on after the event loop has seen to others."""
        self._turning = bool(self._copies)
        if self._copies:
            self._copy_slice(self._copies[0])
            self._loop.call_soon(self._turn)

    def _copy_slice(self, copy: _Copy) -> None:
        match, done = copy.match, len(copy.places) - copy.plan.rows_left
        try:
            rows = copy.plan.read(match.offer.source.reader)
        except OSError as error:
            match.offer.unreadable = True
            fail(match.arrival, failure_of(error))
            return
        if not copy.plan.rows_left:
            self._copies.popleft()
        note_landed(match.arrival, copy.places[done : done + rows])
        count_fetched(match.offer, rows)
