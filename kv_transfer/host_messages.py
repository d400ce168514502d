"""What the two ends of a `kv_transfer.host_transport` link say to each other: packets on a Unix socket.

The sender: an offer of rows by their addresses, an offer with the rows themselves (small ones), or that it takes an
offer back. The receiver: what became of an offer.
"""

import struct
from array import array
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kv_transfer.lot_ledger import Offer, Tags
from kv_transfer.rows import RowsAt

MOST_ROWS = 8192
"""In one offer: a packet must fit into what a socket buffers, 200 KiB by default."""
MOST_CONTENT_BYTES = 16384
"""Rows of no more than this in all travel in the packet itself: it is sooner there than its rows are fetched."""
MOST_PACKET_BYTES = 131072
_OFFER = struct.Struct(
    "<BxxxIIIQQQQ"
)  # kind, number, rows, 1 if the tags are consecutive, tag, row bytes, base, stride
_WITHDRAWAL = struct.Struct("<BxxxI")
_ANSWER = struct.Struct("<BxxxI")


class Kind(IntEnum):
    """The first byte of a sender's packet."""

    ROWS = 1
    CONTENT = 2
    WITHDRAWAL = 3


class Fate(IntEnum):
    """The first byte of a receiver's packet: what became of an offer."""

    FETCHED = 1
    """Nothing of it will be read any more."""
    UNREADABLE = 2
    WITHDRAWN = 3


def rows_packet(number: int, tags: Tags, rows: RowsAt) -> bytes:
    """Return the offer of ``rows``, to be read where they lie."""
    head = _OFFER.pack(
        Kind.ROWS, number, tags.count, tags.numbers is None, tags.first, rows.row_bytes, rows.base, rows.stride
    )
    return b"".join((head, _listed(tags), array("I", rows.indices).tobytes()))


def content_packet(number: int, tags: Tags, content: NDArray[np.uint8]) -> bytes:
    """Return the offer that has the rows themselves: the matrix ``content``."""
    head = _OFFER.pack(Kind.CONTENT, number, tags.count, tags.numbers is None, tags.first, content.shape[1], 0, 0)
    return b"".join((head, _listed(tags), content.tobytes()))


def withdrawal_packet(number: int) -> bytes:
    """Return that an offer is taken back, as far as nobody has met it."""
    return _WITHDRAWAL.pack(Kind.WITHDRAWAL, number)


def _listed(tags: Tags) -> bytes:
    return b"" if tags.numbers is None else array("I", tags.numbers).tobytes()


def offer_of(source: Any, packet: bytes) -> Offer:
    """Return what a packet of rows or content says; ``source`` is where it came from."""
    kind, number, count, consecutive, first, row_bytes, base, stride = _OFFER.unpack_from(packet)
    start = _OFFER.size
    numbers = None
    if not consecutive:
        numbers = memoryview(packet)[start : start + 4 * count].cast("I").tolist()
        start += 4 * count
    tags = Tags(first, count, numbers)
    if kind == Kind.CONTENT:
        content = np.frombuffer(packet, np.uint8, count * row_bytes, start).reshape(count, row_bytes)
        return Offer(source=source, number=number, tags=tags, rows=RowsAt(0, 0, row_bytes, ()), content=content)
    indices = memoryview(packet)[start:].cast("I")
    return Offer(source=source, number=number, tags=tags, rows=RowsAt(base, stride, row_bytes, indices))


def withdrawal_of(packet: bytes) -> int:
    """Return the number of the offer that is taken back."""
    number: int = _WITHDRAWAL.unpack(packet)[1]
    return number


def answer_packet(fate: Fate, number: int) -> bytes:
    """Return what became of offer ``number``."""
    return _ANSWER.pack(fate, number)


def answer_of(packet: bytes) -> tuple[Fate, int]:
    """Return what became of which offer."""
    fate, number = _ANSWER.unpack(packet)
    return Fate(fate), number
