"""A NIXL agent on an event loop: what is sent and received through it, and when it is looked after.

Progress is ours. NIXL's progress thread burns a core, or wakes nobody: what it has taken in must be polled for even so.
Without it NIXL works when it is called, and has nothing that an event loop could wait on. So it is looked after in
turns: at once while bytes move, every 1 to 4 ms while a receive waits, hardly ever while nothing does.
"""

import asyncio
import time
from asyncio import Future
from collections.abc import Sequence
from typing import Any

import numpy as np

from cluster_core.errors import TransferFailed, WorkerLost
from kv_transfer.lots import Landed, Lot
from kv_transfer.nixl_memory import Regions, Span, bytes_of, span_of
from kv_transfer.nixl_messages import Advert, Nudge, Taken, decode
from kv_transfer.nixl_receives import NixlReceives, Posted, Wanted
from kv_transfer.nixl_remotes import ReadAgent, Remotes
from kv_transfer.nixl_sends import NixlSends, Parcel
from kv_transfer.settings import TransferSettings

_TURN_S = 0.001
"""How long reads may run before the event loop gets a turn."""
_EAGER_S = 0.002
"""How long after the last progress the next turn follows at once, while bytes move."""
_NUDGED_S = 0.005
"""How long a nudge makes the next turn follow at once."""
_LISTEN_S = 0.001
_SLOWEST_LISTEN_S = 0.004
_SLOWEST_OFFER_S = 0.02
_IDLE_S = 0.2
"""Pauses between turns: while a receive waits, while only sends do, and while nothing does."""


class NixlWorker:
    """One agent on the running event loop: its messages, and when it is looked after."""

    def __init__(self, agent: ReadAgent, settings: TransferSettings) -> None:
        self._agent: ReadAgent | None = agent
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._regions = Regions(agent)
        remotes = Remotes(agent)
        self.receives = NixlReceives(agent, remotes, time.monotonic)
        self._sends = NixlSends(agent, self._regions, remotes)
        self._progress_at = self._probe_at = self._eager_until = time.monotonic()
        self._next: asyncio.Handle | None = None
        self._schedule()

    # Messages

    def send(self, address: bytes, buffer: Any, tag: int) -> Future[None]:
        """Offer ``buffer``, or a copy of it where NIXL does not know its memory."""
        span, slab, keeps = span_of(buffer), None, buffer
        if not self._regions.covers(span):
            if span.space.on_device:
                self._regions.register(buffer)
            else:
                slab = self._regions.take_slab(span.size)
                slab.bytes[: span.size] = bytes_of(buffer)
                span, keeps = Span(address=slab.span.address, size=span.size, space=span.space), None
        entries = np.array([(tag, span.address, span.size)], np.uint64)
        return self._send(address, Parcel(entries=entries, span=span, keeps=keeps, slab=slab))

    def send_lot(self, address: bytes, lot: Lot) -> Future[None]:
        """Offer blocks of a matrix, which NIXL knows from now on."""
        span = self._regions.register(lot.rows)
        row_bytes = span.size // len(lot.rows)
        entries = np.empty((len(lot), 3), np.uint64)
        entries[:, 0] = np.asarray(lot.numbers, np.uint64) + np.uint64(lot.tag)
        entries[:, 1] = np.asarray(lot.indices, np.uint64) * np.uint64(row_bytes) + np.uint64(span.address)
        entries[:, 2] = row_bytes
        return self._send(address, Parcel(entries=entries, span=span, keeps=lot.rows))

    def _send(self, address: bytes, parcel: Parcel) -> Future[None]:
        if self._agent is None:
            message = "nixl: the transport was closed"
            raise WorkerLost(message)
        if not len(self._sends):
            self._probe_at = time.monotonic() + self._settings.ucx_keepalive_s
        done = self._sends.send(address, parcel)
        self._stir()
        return done

    def receive(self, owner: object, buffer: Any, tag: int) -> Future[None]:
        """Post a receive into ``buffer``, by way of a slab where NIXL does not know its memory."""
        span = span_of(buffer)
        if self._regions.covers(span) or span.space.on_device:
            self._regions.register(buffer)
            return self._receive(owner, span, [(tag, span.address)], lambda _places: None, buffer)
        slab = self._regions.take_slab(span.size)
        target = bytes_of(buffer)

        def landed(_places: Sequence[int]) -> None:
            target[:] = slab.bytes[: target.size]

        slab.bytes[: span.size] = target  # a shorter message leaves the rest of the buffer as it is
        piece = Span(address=slab.span.address, size=span.size, space=span.space)
        done = self._receive(owner, piece, [(tag, piece.address)], landed, buffer)
        done.add_done_callback(lambda _done: self._regions.give_back(slab))
        return done

    def receive_lot(self, owner: object, lot: Lot, landed: Landed) -> Future[None]:
        """Post receives into blocks of a matrix, which NIXL knows from now on."""
        span = self._regions.register(lot.rows)
        row_bytes = span.size // len(lot.rows)
        rows = Span(address=span.address, size=row_bytes, space=span.space)
        places = [
            (lot.tag + number, span.address + index * row_bytes)
            for number, index in zip(lot.numbers, lot.indices, strict=True)
        ]
        return self._receive(owner, rows, places, landed, lot.rows)

    def _receive(
        self, owner: object, piece: Span, places: Sequence[tuple[int, int]], landed: Landed, keeps: Any
    ) -> Future[None]:
        """Post a receive of ``piece.size`` bytes for each tag and address of ``places``."""
        done: Future[None] = self._loop.create_future()
        wanted = Wanted(
            done=done,
            owner=owner,
            space=piece.space,
            size=piece.size,
            keeps=keeps,
            landed=landed,
            left=len(places),
        )
        self.receives.post(Posted(wanted, place, tag, address) for place, (tag, address) in enumerate(places))
        if self._agent is None:
            self.receives.abort(owner)
        elif not places:
            done.set_result(None)
        else:
            self._stir()
        return done

    # Turns

    def _stir(self) -> None:
        """Something new is awaited: the next turn comes at once, and turns are frequent again."""
        self._progress_at = time.monotonic()
        self._schedule()

    def _schedule(self) -> None:
        if self._next is not None:
            self._next.cancel()
        self._next = self._loop.call_soon(self._advance)

    def _advance(self) -> None:
        self._next = None
        if self._agent is None:
            return
        now = time.monotonic()
        try:
            if self._take_turn(now):
                self._progress_at = now
            if len(self._sends) and now >= self._probe_at:
                self._probe_at = now + self._settings.ucx_keepalive_s
                self._sends.probe()
        finally:  # who hears that a block has landed may fail; what others wait for goes on
            if self._next is None:  # unless something that has just ended has posted anew
                pause = 0.0 if now < self._eager_until else self._pause(now - self._progress_at)
                later = self._loop.call_later
                self._next = later(pause, self._advance) if pause else self._loop.call_soon(self._advance)

    def _take_turn(self, now: float) -> bool:
        assert self._agent is not None, "closed transports take no turns"
        heard = False
        for name, data in self._agent.notifications():
            heard = True
            self._hear(name, data)
        return self.receives.turn(now + _TURN_S) or heard

    def _hear(self, name: str, data: bytes) -> None:
        try:
            match decode(data):
                case Advert() as advert:
                    self.receives.hear(name, advert)
                case Taken(tags=tags):
                    self._sends.taken(name, tags)
                case Nudge():
                    self._eager_until = time.monotonic() + _NUDGED_S
        except (TransferFailed, WorkerLost):
            return  # who sends what cannot be used gets no answer; its send ends by the exporter's deadline

    def _pause(self, quiet_s: float) -> float:
        """Return how long NIXL may wait for the next turn, when nothing has moved for ``quiet_s``."""
        if self.receives.busy:
            return 0.0 if quiet_s < _EAGER_S else _LISTEN_S
        if self.receives.waiting:
            return min(_SLOWEST_LISTEN_S, max(_LISTEN_S, quiet_s / 8))
        if len(self._sends):
            return min(_SLOWEST_OFFER_S, max(_LISTEN_S, quiet_s / 8))
        return _IDLE_S

    async def close(self) -> None:
        """Let running reads finish, then end everything and give the agent back."""
        if self._agent is None:
            return
        self.receives.abort_all()
        give_up_at = time.monotonic() + self._settings.settle_timeout_s
        while self.receives.busy and time.monotonic() < give_up_at:
            self._take_turn(time.monotonic())
            await asyncio.sleep(0)
        if self._next is not None:
            self._next.cancel()
        agent, self._agent = self._agent, None
        agent.close()
        self.receives.end_all()
        self._sends.fail(None, WorkerLost("nixl: the transport was closed"))
