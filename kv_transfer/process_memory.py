"""Reads another process's memory on the same machine: ``process_vm_readv``, with one copy and no help from there.

One call copies up to a thousand scattered pieces, which is why small blocks go nearly as fast as large ones. The other
process need not run for it; when it is dead the call fails, and nothing else happens.
"""

import ctypes
import errno
import os
import signal
from array import array
from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from kv_transfer.rows import RowsAt

SLICE_BYTES = 4 << 20
"""Read in one go, about a millisecond. What comes between two slices takes 50 µs: the copy has cleared the caches."""
_SHORT_BYTES = 1 << 15
"""Neighbours are joined where rows are shorter than this."""
_MOST_PIECES = 1024
_IOVEC_BYTES = 16
Addresses: TypeAlias = NDArray[np.uint64]
_SET_PTRACER, _ANY_PROCESS = 0x59616D61, 2**64 - 1

_FEW_ROWS = 48
"""So few are quicker done one by one than by NumPy."""
_Slice: TypeAlias = tuple[int, int, int, int]
"""First piece, number of pieces, bytes, and how many rows are complete after it that were not before."""


class ReadPlan:
    """How to copy rows ``there`` of another process to rows ``here``, which have room for them, slice by slice."""

    def __init__(self, here: RowsAt, there: RowsAt) -> None:
        self.rows_left = len(here.indices)
        length = there.row_bytes
        if length <= SLICE_BYTES and self.rows_left <= _FEW_ROWS:
            self._pieces: Any = _each_row(here, length), _each_row(there, length)
            self._addresses = self._pieces[0].buffer_info()[0], self._pieces[1].buffer_info()[0]
            self._slices = iter(_even_slices(self.rows_left, length))
        else:
            first, second, lengths, self._slices = _arrange(_begins(here), _begins(there), length)
            self._pieces = _iovecs(first, lengths), _iovecs(second, lengths)
            self._addresses = _address(self._pieces[0]), _address(self._pieces[1])

    def read(self, reader: "ProcessReader") -> int:
        """Copy the next slice; return how many rows it completed. Raises `OSError` as `ProcessReader.read` does."""
        first_piece, pieces, moved_bytes, rows = next(self._slices)
        here, there = self._addresses
        offset = _IOVEC_BYTES * first_piece
        reader.read(here + offset, there + offset, pieces, moved_bytes)
        self.rows_left -= rows
        return rows


def _each_row(rows: RowsAt, length: int) -> "array[int]":
    """Return what C calls an array of iovec: address and length of each row."""
    base, stride = rows.base, rows.stride
    pieces = array("Q")
    for index in rows.indices:
        pieces.append(base + index * stride)
        pieces.append(length)
    return pieces


def _even_slices(rows: int, length: int) -> list[_Slice]:
    """Return slices of as many rows as go into one, each row a piece."""
    return [(first, end - first, (end - first) * length, end - first) for first, end in _row_bounds(rows, length)]


def _row_bounds(rows: int, length: int) -> list[tuple[int, int]]:
    per_slice = max(1, min(_MOST_PIECES, SLICE_BYTES // max(1, length)))
    return [(first, min(first + per_slice, rows)) for first in range(0, rows, per_slice)]


def _begins(rows: RowsAt) -> Addresses:
    return np.asarray(rows.indices, dtype=np.uint64) * np.uint64(rows.stride) + np.uint64(rows.base)


def _arrange(
    here: Addresses, there: Addresses, length: int
) -> tuple[Addresses, Addresses, "NDArray[np.int64] | int", Iterator[_Slice]]:
    """Return the pieces of rows that begin at ``here`` and ``there``: their addresses and lengths, and the slices."""
    if length > SLICE_BYTES:
        return _cut_rows(here, there, length)
    if length < _SHORT_BYTES:
        return _joined_rows(here, there, length)
    return here, there, length, iter(_even_slices(len(here), length))


def _joined_rows(
    here: Addresses, there: Addresses, length: int
) -> tuple[Addresses, Addresses, NDArray[np.int64], Iterator[_Slice]]:
    """Make neighbours on both sides one piece: short rows cost more by their number than by their bytes."""
    bounds = _row_bounds(len(here), length)
    begins = np.ones(len(here), np.bool_)
    np.not_equal(here[1:] - here[:-1], np.uint64(length), out=begins[1:])
    begins[1:] |= there[1:] - there[:-1] != np.uint64(length)
    begins[[first for first, _end in bounds]] = True
    firsts = np.flatnonzero(begins)
    lengths = np.diff(firsts, append=len(here)) * length
    places = [*np.searchsorted(firsts, [first for first, _end in bounds]).tolist(), len(firsts)]
    slices: list[_Slice] = [
        (places[number], places[number + 1] - places[number], (end - first) * length, end - first)
        for number, (first, end) in enumerate(bounds)
    ]
    return here[firsts], there[firsts], lengths, iter(slices)


def _cut_rows(
    here: Addresses, there: Addresses, length: int
) -> tuple[Addresses, Addresses, NDArray[np.int64], Iterator[_Slice]]:
    """Cut each row into pieces of a slice; only the last of them completes it."""
    offsets = np.arange(0, length, SLICE_BYTES, dtype=np.uint64)
    lengths = np.full(len(offsets), SLICE_BYTES, np.int64)
    lengths[-1] = length - int(offsets[-1])
    sizes = np.tile(lengths, len(here))
    slices = [(piece, 1, size, int((piece + 1) % len(offsets) == 0)) for piece, size in enumerate(sizes.tolist())]
    return (here[:, None] + offsets).ravel(), (there[:, None] + offsets).ravel(), sizes, iter(slices)


def _iovecs(addresses: Addresses, lengths: "NDArray[np.int64] | int") -> Addresses:
    pieces = np.empty((len(addresses), 2), np.uint64)
    pieces[:, 0] = addresses
    pieces[:, 1] = lengths
    return pieces


class ProcessReader:
    """Copies from the memory of process ``pid`` into one's own.

    A pid may be given to another process after the first has died. The reader therefore holds a descriptor of the
    process and asks, after each copy, whether that one still lives: if so, it was that one all the time.
    """

    def __init__(self, pid: int) -> None:
        """Raise `OSError` when there is no such process."""
        self._pid = pid
        self._descriptor = os.pidfd_open(pid)
        self._call = _process_vm_readv()

    def read(self, here: int, there: int, pieces: int, moved_bytes: int) -> None:
        """Copy between two arrays of iovec at these addresses.

        Raises `OSError` when not everything was copied, or not for certain from the right process; parts may have been.
        """
        copied = self._call(self._pid, here, pieces, there, pieces, 0)
        if copied < 0:
            number = ctypes.get_errno()
            raise OSError(number, f"process {self._pid} cannot be read: {os.strerror(number)}")
        signal.pidfd_send_signal(self._descriptor, 0)  # 0: sends nothing, raises where nobody could get it
        if copied != moved_bytes:
            raise OSError(errno.EFAULT, f"process {self._pid}: only {copied} of {moved_bytes} bytes could be read")

    def close(self) -> None:
        """Let go of the process."""
        os.close(self._descriptor)


def reading_works() -> bool:
    """Allow processes of the same user to read this one; return whether such reading works here at all."""
    libc = ctypes.CDLL(None)
    libc.prctl(_SET_PTRACER, ctypes.c_ulong(_ANY_PROCESS), 0, 0, 0)  # fails without Yama, where it is not needed
    source, target = np.ones(1, np.uint8), np.zeros(1, np.uint8)
    plan = ReadPlan(RowsAt(_address(target), 1, 1, range(1)), RowsAt(_address(source), 1, 1, range(1)))
    try:
        reader = ProcessReader(os.getpid())
        try:
            plan.read(reader)
        finally:
            reader.close()
    except (OSError, AttributeError):  # AttributeError: not Linux
        return False
    return bool(target[0])


def _address(array: "NDArray[Any]") -> int:
    address: int = array.__array_interface__["data"][0]
    return address


def _process_vm_readv() -> Any:
    call = ctypes.CDLL(None, use_errno=True).process_vm_readv
    call.restype = ctypes.c_ssize_t
    call.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong]
    return call
