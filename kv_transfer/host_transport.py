"""Between two processes of one machine and user: the receiver copies blocks out of the sender's memory itself.

Life of a lot. The sender says what it has, in one packet (an `Offer`); the receiver knows what it awaits (an
`Arrival`). What has met (a `Match`) is copied: a few rows at once, by the very call that heard of them, more as
`kv_transfer.host_copies` tells. When the last row of an offer is copied the sender hears that its blocks are its own.
So all writing into a block is done by its owner: an abort ends it at once, no other process can write too late, and a
sender that dies is an error of one call. Small lots travel in the packet itself.

UCX's own way (CMA) makes the same system call for each block by itself, and a dozen Python objects around it: that is
what `docs/decisions/lots-on-one-host.md` is about. Memory of a GPU cannot be read so.
"""

import asyncio
import hashlib
import os
import secrets
import socket
from asyncio import Future
from pathlib import Path
from typing import Any

from cluster_core.errors import PartUnavailable, TransferFailed, WorkerLost
from kv_transfer.host_copies import Copies, count_fetched, end, fail, failure_of, note_landed
from kv_transfer.host_links import Doorway, ReceivingLink, SendingLink
from kv_transfer.host_messages import MOST_ROWS, Fate, Head, Kind, content_of, head_of, offer_of, put_content, rows_of
from kv_transfer.host_pace import FIRST_BYTES
from kv_transfer.lot_ledger import Arrival, LotLedger, Match, Offer, chosen, places_in, tags_of
from kv_transfer.lots import Landed, Lot, all_done, settle
from kv_transfer.process_memory import FEW_ROWS, read_few, reading_works
from kv_transfer.rows import RowFinder, nobody_hears, one_row

_SMALL_BYTES = FIRST_BYTES
_PACKETS = "packets 2"
"""What is said over the sockets: workers that say it otherwise do not reach each other so."""
_NAME_BYTES = 16
_IDENTITY_BYTES = 16


def host_identity() -> bytes:
    """Return what processes have in common that can read each other and meet at a socket: machine, user, namespaces.

    Raises `PartUnavailable` where that cannot be known.
    """
    try:
        parts = [
            Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip(),
            str(os.getuid()),
            _PACKETS,
        ]
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
        self.rows = RowFinder()
        self._sending: dict[bytes, SendingLink] = {}
        self._receiving: set[ReceivingLink] = set()
        self._doorway: Doorway | None = None
        self._copies: Copies

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
        self._copies = Copies(self._loop)
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
        for arrival in self._copies.arrivals():
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

    def existing_link(self, address: bytes) -> SendingLink | None:
        """Return the link to ``address`` if there is one."""
        return self._sending.get(address)

    def _lose_sending(self, address: bytes) -> None:
        self._sending.pop(address, None)

    # Receiving

    def _let_in(self, connected: socket.socket) -> None:
        self._receiving.add(ReceivingLink(self._loop, connected, self._hear, self._lose_receiving))

    def _hear(self, link: ReceivingLink, packet: memoryview) -> None:
        head = head_of(packet)
        if head.kind == Kind.WITHDRAWAL:
            self._withdraw(link, head.number)
            return
        arrival = self._ledger.whole(head.first, head.rows) if head.consecutive else None
        if arrival is None or self._copies.waiting() or not _is_small(head, arrival):
            self._fetch(self._ledger.take(offer_of(link, head, packet)))
            return
        self._ledger.forget(arrival)
        self._land(link, head, packet, arrival)

    def _land(self, link: ReceivingLink, head: Head, packet: memoryview, arrival: Arrival) -> None:
        """Copy a small lot that is all of what ``arrival`` awaits: what the general way does, in fewer steps."""
        if head.kind == Kind.CONTENT:
            put_content(arrival.matrix, arrival.rows.indices, content_of(head, packet))
            note_landed(arrival, range(head.rows))
            return
        try:
            read_few(link.reader, arrival.rows, rows_of(head, packet))
        except OSError as error:
            fail(arrival, failure_of(error))
            link.answer(Fate.UNREADABLE, head.number)
        else:
            note_landed(arrival, range(head.rows))
            link.answer(Fate.FETCHED, head.number)

    def _withdraw(self, link: ReceivingLink, number: int) -> None:
        for offer in self._ledger.drop(lambda offer: offer.source is link and offer.number == number):
            offer.withdrawn = True
            count_fetched(offer, offer.unmet)

    def _lose_receiving(self, link: ReceivingLink) -> None:
        self._receiving.discard(link)
        self._ledger.drop(lambda offer: offer.source is link)
        for arrival in self._copies.from_source(link):
            if not arrival.over:
                fail(arrival, WorkerLost("the sender is gone"))

    def post(self, arrival: Arrival) -> None:
        """Await a lot. What has been offered before is fetched in a later turn, never from within this call."""
        if matches := self._ledger.post(arrival):
            self._loop.call_soon(self._fetch, matches)

    def drop(self, arrivals: set[Arrival]) -> None:
        """Fetch nothing for ``arrivals`` any more: they are over as `host_copies.end` tells."""
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
            end(arrival)
        link = self._transport.existing_link(self._address)
        if link is not None:
            link.withdraw(self)


def _is_small(head: Head, arrival: Arrival) -> bool:
    """Whether a lot may be copied there and then."""
    rows, length = head.rows, head.row_bytes
    return rows <= FEW_ROWS and rows * length <= _SMALL_BYTES and length <= arrival.rows.row_bytes


def _socket_name(name: bytes) -> str:
    return f"baton-kv-{name.hex()}"
