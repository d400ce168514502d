"""Between two processes whose blocks lie in one GPU's memory: the receiver copies them itself, a lot at a time.

It is what `kv_transfer.host_transport` does in host memory, and lives as that does: the sender offers rows in one
packet, the receiver, which knows what it awaits, copies what has met by one launch (`kv_transfer.device_memory`), and
the sender hears when its blocks are its own again. Buffers in host memory do not travel this way.
"""

import asyncio
import errno
import hashlib
import secrets
import socket
from asyncio import Future
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cluster_core.errors import LegFailed, PartUnavailable, TransferFailed, WorkerLost
from kv_transfer.device_links import (
    MOST_ROWS,
    DeviceOffer,
    Fate,
    Kind,
    ReceivingEnd,
    SendingEnd,
    offer_of,
    withdrawn_number,
)
from kv_transfer.device_rows import DevicePlan, SharedMemory
from kv_transfer.host_links import Doorway
from kv_transfer.host_transport import host_identity
from kv_transfer.lot_ledger import Arrival, LotLedger, Match, Places, chosen, places_in, tags_of
from kv_transfer.lots import Landed, Lot, all_done, settle
from kv_transfer.rows import RowFinder, RowsAt, nobody_hears, one_row

_NAME_BYTES = _IDENTITY_BYTES = 16


class DeviceTransport:
    """See `kv_transfer.transport.Transport`."""

    name = "device"

    def __init__(self, memory: SharedMemory) -> None:
        self.memory = memory
        self.rows = RowFinder()
        self._address = b""
        self._ledger: LotLedger[DeviceOffer] = LotLedger()
        self._copies: deque[_Copy] = deque()
        self._turning = False
        self._sending: dict[bytes, SendingEnd] = {}
        self._receiving: set[ReceivingEnd] = set()
        self._doorway: Doorway | None = None

    @property
    def address(self) -> bytes:
        """The machine, user and GPU, and the name of a socket."""
        assert self._address, "start() comes first"
        return self._address

    async def start(self) -> None:
        """Listen. Raises `PartUnavailable` where processes cannot share the GPU's memory."""
        parts = host_identity() + self.memory.start()
        self._loop = asyncio.get_running_loop()
        name = secrets.token_bytes(_NAME_BYTES)
        try:
            self._doorway = Doorway(_socket_name(name), self._let_in)
        except OSError as error:
            message = f"transport device: {error}"
            raise PartUnavailable(message) from error
        self._address = hashlib.sha256(parts).digest()[:_IDENTITY_BYTES] + name

    def reaches(self, address: bytes) -> bool:
        """Whether a worker at ``address`` has its blocks in the same GPU, and each can read the other's."""
        return len(address) == len(self._address) and address.startswith(self._address[:_IDENTITY_BYTES])

    async def connect(self, address: bytes) -> "DevicePeer":
        """Return a peer."""
        return DevicePeer(self, address)

    async def close(self) -> None:
        """Abort everything and become unreachable."""
        if self._doorway is None:
            return
        self._doorway.close()
        self._doorway = None
        for arrival in (*self._ledger.arrivals(), *(copy.match.arrival for copy in self._copies)):
            arrival.owner.abort()
        for link in list(self._sending.values()):
            link.fail(WorkerLost("the transport was closed"))
        self._sending.clear()
        for receiving in list(self._receiving):
            receiving.close()
        self._receiving.clear()

    # Sending

    def link_to(self, address: bytes) -> SendingEnd:
        """Return the link to ``address``, made when there is none. Raises `WorkerLost`."""
        if self._doorway is None:
            message = "the transport was closed"
            raise WorkerLost(message)
        link = self._sending.get(address)
        if link is None:
            name = _socket_name(address[_IDENTITY_BYTES:])
            link = self._sending[address] = SendingEnd(self._loop, name, lambda: self._lose_sending(address))
        return link

    def withdraw(self, address: bytes, owner: "DevicePeer") -> None:
        """Take back what ``owner`` has offered there and nobody awaits."""
        if (link := self._sending.get(address)) is not None:
            link.withdraw(owner)

    def _lose_sending(self, address: bytes) -> None:
        self._sending.pop(address, None)

    # Receiving

    def _let_in(self, connected: socket.socket) -> None:
        self._receiving.add(ReceivingEnd(self._loop, connected, self.memory.reader, self._hear, self._lose_receiving))

    def _hear(self, link: ReceivingEnd, packet: bytes) -> None:
        match Kind(packet[0]):
            case Kind.MEMORY:
                self.memory.learn(link.reader, packet[1:])
            case Kind.ROWS:
                self._fetch(self._ledger.take(offer_of(link, packet)))
            case Kind.WITHDRAWAL:
                number = withdrawn_number(packet)
                for offer in self._ledger.drop(lambda offer: offer.source is link and offer.number == number):
                    offer.fate = Fate.WITHDRAWN
                    offer.count_fetched(offer.unmet)

    def _lose_receiving(self, link: ReceivingEnd) -> None:
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
            copy.match.offer.count_fetched(copy.plan.rows_left)

    def _fetch(self, matches: list[Match[DeviceOffer]]) -> None:
        for match in matches:
            arrival, offer = match.arrival, match.offer
            if arrival.over:
                offer.count_fetched(match.count)
            elif offer.rows.row_bytes > arrival.rows.row_bytes:
                offer.count_fetched(match.count)
                reason = f"a block of {offer.rows.row_bytes} bytes came for one of {arrival.rows.row_bytes}"
                _fail(arrival, TransferFailed(reason))
            else:
                here, there = _part(arrival.rows, match.places), _part(offer.rows, match.offered)
                plan = DevicePlan(self.memory, arrival.matrix, here, there)
                self._copies.append(_Copy(match, plan, places_in(match.places, arrival.tags.count)))
        if self._copies and not self._turning:
            self._turn()

    def _turn(self) -> None:
        """Copy a slice, and go on after the event loop has seen to others."""
        self._turning = bool(self._copies)
        if self._copies:
            self._copy_slice(self._copies[0])
            self._loop.call_soon(self._turn)

    def _copy_slice(self, copy: "_Copy") -> None:
        match, done = copy.match, len(copy.places) - copy.plan.rows_left
        try:
            rows = copy.plan.read(match.offer.source.reader)
        except OSError as error:
            match.offer.fate = Fate.UNREADABLE
            _fail(match.arrival, WorkerLost(str(error)) if error.errno == errno.ESRCH else TransferFailed(str(error)))
            return
        if not copy.plan.rows_left:
            self._copies.popleft()
        match.offer.count_fetched(rows)
        arrival, places = match.arrival, copy.places[done : done + rows]
        arrival.missing -= len(places)
        arrival.landed(places)
        if not arrival.missing and not arrival.over:
            arrival.owner.finish(arrival)


@dataclass(slots=True, eq=False)
class _Copy:
    """Rows that are being fetched."""

    match: Match[DeviceOffer]
    plan: DevicePlan
    places: Sequence[int]


class DevicePeer:
    """See `kv_transfer.transport.Peer`."""

    def __init__(self, transport: DeviceTransport, address: bytes) -> None:
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
        """Post sends. Raises `TransferFailed` for memory that no other process can read."""
        link, rows = self._transport.link_to(self._address), self._transport.rows.find(lot)
        description = self._transport.memory.describe(rows.base)
        parts = [slice(first, first + MOST_ROWS) for first in range(0, len(lot), MOST_ROWS)]
        return all_done(
            [
                link.offer(self, lot.rows, rows.part(part), tags_of(lot.tag, lot.numbers[part]), description)
                for part in parts
            ]
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
        self._transport.withdraw(self._address, self)


def _part(rows: RowsAt, places: Places) -> RowsAt:
    return RowsAt(rows.base, rows.stride, rows.row_bytes, chosen(rows.indices, places))


def _fail(arrival: Arrival, error: LegFailed) -> None:
    settle(arrival.done, error)
    arrival.owner.abort()


def _socket_name(name: bytes) -> str:
    return f"baton-gpu-{name.hex()}"
