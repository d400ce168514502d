"""Where the blocks of a lot lie in memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kv_transfer.lots import Lot


@dataclass(slots=True, eq=False)
class RowsAt:
    """Rows ``indices`` of a matrix of bytes that begins at address ``base`` of some process."""

    base: int
    stride: int
    row_bytes: int
    indices: Sequence[int]

    def part(self, places: slice) -> "RowsAt":
        """Return those at ``places``."""
        return RowsAt(self.base, self.stride, self.row_bytes, self.indices[places])


class RowFinder:
    """Finds rows of this process. Looking a matrix up takes microseconds, and a worker has one memory: it is kept."""

    def __init__(self) -> None:
        self._matrix: Any = None
        self._base = self._stride = self._row_bytes = 0

    def find(self, lot: Lot) -> RowsAt:
        """Return where the rows of ``lot`` lie, which may be memory of a GPU."""
        if lot.rows is not self._matrix:
            self._base, self._stride, self._row_bytes = _place(lot.rows)
            self._matrix = lot.rows
        return RowsAt(self._base, self._stride, self._row_bytes, lot.indices)


def _place(matrix: Any) -> tuple[int, int, int]:
    if hasattr(matrix, "__cuda_array_interface__"):
        base, strides = matrix.__cuda_array_interface__["data"][0], matrix.stride()
    else:
        base, strides = matrix.__array_interface__["data"][0], matrix.strides
    row_bytes = int(matrix.shape[1])
    assert row_bytes <= 1 or strides[1] == 1, "a block's bytes lie one after the other"
    return int(base), int(strides[0]), row_bytes


def one_row(buffer: Any, tag: int) -> Lot:
    """Return a lot of one block: ``buffer``, which is contiguous."""
    if hasattr(buffer, "__cuda_array_interface__"):
        row = buffer.reshape(1, -1)
    elif memoryview(buffer).nbytes:
        row = np.frombuffer(buffer, np.uint8).reshape(1, -1)
    else:
        row = np.zeros((1, 0), np.uint8)
    return Lot(rows=row, indices=range(1), tag=tag, numbers=range(1))


def nobody_hears(_places: Sequence[int]) -> None:
    """Take what `Peer.receive` has no use for."""


def pieces_of(rows: RowsAt) -> NDArray[np.uint64]:
    """Return address and length of each row."""
    pieces = np.empty((len(rows.indices), 2), np.uint64)
    pieces[:, 0] = np.asarray(rows.indices, np.uint64) * np.uint64(rows.stride) + np.uint64(rows.base)
    pieces[:, 1] = rows.row_bytes
    return pieces
