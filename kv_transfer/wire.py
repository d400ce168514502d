"""Whether blocks are rounded on their way, and where they lie meanwhile (see `kv_transfer.wire_codec` for how).

Both sides must be configured for the same format. The importer offers it where the link, as measured, is so slow that
the bytes saved take longer than expanding; the exporter takes the offer where packing does not eat up the rest. So a
fast link is never made slower, and off, which is the default, costs nothing: torch is not even loaded.

What came rounded serves its own request. It is not sealed: no other request finds it, no other worker borrows it.
"""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from cluster_core.blocks import BlockReference
from cluster_core.errors import TransferFailed
from cluster_core.handoff import EXACT, WireOffer
from cluster_core.identity import Incarnation, WorkerId
from cluster_core.layout import KvLayout
from kv_transfer.digest import BlockDigests
from kv_transfer.link_book import LinkBook
from kv_transfer.memory import BlockMemory
from kv_transfer.settings import TransferSettings

LOT_BYTES = 1 << 20
"""Most exact bytes that are packed in one turn of the event loop: a millisecond or two. They travel as one lot."""
_MEASURED_BLOCKS = 64
"""As many are digested, at most, to see what that costs here."""


class _Desk:
    """Where blocks are laid to be packed: a copy that nobody else writes to."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows
        """As those of the pool, and where they are."""

    def buffer(self, index: int) -> Any:
        """Return a copy's bytes."""
        return self.rows[index]


class Wire:
    """One worker's side: its codec, what it costs here, and staging memory, which is used again and again."""

    def __init__(self, codec: Any, memory: BlockMemory) -> None:
        """``codec`` is a `kv_transfer.wire_codec.WireCodec`; what it costs is measured here and now."""
        self.format: str = codec.name
        self.packed_bytes: int = codec.packed_bytes
        self.lot_blocks = max(1, LOT_BYTES // memory.block_bytes)
        self._codec = codec
        self._memory = memory
        self._saved = 1.0 - codec.packed_bytes / memory.block_bytes
        """The share of a block's bytes that need not travel."""
        self._desk = _Desk(self._new_rows(self.lot_blocks, memory.block_bytes))
        self._digests = BlockDigests(self._desk)
        pack_s_per_byte, self._unpack_s_per_byte = codec.measure(memory.rows)
        self._pack_s_per_byte = pack_s_per_byte + self._digest_s_per_byte()
        self._shelves: dict[int, list[Any]] = {}

    def offer(self, exporter: WorkerId, incarnation: Incarnation, links: LinkBook) -> WireOffer | None:
        """Return what an importer says to ``exporter``; None where it cannot pay, or the link was not measured."""
        link = links.known(exporter, incarnation)
        if link is None:
            return None
        gain_s_per_byte = self._saved / link.large_in_bytes_per_s - self._unpack_s_per_byte
        return WireOffer(format=self.format, gain_s_per_byte=gain_s_per_byte) if gain_s_per_byte > 0 else None

    def suits(self, offer: WireOffer | None) -> bool:
        """Whether an exporter should take ``offer``."""
        return offer is not None and offer.format == self.format and self._pack_s_per_byte < offer.gain_s_per_byte

    def take_rows(self, count: int) -> Any:
        """Return a matrix for ``count`` packed blocks or more, nobody else's until it is given back."""
        wanted = 1 << (count - 1).bit_length()
        shelf = self._shelves.setdefault(wanted, [])
        if shelf:
            return shelf.pop()
        return self._new_rows(wanted, self.packed_bytes)

    def _new_rows(self, count: int, row_bytes: int) -> Any:
        rows, shape = self._memory.rows, (count, row_bytes)
        return np.empty(shape, np.uint8) if isinstance(rows, np.ndarray) else rows.new_empty(shape)

    def give_back(self, rows: Any) -> None:
        """Put staging memory back: nothing reads or writes it any more."""
        self._shelves[len(rows)].append(rows)

    def pack(self, blocks: Sequence[BlockReference]) -> Any:
        """Return staging memory with ``blocks``, packed; at most `lot_blocks`.

        With each goes the digest of the very bytes that were packed, not the one that was sealed: the block is copied
        once, and both are made of the copy. So what happens to a block after it was sealed shows at the importer, as
        with blocks that travel as they are, and nothing can happen between its digest and its packing.
        """
        count = len(blocks)
        copies = self._desk.rows[:count]
        assert len(copies) == count, f"{count} blocks are more than a lot"
        self._codec.copy(self._memory.rows, [block.index for block in blocks], copies)
        digests = self._digests.of(range(count), [block.position for block in blocks], [block.hash for block in blocks])
        staged = self.take_rows(count)
        self._codec.pack(copies, list(digests), staged[:count])
        return staged

    def _digest_s_per_byte(self) -> float:
        places = range(min(self.lot_blocks, _MEASURED_BLOCKS))
        times: list[float] = []
        for _ in range(3):
            began = time.perf_counter()
            self._digests.of(places, places, [None] * len(places))
            times.append(time.perf_counter() - began)
        return min(times) / (len(places) * self._memory.block_bytes)

    def unpack(self, row: Any, index: int) -> bytes:
        """Fill block ``index`` from a packed one; returns the digest that it had, or none (empty) if it is damaged."""
        return self._codec.unpack(row, self._memory.rows[index]) or b""


def agreed(offered: Wire | None, answer: str) -> Wire | None:
    """Return how blocks will come, given what could be ``offered`` and the format that the exporter has answered with.

    Raises `TransferFailed` when it has answered with another one.
    """
    if not answer:
        return None
    if offered is None or offered.format != answer:
        message = f"blocks would come as {answer!r}, which was not offered"
        raise TransferFailed(message)
    return offered


def make_wire(settings: TransferSettings, layout: KvLayout, memory: BlockMemory) -> Wire | None:
    """Return what ``settings`` say of rounding; None where blocks travel as they are."""
    if settings.wire_format == EXACT:
        return None
    from kv_transfer.wire_codec import WireCodec  # noqa: PLC0415  # torch is loaded only where it is used

    return Wire(WireCodec(layout, settings.wire_format), memory)
