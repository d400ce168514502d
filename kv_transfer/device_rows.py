"""What processes that share a GPU's memory know of each other's, and how rows of it are copied; without torch."""

import errno
import os
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from kv_transfer.cuda_ipc import HANDLE_BYTES
from kv_transfer.near_copies import NearMemory
from kv_transfer.rows import RowsAt

SLICE_BYTES = 256 << 20
"""Copied in one launch, a few hundred microseconds on one GPU."""
MOST_ROWS = 4096
"""Copied in one launch, too."""


@dataclass(slots=True, frozen=True)
class Piece:
    """What CUDA has allocated as one, in the process that did."""

    begin: int
    size: int
    handle: bytes

    def described(self) -> bytes:
        """Return it as it travels."""
        return self.begin.to_bytes(8, "little") + self.size.to_bytes(8, "little") + self.handle

    @staticmethod
    def of(description: bytes) -> "Piece":
        """Return what was `described`. Raises `ValueError`."""
        if len(description) != 16 + HANDLE_BYTES:
            message = f"a description of {len(description)} bytes"
            raise ValueError(message)
        begin, size = (int.from_bytes(description[start : start + 8], "little") for start in (0, 8))
        return Piece(begin, size, description[16:])


@dataclass(slots=True, eq=False)
class DeviceReader:
    """One other process, and where its pieces are seen here."""

    pid: int
    descriptor: int
    ipc: Any
    seen: list[tuple[Piece, int]] = field(default_factory=list)
    failure: str = "it has not said where its blocks lie"

    def where(self, rows: RowsAt) -> int:
        """Return where the first of these rows of that process is seen. Raises `OSError`."""
        last = rows.base + int(np.asarray(rows.indices).max()) * rows.stride + rows.row_bytes
        for piece, here in self.seen:
            if piece.begin <= rows.base and last <= piece.begin + piece.size:
                return here + rows.base - piece.begin
        raise OSError(errno.EFAULT, f"the GPU memory of process {self.pid} cannot be read: {self.failure}")

    def close(self) -> None:
        """Let go of the process and of its memory."""
        os.close(self.descriptor)
        if self.pid != os.getpid():
            for _piece, here in self.seen:
                self.ipc.close(here)
        self.seen.clear()


class SharedMemory(NearMemory, Protocol):
    """What this process has of one GPU's memory, and sees of other processes' by `DeviceReader`."""

    def copy(self, reader: DeviceReader, there: RowsAt, matrix: Any, here: RowsAt) -> None:
        """Copy rows of another process to as many rows of ``matrix``, and wait until they are here.

        Raises `OSError` when they cannot be read, or not for certain from the right process.
        """
        ...


class DevicePlan:
    """How rows ``there`` of another process are copied to rows ``here`` of ``matrix``, slice by slice."""

    def __init__(self, memory: SharedMemory, matrix: Any, here: RowsAt, there: RowsAt) -> None:
        self.rows_left = len(here.indices)
        self._memory = memory
        self._matrix = matrix
        self._here = here
        self._there = there
        self._slice_rows = max(1, min(MOST_ROWS, SLICE_BYTES // max(1, there.row_bytes)))

    def read(self, reader: DeviceReader) -> int:
        """Copy the next slice; returns how many rows it completed. Raises `OSError` as `SharedMemory.copy` does."""
        total, rows = len(self._here.indices), min(self.rows_left, self._slice_rows)
        part = slice(total - self.rows_left, total - self.rows_left + rows)
        self._memory.copy(reader, self._there.part(part), self._matrix, self._here.part(part))
        self.rows_left -= rows
        return rows
