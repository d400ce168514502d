"""Between two processes of one machine and user whose blocks lie in one memory: the receiver copies them out itself.

Life of a lot. The sender says what it has, in one packet (an `Offer`); the receiver knows what it awaits (an
`Arrival`). What has met (a `Match`) is copied by the receiver, as its kind of memory is copied (`Copies`). When the
last row of an offer is copied the sender hears that its blocks are its own. So all writing into a block is done by its
owner: an abort ends it at once, no other process can write too late, and a sender that dies is an error of one call.

There are two kinds of memory: `kv_transfer.host_transport` and `kv_transfer.device_transport`.
"""

import asyncio
import hashlib
import os
import secrets
import socket
from asyncio import AbstractEventLoop, Future
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster_core.errors import PartUnavailable, TransferFailed, WorkerLost
from kv_transfer.lot_ledger import Arrival, LotLedger, Match, Offer, chosen, places_in, tags_of
from kv_transfer.lots import Landed, Lot, all_done, settle
from kv_transfer.near_copies import Copies, NearMemory, count_fetched, end, fail, note_landed
from kv_transfer.near_links import Doorway, ReceivingLink, SendingLink
from kv_transfer.near_messages import MOST_ROWS, Kind, description_of, head_of, offer_of, put_content
from kv_transfer.rows import RowFinder, nobody_hears, one_row

_PACKETS = "packets 2"
"""What is said over the sockets: workers that say it otherwise do not reach each other so."""
_NAME_BYTES = _IDENTITY_BYTES = 16


class NearTransport:
    """See `kv_transfer.transport.Transport`."""

    def __init__(self, name: str, memory: NearMemory, new_copies: Callable[[AbstractEventLoop], Copies]) -> None:
        """``memory`` is the kind that all blocks lie in."""
        self.name = name
        self.memory = memory
        self.rows = RowFinder()
        self._new_copies = new_copies
        self._address = b""
        self._ledger: LotLedger[Offer] = LotLedger()
        self._sending: dict[bytes, SendingLink] = {}
        self._receiving: set[ReceivingLink] = set()
        self._doorway: Doorway | None = None
        self._copies: Copies

    @property
    def address(self) -> bytes:
        """What both must have in common, the machine and user for instance, and the name of a socket."""
        assert self._address, "start() comes first"
        return self._address

    async def start(self) -> None:
        """Listen. Raises `PartUnavailable` where processes may not read each other."""
        identity = self._identity()
        self._loop = asyncio.get_running_loop()
        self._copies = self._new_copies(self._loop)
        name = secrets.token_bytes(_NAME_BYTES)
        try:
            self._doorway = Doorway(_socket_name(name), self._let_in)
        except OSError as error:
            message = f"transport {self.name}: {error}"
            raise PartUnavailable(message) from error
        self._address = identity + name

    def _identity(self) -> bytes:
        """Return what processes have in common that meet at a socket and read each other. Raises `PartUnavailable`."""
        try:
            parts = [
                Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip(),
                str(os.getuid()),
                _PACKETS,
            ]
            parts += [os.readlink(f"/proc/self/ns/{kind}") for kind in ("pid", "net", "user")]  # noqa: PTH115  # no path
        except OSError as error:
            message = f"transport {self.name}: {error}"
            raise PartUnavailable(message) from error
        told = " ".join(parts).encode() + self.memory.start()
        return hashlib.sha256(told).digest()[:_IDENTITY_BYTES]

    def reaches(self, address: bytes) -> bool:
        """Whether a worker at ``address`` has its blocks in the same memory, and each can read the other's."""
        return len(address) == len(self._address) and address.startswith(self._address[:_IDENTITY_BYTES])

    async def connect(self, address: bytes) -> "NearPeer":
        """Return a peer."""
        return NearPeer(self, address)

    async def close(self) -> None:
        """Abort everything and become unreachable."""
        if self._doorway is None:
            return
        self._doorway.close()
        self._doorway = None
        for arrival in (*self._ledger.arrivals(), *(match.arrival for match in self._copies.under_way())):
            arrival.owner.abort()
        self._copies.close()
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

    def withdraw(self, address: bytes, owner: "NearPeer") -> None:
        """Take back what ``owner`` has offered there and nobody awaits."""
        if (link := self._sending.get(address)) is not None:
            link.withdraw(owner)

    def _lose_sending(self, address: bytes) -> None:
        self._sending.pop(address, None)

    # Receiving

    def _let_in(self, connected: socket.socket) -> None:
        self._receiving.add(ReceivingLink(self._loop, connected, self.memory.reader, self._hear, self._lose_receiving))

    def _hear(self, link: ReceivingLink, packet: memoryview) -> None:
        head = head_of(packet)
        arrival = self._ledger.whole(head.first, head.rows) if head.consecutive else None
        if arrival is not None and self._copies.took_at_once(link, head, packet, arrival):
            self._ledger.forget(arrival)
            return
        match head.kind:
            case Kind.MEMORY:
                self.memory.learn(link.reader, description_of(packet))
            case Kind.WITHDRAWAL:
                self._withdraw(link, head.number)
            case _:
                self._fetch(self._ledger.take(offer_of(link, head, packet)))

    def _withdraw(self, link: ReceivingLink, number: int) -> None:
        for offer in self._ledger.drop(lambda offer: offer.source is link and offer.number == number):
            offer.withdrawn = True
            count_fetched(offer, offer.unmet)

    def _lose_receiving(self, link: ReceivingLink) -> None:
        self._receiving.discard(link)
        self._ledger.drop(lambda offer: offer.source is link)
        for arrival in {match.arrival for match in self._copies.under_way() if match.offer.source is link}:
            if not arrival.over:
                fail(arrival, WorkerLost("the sender is gone"))

    def post(self, arrival: Arrival) -> None:
        """Await a lot. What has been offered before is fetched in a later turn, never from within this call."""
        if matches := self._ledger.post(arrival):
            self._loop.call_soon(self._fetch, matches)

    def drop(self, arrivals: set[Arrival]) -> None:
        """Fetch nothing for ``arrivals`` any more: they are over as `kv_transfer.near_copies.end` tells."""
        for arrival in arrivals:
            arrival.over = True
            self._ledger.forget(arrival)
        self._copies.drop()

    def _fetch(self, matches: list[Match[Offer]]) -> None:
        for match in matches:
            arrival, offer = match.arrival, match.offer
            if arrival.over:
                count_fetched(offer, match.count)
            elif offer.rows.row_bytes > arrival.rows.row_bytes:
                count_fetched(offer, match.count)
                reason = f"a block of {offer.rows.row_bytes} bytes came for one of {arrival.rows.row_bytes}"
                fail(arrival, TransferFailed(reason))
            elif offer.content is not None:
                put_content(arrival.matrix, chosen(arrival.rows.indices, match.places), offer.content[match.offered])
                note_landed(arrival, places_in(match.places, arrival.tags.count))
            else:
                self._copies.add(match)
        self._copies.go_on()


class NearPeer:
    """See `kv_transfer.transport.Peer`."""

    def __init__(self, transport: NearTransport, address: bytes) -> None:
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
        described = self._transport.memory.describe(rows.base)
        if len(lot) <= MOST_ROWS:
            return link.offer(self, lot.rows, rows, tags_of(lot.tag, lot.numbers), described)
        parts = [slice(first, first + MOST_ROWS) for first in range(0, len(lot), MOST_ROWS)]
        return all_done(
            [
                link.offer(self, lot.rows, rows.part(part), tags_of(lot.tag, lot.numbers[part]), described)
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
            end(arrival)
        self._transport.withdraw(self._address, self)


def _socket_name(name: bytes) -> str:
    return f"baton-kv-{name.hex()}"
