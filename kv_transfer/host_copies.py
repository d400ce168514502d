"""What a `kv_transfer.host_transport` copies, and who does it.

Life of a copy. A small one that is all of what somebody awaits is done at once, by the call that heard of it: there it
is mostly calls and objects that cost, and this way needs the fewest. Up to `TURNS_BYTES` a copy is done on the event
loop, slice by slice (`Pace`), and others get their turns between. What is larger goes to a thread, whose system calls
hold up nobody: it takes larger slices, because each time that a copy is taken up again the interpreter itself has left
the caches, which costs a tenth of a millisecond and more. The thread says which rows are here; all else happens on the
event loop.

An abort stops a copy between two slices. One that the thread is at goes on for some milliseconds, so the receive is
over only when the thread has said that it has left it.
"""

import contextlib
import time
from asyncio import AbstractEventLoop
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread
from typing import Any

from kv_transfer.host_pace import FIRST_BYTES, Pace
from kv_transfer.lot_ledger import Arrival, Match, Offer, part_of, places_in
from kv_transfer.near_copies import count_fetched, end, fail, failure_of, note_landed
from kv_transfer.near_messages import Fate, Head, Kind, content_of, put_content, rows_of
from kv_transfer.process_memory import FEW_ROWS, ReadPlan, read_few

_SMALL_BYTES = FIRST_BYTES
TURNS_BYTES = 16 << 20
LEAST_THREADS_BYTES, MOST_THREADS_BYTES = 16 << 20, 64 << 20
_THREADS_SHARE = 4
_TURN_S = 0.0003
"""How long copying may keep the event loop before it begins another slice."""


@dataclass(slots=True, eq=False)
class Copy:
    """Rows that are being fetched."""

    match: Match[Offer]
    plan: ReadPlan
    places: Sequence[int]
    done: int = 0
    """How many of them have been told of."""

    @property
    def left(self) -> int:
        """Rows that have not."""
        return len(self.places) - self.done


class HostCopies:
    """See `kv_transfer.near_copies.Copies`."""

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop = loop
        self._turns: deque[Copy] = deque()
        self._turning = False
        self._pace = Pace()
        self._thread = CopyThread(loop, self._hear_slice, self._hear_end)
        self._away: set[Copy] = set()
        """With the thread."""

    def took_at_once(self, source: Any, head: Head, packet: memoryview, arrival: Arrival) -> bool:
        """Copy a small lot, if no other waits to be copied: what the general way does, in fewer steps."""
        rows, length = head.rows, head.row_bytes
        if self._turns or rows > FEW_ROWS or rows * length > _SMALL_BYTES or length > arrival.rows.row_bytes:
            return False
        if head.kind == Kind.CONTENT:
            put_content(arrival.matrix, arrival.rows.indices, content_of(head, packet))
            note_landed(arrival, range(rows))
            return True
        try:
            read_few(source.reader, arrival.rows, rows_of(head, packet))
        except OSError as error:
            fail(arrival, failure_of(error))
            source.answer(Fate.UNREADABLE, head.number)
        else:
            note_landed(arrival, range(rows))
            source.answer(Fate.FETCHED, head.number)
        return True

    def add(self, match: Match[Offer]) -> None:
        """Take what has met: for the event loop, or for the thread, which begins with it."""
        arrival, offer = match.arrival, match.offer
        plan = ReadPlan(part_of(arrival.rows, match.places), part_of(offer.rows, match.offered))
        copy = Copy(match, plan, places_in(match.places, arrival.tags.count))
        if plan.left <= TURNS_BYTES:
            self._turns.append(copy)
            return
        self._away.add(copy)
        arrival.reading += 1
        offer.source.reader.hold()
        self._thread.start(copy)

    def go_on(self) -> None:
        """Copy, now and in later turns."""
        if self._turns and not self._turning:
            self._turn()

    def under_way(self) -> list[Match[Offer]]:
        """Return what is not copied altogether."""
        return [copy.match for copy in (*self._turns, *self._away)]

    def drop(self) -> None:
        """Begin no slice any more for arrivals that are over."""
        dropped = [copy for copy in self._turns if copy.match.arrival.over]
        self._turns = deque(copy for copy in self._turns if not copy.match.arrival.over)
        for copy in dropped:
            count_fetched(copy.match.offer, copy.left)

    def close(self) -> None:
        """Wait for the thread, which leaves what is over after its slice."""
        self._thread.close()
        for copy in list(self._away):
            self._hear_end(copy, None)

    # On the event loop

    def _turn(self) -> None:
        """Copy for a while; what is left goes on after the event loop has seen to others."""
        self._turning = True
        ends = time.monotonic() + _TURN_S
        while self._turns:
            self._copy_slice(self._turns[0])
            if time.monotonic() >= ends:
                break
        if self._turns:
            self._loop.call_soon(self._turn)
        else:
            self._turning = False

    def _copy_slice(self, copy: Copy) -> None:
        match, plan = copy.match, copy.plan
        began, left = time.thread_time(), plan.left
        try:
            rows = plan.read(match.offer.source.reader, self._pace.slice_bytes)
        except OSError as error:
            match.offer.unreadable = True
            fail(match.arrival, failure_of(error))
            return
        if not plan.left:
            self._turns.popleft()
        if rows:
            _land(copy, rows)
        self._pace.note(left - plan.left, time.thread_time() - began)

    # By the thread

    def _hear_slice(self, copy: Copy, rows: int) -> None:
        if copy in self._away and not copy.match.arrival.over:
            _land(copy, rows)

    def _hear_end(self, copy: Copy, error: OSError | None) -> None:
        if copy not in self._away:
            return
        self._away.discard(copy)
        arrival, offer = copy.match.arrival, copy.match.offer
        offer.source.reader.close()
        arrival.reading -= 1
        if error is not None:
            offer.unreadable = True
        if left := copy.left:
            count_fetched(offer, left)
        if arrival.over:
            end(arrival)
        elif error is not None:
            fail(arrival, failure_of(error))


class CopyThread:
    """Copies one after another, beside the event loop, which hears of it."""

    def __init__(
        self,
        loop: AbstractEventLoop,
        landed: Callable[[Copy, int], None],
        ended: Callable[[Copy, OSError | None], None],
    ) -> None:
        """``landed`` is told of rows that have come, ``ended`` that no slice of a copy is begun any more."""
        self._loop = loop
        self._landed = landed
        self._ended = ended
        self._jobs: SimpleQueue[Copy | None] = SimpleQueue()
        self._thread: Thread | None = None

    def start(self, copy: Copy) -> None:
        """Copy it after what was started before."""
        if self._thread is None:
            self._thread = Thread(target=self._run, name="kv copies", daemon=True)
            self._thread.start()
        self._jobs.put(copy)

    def close(self) -> None:
        """Wait until all that was started has ended."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        with contextlib.suppress(RuntimeError):  # the event loop is closed: nobody hears
            while (copy := self._jobs.get()) is not None:
                error = None
                try:
                    while copy.plan.left and not copy.match.arrival.over:
                        rows = copy.plan.read(copy.match.offer.source.reader, threads_slice_bytes(copy.plan.left))
                        if rows:
                            self._loop.call_soon_threadsafe(self._landed, copy, rows)
                except OSError as failed:
                    error = failed
                self._loop.call_soon_threadsafe(self._ended, copy, error)


def threads_slice_bytes(left: int) -> int:
    """Return how much of what is ``left`` the thread copies in one go: less towards the end.

    Whoever looks at blocks as they come is then not far behind when the last are here.
    """
    return min(max(LEAST_THREADS_BYTES, left // _THREADS_SHARE), MOST_THREADS_BYTES)


def _land(copy: Copy, rows: int) -> None:
    first, copy.done = copy.done, copy.done + rows
    note_landed(copy.match.arrival, copy.places if rows == len(copy.places) else copy.places[first : copy.done])
    count_fetched(copy.match.offer, rows)
