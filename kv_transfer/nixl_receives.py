"""The receiver's side over NIXL: it reads what senders offer into the buffers that were posted for it.

Life of a receive. It is *posted* under its tag. An advert with that tag makes it *ready* (an advert that comes first
waits as an *early* one). It is *read* together with others from the same sender, in portions, so that the event loop
gets its turns and blocks can be looked at while others come. Then its sender hears that the message was *taken*.

Nobody writes into this worker's memory but itself. So a receive that was not yet read can be aborted there and then.
The promise of `kv_transfer.transport` needs care in one place only, a read that failed: NIXL does not say when the last
of its bytes has landed. The connection is closed by force, which ends them, and UCX gets ``_SETTLE_S`` to do so before
the receives are said to be over.
"""

import contextlib
from asyncio import Future
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cluster_core.errors import TransferFailed, WorkerLost
from kv_transfer.lots import Landed, settle
from kv_transfer.nixl_messages import Advert, Message, Nudge, Space, Taken
from kv_transfer.nixl_remotes import Read, ReadAgent, Remote, Remotes

_PORTION_BYTES = 2 << 20
"""Most bytes of one read, unless a single message has more: about 0.3 ms where the CPU copies them."""
_READS_AT_ONCE = 8
_SLOW_S = 0.0005
"""A read that takes longer may need its sender's help."""
_NUDGE_S = 0.002
_SETTLE_S = 0.05
_MOST_UNWANTED = 1 << 16
_MOST_EARLY = 1 << 16
"""From so many on, offers of senders that are gone are forgotten."""


@dataclass(slots=True, kw_only=True)
class Wanted:
    """What one call wants to receive: messages of at most ``size`` bytes each."""

    done: "Future[None]"
    owner: object
    """Whose abort ends it."""
    space: Space
    size: int
    keeps: Any
    """What must not be freed before it is done."""
    landed: Landed
    left: int
    error: TransferFailed | None = None


class Posted(NamedTuple):
    """One receive of a call."""

    wanted: Wanted
    place: int
    tag: int
    address: int


class _Source(NamedTuple):
    """Whom a message is read from, and which memory of it."""

    remote: Remote
    space: Space


class _Offer(NamedTuple):
    source: _Source
    address: int
    size: int


class _Ready(NamedTuple):
    posted: Posted
    offer: _Offer

    @property
    def remote(self) -> Remote:
        return self.offer.source.remote


class _Running(NamedTuple):
    handle: Any
    remote: Remote
    portion: list[_Ready]
    started_at: float


@dataclass(slots=True)
class _Settling:
    """A read that failed."""

    remote: Remote
    portion: list[_Ready]
    error: TransferFailed
    over_at: float


@dataclass(slots=True)
class _Tags:
    posted: dict[int, Posted] = field(default_factory=dict)
    early: dict[int, _Offer] = field(default_factory=dict)
    unwanted: dict[int, None] = field(default_factory=dict)
    """Tags whose receives were aborted, the latest: an advert for one is answered at once."""


class NixlReceives:
    """Every receive that is not done."""

    def __init__(self, agent: ReadAgent, remotes: Remotes, clock: Callable[[], float]) -> None:
        self._agent = agent
        self._remotes = remotes
        self._clock = clock
        self._tags = _Tags()
        self._ready: deque[_Ready] = deque()
        self._running: list[_Running] = []
        self._settling: list[_Settling] = []
        self._nudge_at = 0.0

    @property
    def waiting(self) -> int:
        """How many receives wait for an advert."""
        return len(self._tags.posted)

    @property
    def busy(self) -> bool:
        """Whether bytes are to be read, or may still land."""
        return bool(self._ready or self._running or self._settling)

    def post(self, receives: Iterable[Posted]) -> None:
        """Take note of ``receives``; `turn` reads what has an advert already."""
        for posted in receives:
            offer = self._tags.early.pop(posted.tag, None)
            if offer is None:
                self._tags.posted[posted.tag] = posted
            else:
                self._ready.append(_Ready(posted, offer))

    def hear(self, name: str, advert: Advert) -> None:
        """Take note of what ``name`` offers. Raises `WorkerLost` when it cannot be read from."""
        remote = self._remotes.heard(name, advert)
        source = _Source(remote, advert.space)
        unwanted: list[int] = []
        for tag, address, size in advert.entries.tolist():
            offer = _Offer(source, address, size)
            posted = self._tags.posted.pop(tag, None)
            if posted is not None:
                self._ready.append(_Ready(posted, offer))
            elif tag in self._tags.unwanted:
                del self._tags.unwanted[tag]
                unwanted.append(tag)
            else:
                self._tags.early[tag] = offer
        self._say_taken(remote, unwanted)
        if len(self._tags.early) > _MOST_EARLY:
            self._tags.early = {tag: offer for tag, offer in self._tags.early.items() if not offer.source.remote.lost}

    def abort(self, owner: object) -> None:
        """End what ``owner`` has posted and nothing is read into yet."""
        error = TransferFailed("nixl: the receive was aborted")
        dropped = [one for one in self._tags.posted.values() if one.wanted.owner is owner]
        for one in dropped:
            del self._tags.posted[one.tag]
            self._tags.unwanted[one.tag] = None
        for tag in list(self._tags.unwanted)[:-_MOST_UNWANTED]:
            del self._tags.unwanted[tag]
        late = [one for one in self._ready if one.posted.wanted.owner is owner]
        self._ready = deque(one for one in self._ready if one.posted.wanted.owner is not owner)
        self._end([*dropped, *(one.posted for one in late)], error)
        for remote in {id(one.remote): one.remote for one in late}.values():
            self._say_taken(remote, [one.posted.tag for one in late if one.remote is remote])

    def abort_all(self) -> None:
        """End what nothing is read into yet, and forget what was offered."""
        for owner in [one.wanted.owner for one in self._tags.posted.values()]:
            self.abort(owner)
        for owner in [one.posted.wanted.owner for one in self._ready]:
            self.abort(owner)
        self._tags.early.clear()

    def end_all(self) -> None:
        """End everything; the caller has seen to it that nothing can land any more."""
        self.abort_all()
        error = TransferFailed("nixl: the transport was closed")
        for running in self._running:
            self._end([one.posted for one in running.portion], error)
        for settling in self._settling:
            self._end([one.posted for one in settling.portion], settling.error)
        self._running.clear()
        self._settling.clear()

    # Reading

    def turn(self, until: float) -> bool:
        """Finish reads and start others, until nothing can be done or the time is up; returns whether any was done."""
        progress = False
        for running in list(self._running):
            progress |= self._look_at(running)
        while self._ready and len(self._running) < _READS_AT_ONCE and self._clock() < until:
            self._start()
            progress = True
        for settling in list(self._settling):
            progress |= self._see_settled(settling)
        if self._running and self._clock() >= self._nudge_at:
            self._nudge()
        return progress

    def _see_settled(self, settling: _Settling) -> bool:
        now = self._clock()
        if settling.remote.reads:  # the connection is closed when they have ended, too
            settling.over_at = now + _SETTLE_S
        if settling.over_at > now:
            return False
        self._settling.remove(settling)
        self._end([one.posted for one in settling.portion], settling.error)
        return True

    def _nudge(self) -> None:
        """Ask the senders of slow reads to look after NIXL."""
        now = self._clock()
        self._nudge_at = now + _NUDGE_S
        slow = {id(one.remote): one.remote for one in self._running if now - one.started_at > _SLOW_S}
        for remote in slow.values():
            self._say(remote, Nudge())

    def _look_at(self, running: _Running) -> bool:
        try:
            if not self._agent.is_read(running.handle):
                return False
        except TransferFailed as error:
            self._running.remove(running)
            self._read_failed(running.remote, running.portion, error)
            return True
        self._running.remove(running)
        self._remotes.end_read(running.remote)
        self._read(running.remote, running.portion)
        return True

    def _start(self) -> None:
        remote, portion = self._take_portion()
        if not portion:
            return
        if remote.lost:
            self._end([one.posted for one in portion], TransferFailed("nixl: the sender is gone"))
            return
        here, there = _merged(portion)
        read = Read(
            here=here,
            here_space=portion[0].posted.wanted.space,
            there=there,
            there_space=portion[0].offer.source.space,
        )
        self._remotes.begin_read(remote)
        try:
            handle = self._agent.start_read(remote.name, read)
        except TransferFailed as error:
            self._read_failed(remote, portion, error)
            return
        running = _Running(handle, remote, portion, self._clock())
        self._running.append(running)
        self._look_at(running)  # the CPU copies at once: then it is done already

    def _take_portion(self) -> tuple[Remote, list[_Ready]]:
        """Return what can be read together. Messages without bytes, and those that do not fit, end here."""
        first = self._ready[0]
        remote = first.remote
        portion: list[_Ready] = []
        empty: list[_Ready] = []
        size = 0
        while self._ready and _alike(self._ready[0], first):
            one = self._ready[0]
            if portion and size + one.offer.size > _PORTION_BYTES:
                break
            self._ready.popleft()
            if one.offer.size > one.posted.wanted.size:
                reason = f"nixl: a message of {one.offer.size} bytes for a buffer of {one.posted.wanted.size}"
                self._say_taken(remote, [one.posted.tag])
                self._end([one.posted], TransferFailed(reason))
            elif one.offer.size:
                portion.append(one)
                size += one.offer.size
            else:
                empty.append(one)
        if empty:
            self._read(remote, empty)
        return remote, portion

    def _read(self, remote: Remote, portion: Sequence[_Ready]) -> None:
        self._end([one.posted for one in portion], None)
        self._say_taken(remote, [one.posted.tag for one in portion])

    def _read_failed(self, remote: Remote, portion: list[_Ready], error: TransferFailed) -> None:
        self._remotes.lose(remote)
        self._remotes.end_read(remote)
        self._settling.append(_Settling(remote, portion, error, self._clock() + _SETTLE_S))

    def _say_taken(self, remote: Remote, tags: Sequence[int]) -> None:
        if tags:
            self._say(remote, Taken(tags=np.array(tags, np.uint64)))

    def _say(self, remote: Remote, message: Message) -> None:
        if not remote.lost:
            with contextlib.suppress(WorkerLost):  # then nobody is left to hear it
                self._remotes.say(remote, message)

    def _end(self, receives: Sequence[Posted], error: TransferFailed | None) -> None:
        """Note that nothing lands in these any more; then tell those who wait."""
        places: dict[int, tuple[Wanted, list[int]]] = {}
        for posted in receives:
            places.setdefault(id(posted.wanted), (posted.wanted, []))[1].append(posted.place)
            posted.wanted.left -= 1
        for wanted, come in places.values():
            failed_before = wanted.error is not None
            wanted.error = wanted.error or error
            if error is None:
                wanted.landed(come)
            if not wanted.left:
                settle(wanted.done, wanted.error)
            elif error is not None and not failed_before:
                self.abort(wanted.owner)


def _alike(one: _Ready, other: _Ready) -> bool:
    """Whether both can be read in one go."""
    mine, others = one.offer.source, other.offer.source
    same_source = mine is others or (mine.remote is others.remote and mine.space == others.space)
    wanted, other_wanted = one.posted.wanted, other.posted.wanted
    return same_source and (wanted is other_wanted or wanted.space == other_wanted.space)


def _merged(portion: Sequence[_Ready]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Return address and bytes of each message, here and there; neighbours on both sides are one."""
    here = np.array([one.posted.address for one in portion], np.uint64)
    there = np.array([one.offer.address for one in portion], np.uint64)
    sizes = np.array([one.offer.size for one in portion], np.uint64)
    apart = (here[1:] != here[:-1] + sizes[:-1]) | (there[1:] != there[:-1] + sizes[:-1])
    starts = np.flatnonzero(np.concatenate(([True], apart)))
    lengths = np.add.reduceat(sizes, starts)
    return np.stack([here[starts], lengths], axis=1), np.stack([there[starts], lengths], axis=1)
