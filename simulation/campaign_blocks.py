"""The blocks of the corruption campaign: what they look like, where they lie, and what rounding makes of them."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from cluster_core.blocks import BlockReference
from cluster_core.identity import BlockHash
from cluster_core.layout import KvLayout
from kv_transfer.settings import TransferSettings
from kv_transfer.wire import make_wire

LAYOUT = KvLayout(layers=1, kv_heads=1, head_dim=2, block_size_tokens=4, dtype="float32")
SETTINGS = TransferSettings(transport="loopback", lease_s=1.0, blocks_in_flight=24, wire_format="int8")
MOST_BLOCKS = 64

Matrix = npt.NDArray[np.uint8]


class BlockRows:
    """See `kv_transfer.memory.BlockMemory`."""

    def __init__(self, total_blocks: int) -> None:
        self.block_bytes = LAYOUT.block_bytes
        self.rows: Matrix = np.zeros((total_blocks, self.block_bytes), dtype=np.uint8)  # [block, byte]

    def buffer(self, index: int) -> Matrix:
        """Return a block's bytes."""
        row: Matrix = self.rows[index]
        return row

    def clear_unused(self, index: int, tokens: int) -> None:
        """Zero what lies behind the last token."""
        self.rows[index, tokens * LAYOUT.token_bytes :] = 0


def as_numbers(content: Matrix) -> None:
    """Make random bytes finite numbers, in place: no rounding tells infinities from one another."""
    content.view(np.uint32)[:] &= 0xBFFFFFFF  # the highest bit of the exponent


class Rounding:
    """Says what packed blocks are on their way and afterwards, of a wire format that no hand-over uses."""

    def __init__(self) -> None:
        self._memory = BlockRows(2 * MOST_BLOCKS)
        wire = make_wire(SETTINGS, LAYOUT, self._memory)
        assert wire is not None, "the settings name a format"
        self._wire = wire

    def on_the_way(self, content: bytes, position: int, block_hash: BlockHash | None) -> bytes:
        """Return the packed bytes of a block."""
        packed: bytes = self._packed(np.frombuffer(content, np.uint8)[None], [position], [block_hash]).tobytes()
        return packed

    def afterwards(self, contents: Matrix) -> Matrix:
        """Return what is in the importer's blocks when ``contents``, at most `MOST_BLOCKS` of them, have come."""
        count = len(contents)
        packed = self._packed(contents, range(count), [None] * count)
        for place, row in enumerate(packed, start=count):
            assert self._wire.unpack(row, place), "it was packed a moment ago"
        return self._memory.rows[count : 2 * count].copy()

    def _packed(self, contents: Matrix, positions: Sequence[int], hashes: Sequence[BlockHash | None]) -> Matrix:
        self._memory.rows[: len(contents)] = contents
        rows = self._wire.pack(
            [_reference(*name) for name in zip(range(len(contents)), positions, hashes, strict=True)]
        )
        packed: Matrix = rows[: len(contents)].copy()
        self._wire.give_back(rows)
        return packed


def _reference(index: int, position: int, block_hash: BlockHash | None) -> BlockReference:
    return BlockReference(
        position=position, index=index, generation=0, hash=block_hash, digest=b"", tokens=LAYOUT.block_size_tokens
    )
