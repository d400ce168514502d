"""Between two processes of one machine and user: the receiver copies blocks out of the sender's memory itself.

Life of a lot. The sender says what it has, in one packet (an `Offer`); the receiver knows what it awaits (an
`Arrival`). What has met (a `Match`) is copied by `kv_transfer.process_memory`, slice by slice, in turns that leave the
event loop time for others; when the last row of an offer is copied the sender hears that its blocks are its own again.
So all writing into a block is done by its owner: an abort ends it at once, no other process can write too late, and a
sender that dies is an error of one call. Small lots travel in the packet itself.

UCX's own way (CMA) makes the same system call for each block by itself, and a dozen Python objects around it: that is
what `docs/decisions/lots-on-one-host.md` is about. Memory of a GPU cannot be read so.
"""

import asyncio
import errno
import hashlib
import os
import secrets
import socket
import time
from asyncio import Future
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster_core.errors import LegFailed, PartUnavailable, TransferFailed, WorkerLost
from kv_transfer.host_links import Doorway, ReceivingLink, SendingLink
from kv_transfer.host_messages import MOST_ROWS, Fate, Kind, answer_packet, offer_of, withdrawal_of
from kv_transfer.lot_ledger import Arrival, LotLedger, Match, Offer, Places, chosen, places_in, tags_of
from kv_transfer.lots import Landed, Lot, all_done, settle
from kv_transfer.process_memory import ReadPlan, reading_works
from kv_transfer.rows import RowFinder, RowsAt, nobody_hears, one_row

_TURN_S = 0.0003
"""How long copying may keep the event loop before it begins another slice, which may take a millisecond."""
_NAME_BYTES = 16
_IDENTITY_BYTES = 16


def host_identity() -> bytes:
    """Return what processes have in common that can read each other and meet at a socket: machine, user, namespaces.

    Raises `PartUnavailable` where that cannot be known.
    """
    try:
        parts = [Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip(), str(os.getuid())]
        parts += [os.readlink(f"/proc/self/ns/{kind}") for kind in ("pid", "net", "user")]  # noqa: PTH115  # no path
    except OSError as error:
        message = f"transport host: {error}"
        raise PartUnavailable(message) from error
    return hashlib.sha256(" ".join(parts).encode()).digest()[:_IDENTITY_BYTES]


class HostTransport:
    """See `kv_transfer.transport.Transport`."""

    name = "host"

    def __init__(self) -> None:
        self._address = b""
        self._ledger: LotLedger[Offer] = LotLedger()
        self._copies: deque[_Copy] = deque()
        self._turning = False
        self.rows = RowFinder()
        self._sending: dict[bytes, SendingLink] = {}
        self._receiving: set[ReceivingLink] = set()
        self._doorway: Doorway | None = None

    @property
    def address(self) -> bytes:
        """The machine and user, and the name of a socket."""
        assert self._address, "start() comes first"
        return self._address

    async def start(self) -> None:
        """Listen. Raises `PartUnavailable` where processes may not read each other."""
        identity = host_identity()
        if not reading_works():
            message = "transport host: the kernel does not let one process read another (process_vm_readv)"
            raise PartUnavailable(message)
        self._loop = asyncio.get_running_loop()
        name = secrets.token_bytes(_NAME_BYTES)
        try:
            self._doorway = Doorway(_socket_name(name), self._let_in)
        except OSError as error:
            message = f"transport host: {error}"
            raise PartUnavailable(message) from error
        self._address = identity + name

    def reaches(self, address: bytes) -> bool:
        """Whether a worker at ``address`` runs on this machine, for this user, where each can see the other."""
        return len(address) == len(self._address) and address.startswith(self._address[:_IDENTITY_BYTES])

    async def connect(self, address: bytes) -> "HostPeer":
        """Return a peer."""
        return HostPeer(self, address)

    async def close(self) -> None:
        """Abort everything and become unreachable."""
        if self._doorway is None:
            return
        self._doorway.close()
        self._doorway = None
        for arrival in self._ledger.arrivals():
            arrival.owner.abort()
        for copy in list(self._copies):
            copy.match.arrival.owner.abort()
        for link in list(self._sending.values()):
            link.fail(WorkerLost("the transport was closed"))
        self._sending.clear()
        for receiving in list(self._receiving):
            receiving.close()
        self._receiving.clear()

    # Sending

    def link_to(self, address: bytes) -> SendingLink:
        """Return the link to ``address``, made when there is none. Raises `WorkerLost`."""
        if self._doorway is None:
            message = "the transport was closed"
            raise WorkerLost(message)
        link = self._sending.get(address)
        if link is None:
            name = _socket_name(address[_IDENTITY_BYTES:])
            link = self._sending[address] = SendingLink(self._loop, name, lambda: self._lose_sending(address))
        return link

    def existing_link(self, address: bytes) -> SendingLink | None:
        """Return the link to ``address`` if there is one."""
        return self._sending.get(address)

    def _lose_sending(self, address: bytes) -> None:
        self._sending.pop(address, None)

    # Receiving

    def _let_in(self, connected: socket.socket) -> None:
        self._receiving.add(ReceivingLink(self._loop, connected, self._hear, self._lose_receiving))

    def _hear(self, link: ReceivingLink, packet: bytes) -> None:
        if packet[0] == Kind.WITHDRAWAL:
            self._withdraw(link, withdrawal_of(packet))
            return
        self._fetch(self._ledger.take(offer_of(link, packet)))

    def _withdraw(self, link: ReceivingLink, number: int) -> None:
        for offer in self._ledger.drop(lambda offer: offer.source is link and offer.number == number):
            offer.withdrawn = True
            _count_fetched(offer, offer.unmet)

    def _lose_receiving(self, link: ReceivingLink) -> None:
        self._receiving.discard(link)
        self._ledger.drop(lambda offer: offer.source is link)
        for arrival in {copy.match.arrival for copy in self._copies if copy.match.offer.source is link}:
            _fail(arrival, WorkerLost("the sender is gone"))

    def post(self, arrival: Arrival) -> None:
        """Await a lot. What has been offered before is fetched in a later turn, never from within this call."""
        if matches := self._ledger.post(arrival):
            self._loop.call_soon(self._fetch, matches)

    def drop(self, arrivals: set[Arrival]) -> None:
        """Fetch nothing for ``arrivals`` any more: from now on no byte lands in them."""
        for arrival in arrivals:
            arrival.over = True
            self._ledger.forget(arrival)
        dropped = [copy for copy in self._copies if copy.match.arrival.over]
        self._copies = deque(copy for copy in self._copies if not copy.match.arrival.over)
        for copy in dropped:
            _count_fetched(copy.match.offer, copy.plan.rows_left)

    def _fetch(self, matches: list[Match[Offer]]) -> None:
        for match in matches:
            arrival, offer = match.arrival, match.offer
            if arrival.over:
                _count_fetched(offer, match.count)
            elif offer.rows.row_bytes > arrival.rows.row_bytes:
                _count_fetched(offer, match.count)
                reason = f"a block of {offer.rows.row_bytes} bytes came for one of {arrival.rows.row_bytes}"
                _fail(arrival, TransferFailed(reason))
            elif offer.content is not None:
                indices = list(chosen(arrival.rows.indices, match.places))
                arrival.matrix[indices, : offer.rows.row_bytes] = offer.content[match.offered]
                _note_landed(match, places_in(match.places, arrival.tags.count))
            else:
                plan = ReadPlan(_part(arrival.rows, match.places), _part(offer.rows, match.offered))
                self._copies.append(_Copy(match, plan, places_in(match.places, arrival.tags.count)))
        if self._copies and not self._turning:
            self._turn()

    def _turn(self) -> None:
        """Copy for a while; what is left goes on after the event loop has seen to others."""
        self._turning = True
        ends = time.monotonic() + _TURN_S
        while self._copies:
            self._copy_slice(self._copies[0])
            if time.monotonic() >= ends:
                break
        if self._copies:
            self._loop.call_soon(self._turn)
        else:
            self._turning = False

    def _copy_slice(self, copy: "_Copy") -> None:
        match, done = copy.match, len(copy.places) - copy.plan.rows_left
        try:
            rows = copy.plan.read(match.offer.source.reader)
        except OSError as error:
            match.offer.unreadable = True
            _fail(match.arrival, WorkerLost(str(error)) if error.errno == errno.ESRCH else TransferFailed(str(error)))
            return
        if not copy.plan.rows_left:
            self._copies.popleft()
        if rows:
            _count_fetched(match.offer, rows)
            _note_landed(match, copy.places[done : done + rows])


@dataclass(slots=True, eq=False)
class _Copy:
    """Rows that are being fetched."""

    match: Match[Offer]
    plan: ReadPlan
    places: Sequence[int]


class HostPeer:
    """See `kv_transfer.transport.Peer`."""

    lane = "cma"

    def __init__(self, transport: HostTransport, address: bytes) -> None:
        self._transport = transport
        self._address = address
        self._arrivals: set[Arrival] = set()

    def send(self, buffer: Any, tag: int) -> Future[None]:
        """Post a send."""
        return self.send_lot(one_row(buffer, tag))

    def receive(self, buffer: Any, tag: int) -> Future[None]:
        """Post a receive."""
        return self.receive_lot(one_row(buffer, tag), nobody_hears)

    def send_lot(self, lot: Lot) -> Future[None]:
        """Post sends."""
        link, rows = self._transport.link_to(self._address), self._transport.rows.find(lot)
        if len(lot) <= MOST_ROWS:
            return link.offer(self, lot.rows, rows, tags_of(lot.tag, lot.numbers))
        parts = [slice(first, first + MOST_ROWS) for first in range(0, len(lot), MOST_ROWS)]
        return all_done(
            [link.offer(self, lot.rows, rows.part(part), tags_of(lot.tag, lot.numbers[part])) for part in parts]
        )

    def receive_lot(self, lot: Lot, landed: Landed) -> Future[None]:
        """Post receives."""
        done: Future[None] = asyncio.get_running_loop().create_future()
        arrival = Arrival(
            owner=self,
            matrix=lot.rows,
            rows=self._transport.rows.find(lot),
            tags=tags_of(lot.tag, lot.numbers),
            landed=landed,
            done=done,
        )
        if arrival.missing:
            self._arrivals.add(arrival)
            self._transport.post(arrival)
        else:
            done.set_result(None)
        return done

    def finish(self, arrival: Arrival) -> None:
        """Note that a lot has come."""
        self._arrivals.discard(arrival)
        settle(arrival.done, None)

    def abort(self) -> None:
        """Cancel this peer's receives, and take back its sends that nobody awaits."""
        dropped, self._arrivals = self._arrivals, set()
        self._transport.drop(dropped)
        for arrival in dropped:
            settle(arrival.done, TransferFailed("the receive was aborted"))
        link = self._transport.existing_link(self._address)
        if link is not None:
            link.withdraw(self)


def _part(rows: RowsAt, places: Places) -> RowsAt:
    return RowsAt(rows.base, rows.stride, rows.row_bytes, chosen(rows.indices, places))


def _note_landed(match: Match[Offer], places: Sequence[int]) -> None:
    arrival = match.arrival
    arrival.missing -= len(places)
    arrival.landed(places)
    if not arrival.missing and not arrival.over:
        arrival.owner.finish(arrival)


def _fail(arrival: Arrival, error: LegFailed) -> None:
    settle(arrival.done, error)
    arrival.owner.abort()


def _count_fetched(offer: Offer, rows: int) -> None:
    """Tell the sender when nothing of ``offer`` will be read any more."""
    offer.unfetched -= rows
    if offer.unfetched or offer.content is not None:
        return
    fate = Fate.UNREADABLE if offer.unreadable else Fate.WITHDRAWN if offer.withdrawn else Fate.FETCHED
    offer.source.say(answer_packet(fate, offer.number))


def _socket_name(name: bytes) -> str:
    return f"baton-kv-{name.hex()}"
