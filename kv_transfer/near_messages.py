"""What the two ends of a `kv_transfer.near_transport` link say to each other: packets on a Unix socket.

The sender: an offer of rows by their addresses, an offer with the rows themselves (small ones), that it takes an offer
back, or a description of memory that it is going to offer rows of. The receiver: what became of an offer.
"""

import struct
from array import array
from collections.abc import Iterable, Iterator, Sequence
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kv_transfer.lot_ledger import Offer, Tags
from kv_transfer.rows import RowsAt

MOST_ROWS = 8192
"""In one offer: a packet must fit into what a socket buffers, 200 KiB by default."""
MOST_CONTENT_BYTES = 16384
"""Rows of no more than this in all travel in the packet itself: it is sooner there than its rows are fetched."""
MOST_PACKET_BYTES = 131072
_HEAD = struct.Struct("<BxxxIIIQQQQ")
_ANSWER = struct.Struct("<BxxxI")
_ANSWERS_A_PACKET = 1024
_FEW_ROWS = 4
"""So few are quicker copied one by one than by NumPy."""


class Kind(IntEnum):
    """The first byte of a sender's packet."""

    ROWS = 1
    CONTENT = 2
    WITHDRAWAL = 3
    MEMORY = 4


class Head(NamedTuple):
    """What every packet of a sender begins with; a withdrawal says nothing but the number, a description not even it.

    Neither says that tags are consecutive.
    """

    kind: int
    number: int
    rows: int
    """How many."""
    consecutive: int
    """1 if their tags are."""
    first: int
    """The first tag, or what is added to each number."""
    row_bytes: int
    base: int
    stride: int


class Fate(IntEnum):
    """What became of an offer. A packet of the receiver has one or more, each with the number of its offer."""

    FETCHED = 1
    """Nothing of it will be read any more."""
    UNREADABLE = 2
    WITHDRAWN = 3


def rows_packet(number: int, tags: Tags, rows: RowsAt) -> bytes:
    """Return the offer of ``rows``, to be read where they lie."""
    head = _HEAD.pack(
        Kind.ROWS, number, tags.count, tags.numbers is None, tags.first, rows.row_bytes, rows.base, rows.stride
    )
    return b"".join((head, _listed(tags), array("I", rows.indices).tobytes()))


def content_packet(number: int, tags: Tags, matrix: NDArray[np.uint8], indices: Sequence[int]) -> bytes:
    """Return the offer that has the rows themselves: ``indices`` of ``matrix``."""
    head = _HEAD.pack(Kind.CONTENT, number, tags.count, tags.numbers is None, tags.first, matrix.shape[1], 0, 0)
    if len(indices) <= _FEW_ROWS:
        return b"".join((head, _listed(tags), *[matrix[index].data for index in indices]))
    return b"".join((head, _listed(tags), matrix[list(indices)].data))


def withdrawal_packet(number: int) -> bytes:
    """Return that an offer is taken back, as far as nobody has met it."""
    return _HEAD.pack(Kind.WITHDRAWAL, number, 0, 0, 0, 0, 0, 0)


def memory_packet(description: bytes) -> bytes:
    """Return what must be known before the next offers are read."""
    return _HEAD.pack(Kind.MEMORY, 0, 0, 0, 0, 0, 0, 0) + description


def description_of(packet: memoryview) -> bytes:
    """Return what a `memory_packet` describes."""
    return bytes(packet[_HEAD.size :])


def _listed(tags: Tags) -> bytes:
    return b"" if tags.numbers is None else array("I", tags.numbers).tobytes()


def head_of(packet: memoryview) -> Head:
    """Return what a sender's packet begins with."""
    return Head._make(_HEAD.unpack_from(packet))


def rows_of(head: Head, packet: memoryview) -> RowsAt:
    """Return where the rows of an offer lie. The answer refers to the packet."""
    start = _HEAD.size + (0 if head.consecutive else 4 * head.rows)
    return RowsAt(head.base, head.stride, head.row_bytes, packet[start:].cast("I"))


def content_of(head: Head, packet: memoryview) -> NDArray[np.uint8]:
    """Return the rows that came with an offer. The answer refers to the packet."""
    start = _HEAD.size + (0 if head.consecutive else 4 * head.rows)
    content = np.frombuffer(packet, np.uint8, head.rows * head.row_bytes, start)
    return content.reshape(head.rows, head.row_bytes)


def put_content(matrix: NDArray[np.uint8], indices: Sequence[int], content: NDArray[np.uint8]) -> None:
    """Copy rows that came into those of ``matrix`` that are ``indices``, which may be longer."""
    length = content.shape[1]
    if len(indices) <= _FEW_ROWS:
        for place, index in enumerate(indices):
            matrix[index, :length] = content[place]
    else:
        matrix[list(indices), :length] = content


def offer_of(source: Any, head: Head, packet: memoryview) -> Offer:
    """Return what a packet of rows or content says; ``source`` is where it came from. The packet may change then."""
    packet = memoryview(bytes(packet))
    numbers = None if head.consecutive else packet[_HEAD.size : _HEAD.size + 4 * head.rows].cast("I").tolist()
    tags = Tags(head.first, head.rows, numbers)
    if head.kind == Kind.CONTENT:
        rows, content = RowsAt(0, 0, head.row_bytes, ()), content_of(head, packet)
        return Offer(source=source, number=head.number, tags=tags, rows=rows, content=content)
    return Offer(source=source, number=head.number, tags=tags, rows=rows_of(head, packet))


def answers_packets(answers: Sequence[tuple[Fate, int]]) -> Iterator[bytes]:
    """Yield packets that tell what became of offers: fates and numbers."""
    for first in range(0, len(answers), _ANSWERS_A_PACKET):
        yield b"".join([_ANSWER.pack(fate, number) for fate, number in answers[first : first + _ANSWERS_A_PACKET]])


def answers_of(packet: memoryview) -> Iterable[tuple[int, int]]:
    """Return what became of which offers: fates and numbers."""
    return _ANSWER.iter_unpack(packet)
