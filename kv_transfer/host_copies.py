"""What a `kv_transfer.host_transport` has yet to copy, and who copies it.

Life of a copy. Up to `TURNS_BYTES` it is done on the event loop, slice by slice (`Pace`), and others get their turns
between. What is larger goes to a thread, whose system calls hold up nobody: it takes larger slices, because each time
that a copy is taken up again the interpreter itself has left the caches, which costs a tenth of a millisecond and more.
The thread says which rows are here; all else happens on the event loop.

An abort stops a copy between two slices. One that the thread is at goes on for some milliseconds, so the receive is
over only when the thread has said that it has left it.
"""

import contextlib
import errno
import time
from asyncio import AbstractEventLoop
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread

from cluster_core.errors import LegFailed, TransferFailed, WorkerLost
from kv_transfer.host_messages import Fate
from kv_transfer.host_pace import Pace
from kv_transfer.lot_ledger import Arrival, Match, Offer, Places, chosen, places_in
from kv_transfer.lots import settle
from kv_transfer.process_memory import ReadPlan
from kv_transfer.rows import RowsAt

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


class Copies:
    """The copies of one transport."""

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop = loop
        self._turns: deque[Copy] = deque()
        self._turning = False
        self._pace = Pace()
        self._thread = CopyThread(loop, self._hear_slice, self._hear_end)
        self._away: set[Copy] = set()
        """With the thread."""

    def add(self, match: Match[Offer]) -> None:
        """Take what has met; `go_on` begins with it."""
        arrival, offer = match.arrival, match.offer
        plan = ReadPlan(_part(arrival.rows, match.places), _part(offer.rows, match.offered))
        copy = Copy(match, plan, places_in(match.places, arrival.tags.count))
        if plan.left <= TURNS_BYTES:
            self._turns.append(copy)
            return
        self._away.add(copy)
        arrival.reading += 1
        offer.source.reader.hold()
        self._thread.start(copy)

    def waiting(self) -> bool:
        """Whether something is being copied on the event loop."""
        return bool(self._turns)

    def go_on(self) -> None:
        """Copy, now and in later turns."""
        if self._turns and not self._turning:
            self._turn()

    def from_source(self, source: object) -> set[Arrival]:
        """Return the arrivals for which ``source`` is being read."""
        copies = (*self._turns, *self._away)
        return {copy.match.arrival for copy in copies if copy.match.offer.source is source}

    def arrivals(self) -> set[Arrival]:
        """Return the arrivals for which anybody is being read."""
        return {copy.match.arrival for copy in (*self._turns, *self._away)}

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


def _part(rows: RowsAt, places: Places) -> RowsAt:
    if isinstance(places, slice) and places.stop - places.start == len(rows.indices):
        return rows
    return RowsAt(rows.base, rows.stride, rows.row_bytes, chosen(rows.indices, places))
