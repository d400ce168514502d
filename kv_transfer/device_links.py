"""Sockets between two workers of one GPU, and what is said over them, as `kv_transfer.device_transport` uses them.

The sender describes memory, offers rows of it, and takes offers back; the receiver says what became of an offer. A link
ends when either end closes or dies: the kernel tells at once.
"""

import os
import socket
import struct
from asyncio import AbstractEventLoop, Future
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np

from cluster_core.errors import TransferFailed, WorkerLost
from kv_transfer.host_links import PacketSocket
from kv_transfer.lot_ledger import Tags
from kv_transfer.lots import settle
from kv_transfer.rows import RowsAt

MOST_ROWS = 4096
"""In one offer: a packet must fit into what a socket buffers."""
_OFFER = struct.Struct("<B3xIIIQQQQ")  # kind, number, rows, 1 if the tags are consecutive, tag, row bytes, base, stride
_WORD = struct.Struct("<B3xI")  # kind or fate, number
_CREDENTIALS = struct.Struct("3i")  # process, user, group


class Kind(IntEnum):
    """The first byte of a sender's packet."""

    MEMORY = 1
    ROWS = 2
    WITHDRAWAL = 3


class Fate(IntEnum):
    """The first byte of a receiver's packet: what became of an offer."""

    FETCHED = 1
    """Nothing of it will be read any more."""
    UNREADABLE = 2
    WITHDRAWN = 3


_REASONS = {
    Fate.UNREADABLE: "the receiver cannot read this process's GPU memory",
    Fate.WITHDRAWN: "it was taken back before anybody awaited it",
}


@dataclass(slots=True, eq=False, kw_only=True)
class DeviceOffer:
    """Rows that a sender has."""

    source: "ReceivingEnd"
    number: int
    tags: Tags
    rows: RowsAt
    unmet: int = field(init=False)
    unfetched: int = field(init=False)
    fate: Fate = Fate.FETCHED

    def __post_init__(self) -> None:
        """Nothing is fetched yet."""
        self.unmet = self.unfetched = self.tags.count

    def count_fetched(self, rows: int) -> None:
        """Tell the sender when nothing of it will be read any more."""
        self.unfetched -= rows
        if not self.unfetched:
            self.source.say(_WORD.pack(self.fate, self.number))


def rows_packet(number: int, tags: Tags, rows: RowsAt) -> bytes:
    """Return the offer of ``rows``."""
    head = _OFFER.pack(
        Kind.ROWS, number, tags.count, tags.numbers is None, tags.first, rows.row_bytes, rows.base, rows.stride
    )
    numbers = b"" if tags.numbers is None else np.asarray(tags.numbers, np.uint32).tobytes()
    return b"".join((head, numbers, np.asarray(rows.indices, np.uint32).tobytes()))


def offer_of(source: "ReceivingEnd", packet: bytes) -> DeviceOffer:
    """Return what a packet of rows says; ``source`` is where it came from."""
    _, number, count, consecutive, first, row_bytes, base, stride = _OFFER.unpack_from(packet)
    listed = np.frombuffer(packet, np.uint32, offset=_OFFER.size).astype(np.int64).tolist()
    tags = Tags(first, count, None if consecutive else listed[:count])
    return DeviceOffer(source=source, number=number, tags=tags, rows=RowsAt(base, stride, row_bytes, listed[-count:]))


def withdrawn_number(packet: bytes) -> int:
    """Return the number of the offer that is taken back."""
    number: int = _WORD.unpack(packet)[1]
    return number


class SendingEnd:
    """The end of a worker that has blocks: its offers, until they have been fetched."""

    def __init__(self, loop: AbstractEventLoop, name: str, ended: Callable[[], None]) -> None:
        """Connect to the socket ``name``. Raises `WorkerLost` where nobody listens."""
        connected = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            connected.settimeout(0)
            connected.connect(f"\0{name}")
        except OSError as error:
            connected.close()
            message = f"nobody listens at {name}: {error}"
            raise WorkerLost(message) from error
        self._loop = loop
        self._ended = ended
        self._described: set[bytes] = set()
        self._offers: dict[int, tuple[Future[None], Any, Any]] = {}
        self._last = 0
        self._packets = PacketSocket(loop, connected, self._hear, self._lost)

    def offer(self, owner: Any, matrix: Any, rows: RowsAt, tags: Tags, description: bytes) -> "Future[None]":
        """Offer ``rows`` of ``matrix``, in memory that is described so; the future is done when they were fetched."""
        if description not in self._described:
            self._described.add(description)
            self._packets.say(bytes((Kind.MEMORY,)) + description)
        self._last = (self._last + 1) & 0xFFFFFFFF
        done: Future[None] = self._loop.create_future()
        self._offers[self._last] = done, owner, matrix
        self._packets.say(rows_packet(self._last, tags, rows))
        return done

    def withdraw(self, owner: Any) -> None:
        """Take back what of ``owner``'s offers nobody awaits."""
        for number, (_done, whose, _matrix) in self._offers.items():
            if whose is owner:
                self._packets.say(_WORD.pack(Kind.WITHDRAWAL, number))

    def _hear(self, packet: Any) -> None:
        fate, number = _WORD.unpack(bytes(packet))
        done, _owner, _matrix = self._offers.pop(number)
        reason = _REASONS.get(fate)
        settle(done, None if reason is None else TransferFailed(reason))

    def _lost(self) -> None:
        self._ended()
        self.fail(WorkerLost("the receiver is gone"))

    def fail(self, error: WorkerLost) -> None:
        """Close the link; whatever was not fetched ends with ``error``."""
        self._packets.close()
        for done, _owner, _matrix in self._offers.values():
            settle(done, error)
        self._offers.clear()


class ReceivingEnd:
    """The end of a worker that wants blocks. ``reader`` is its owner's way to the sender's memory."""

    def __init__(
        self,
        loop: AbstractEventLoop,
        connected: socket.socket,
        reader_of: Callable[[int], Any],
        heard: "Callable[[ReceivingEnd, bytes], None]",
        ended: "Callable[[ReceivingEnd], None]",
    ) -> None:
        """Raise `OSError` when the sender is another user's process, or dead."""
        pid, user, _group = _CREDENTIALS.unpack(
            connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        )
        if user != os.getuid():
            message = f"process {pid} is another user's"
            raise PermissionError(message)
        self.reader = reader_of(pid)
        self._alive = True
        self._ended = ended
        self._packets = PacketSocket(loop, connected, lambda packet: heard(self, bytes(packet)), self._end)

    def say(self, packet: bytes) -> None:
        """Tell the sender."""
        self._packets.say(packet)

    def _end(self) -> None:
        self._ended(self)
        self.close()

    def close(self) -> None:
        """Close the link. Can be repeated."""
        if self._alive:
            self._alive = False
            self._packets.close()
            self.reader.close()
