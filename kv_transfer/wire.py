"""Whether blocks are rounded on their way, and where they lie meanwhile (see `kv_transfer.wire_codec` for how).

Both sides must be configured for the same format. The importer offers it where the link, as measured, is so slow that
the bytes saved take longer than expanding; the exporter takes the offer where packing does not eat up the rest. So a
fast link is never made slower, and off, which is the default, costs nothing: torch is not even loaded.

What came rounded serves its own request. It is not sealed: no other request finds it, no other worker borrows it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from cluster_core.errors import TransferFailed
from cluster_core.handoff import EXACT, WireOffer
from cluster_core.identity import Incarnation, WorkerId
from cluster_core.layout import KvLayout
from kv_transfer.link_book import LinkBook
from kv_transfer.memory import BlockMemory
from kv_transfer.settings import TransferSettings

LOT_BYTES = 1 << 20
"""Most exact bytes that are packed in one turn of the event loop: a millisecond or two. They travel as one lot."""


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
        self._pack_s_per_byte, self._unpack_s_per_byte = codec.measure(memory.rows)
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
        rows, shape = self._memory.rows, (wanted, self.packed_bytes)
        return np.empty(shape, np.uint8) if isinstance(rows, np.ndarray) else rows.new_empty(shape)

    def give_back(self, rows: Any) -> None:
        """Put staging memory back: nothing reads or writes it any more."""
        self._shelves[len(rows)].append(rows)

    def pack(self, indices: Sequence[int], digests: Sequence[bytes]) -> Any:
        """Return staging memory with the blocks at ``indices``, packed; ``digests`` are theirs as they are."""
        staged = self.take_rows(len(indices))
        self._codec.pack(self._memory.rows[list(indices)], list(digests), staged[: len(indices)])
        return staged

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
