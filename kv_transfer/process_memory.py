"""Reads another process's memory on the same machine: ``process_vm_readv``, with one copy and no help from there.

One call copies up to a thousand scattered pieces, which is why small blocks go nearly as fast as large ones. The other
process need not run for it; when it is dead the call fails, and nothing else happens.
"""

import ctypes
import errno
import os
import signal
import struct
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from kv_transfer.rows import RowsAt

LONGEST_PIECE_BYTES = 1 << 20
"""Longer rows are cut, and no more than this is joined: what is read in one go is made of whole pieces."""
_SHORT_BYTES = 1 << 15
"""Neighbours are joined where rows are shorter than this."""
_MOST_PIECES = 1024
_IOVEC_BYTES = 16
Addresses: TypeAlias = NDArray[np.uint64]
_SET_PTRACER, _ANY_PROCESS = 0x59616D61, 2**64 - 1

FEW_ROWS = 48
"""So few are quicker done one by one than by NumPy."""
_FEW_PIECES = {2 * rows: struct.Struct(f"={4 * rows}Q") for rows in range(FEW_ROWS + 1)}


class ReadPlan:
    """How to copy rows ``there`` of another process to rows ``here``, which have room for them, some at a time."""

    __slots__ = ("_addresses", "_count", "_ends", "_first", "_moved", "_piece_bytes", "_pieces", "_row_bytes", "left")

    def __init__(self, here: RowsAt, there: RowsAt) -> None:
        """Rows have at least one byte."""
        self._row_bytes = self._piece_bytes = length = there.row_bytes
        self._count = rows = len(here.indices)
        self.left = rows * length
        self._first = self._moved = 0
        self._ends: Sequence[int] | NDArray[np.int64] | None = None
        if length <= LONGEST_PIECE_BYTES and rows <= FEW_ROWS:
            mine, theirs = _each_row(here, length), _each_row(there, length)
            self._addresses = mine.buffer_info()[0], theirs.buffer_info()[0]
            self._pieces: Any = mine, theirs
        else:
            self._arrange(_begins(here), _begins(there))

    def _arrange(self, here: Addresses, there: Addresses) -> None:
        """Join or cut rows that begin at these addresses."""
        lengths: NDArray[np.int64] | int = self._row_bytes
        if self._row_bytes > LONGEST_PIECE_BYTES:
            here, there, lengths = _cut(here, there, self._row_bytes)
        elif self._row_bytes < _SHORT_BYTES:
            here, there, lengths = _joined(here, there, self._row_bytes)
        self._count = len(here)
        if not isinstance(lengths, int):
            self._ends = np.cumsum(lengths)
        self._pieces = mine, theirs = _iovecs(here, lengths), _iovecs(there, lengths)
        self._addresses = _address(mine), _address(theirs)

    def read(self, reader: "ProcessReader", most_bytes: int) -> int:
        """Copy what follows, about ``most_bytes`` or one piece; return how many rows it completed.

        Raises `OSError` as `ProcessReader.read` does.
        """
        first = self._first
        if self._ends is None:
            pieces = min(most_bytes // self._piece_bytes or 1, _MOST_PIECES, self._count - first)
            moved_bytes = pieces * self._piece_bytes
        else:
            after = bisect_right(self._ends, self._moved + most_bytes, first)
            pieces = min(after - first or 1, _MOST_PIECES)
            moved_bytes = int(self._ends[first + pieces - 1]) - self._moved
        here, there = self._addresses
        offset = _IOVEC_BYTES * first
        reader.read(here + offset, there + offset, pieces, moved_bytes)
        self._first = first + pieces
        before, self._moved = self._moved, self._moved + moved_bytes
        self.left -= moved_bytes
        return self._moved // self._row_bytes - before // self._row_bytes


def read_few(reader: "ProcessReader", here: RowsAt, there: RowsAt) -> None:
    """Copy at most `FEW_ROWS` rows ``there`` to rows ``here`` at once. Raises `OSError` as `ProcessReader.read` does.

    What a `ReadPlan` does, without its objects: a small lot is mostly a matter of such things.
    """
    base, stride, length = here.base, here.stride, there.row_bytes
    words = [word for index in here.indices for word in (base + index * stride, length)]
    half = len(words)
    base, stride = there.base, there.stride
    words += [word for index in there.indices for word in (base + index * stride, length)]
    _FEW_PIECES[half].pack_into(reader.room, 0, *words)
    address = reader.room_address
    reader.read(address, address + 8 * half, half // 2, half // 2 * length)


def _each_row(rows: RowsAt, length: int) -> "array[int]":
    """Return what C calls an array of iovec: address and length of each row."""
    base, stride = rows.base, rows.stride
    return array("Q", [word for index in rows.indices for word in (base + index * stride, length)])


def _begins(rows: RowsAt) -> Addresses:
    """Return where rows begin. Of a list, NumPy asks each number by itself what it is; an array of C's does not."""
    indices = array("Q", rows.indices) if isinstance(rows.indices, list | range) else rows.indices
    return np.asarray(indices, dtype=np.uint64) * np.uint64(rows.stride) + np.uint64(rows.base)


def _joined(here: Addresses, there: Addresses, length: int) -> "tuple[Addresses, Addresses, NDArray[np.int64] | int]":
    """Make neighbours on both sides one piece: short rows cost more by their number than by their bytes."""
    begins = np.ones(len(here), np.bool_)
    np.not_equal(here[1:] - here[:-1], np.uint64(length), out=begins[1:])
    begins[1:] |= there[1:] - there[:-1] != np.uint64(length)
    begins[:: LONGEST_PIECE_BYTES // length] = True
    firsts = np.flatnonzero(begins)
    if len(firsts) == len(here):
        return here, there, length
    return here[firsts], there[firsts], np.diff(firsts, append=len(here)) * length


def _cut(here: Addresses, there: Addresses, length: int) -> tuple[Addresses, Addresses, NDArray[np.int64]]:
    """Cut each row into pieces."""
    offsets = np.arange(0, length, LONGEST_PIECE_BYTES, dtype=np.uint64)
    lengths = np.full(len(offsets), LONGEST_PIECE_BYTES, np.int64)
    lengths[-1] = length - int(offsets[-1])
    return (here[:, None] + offsets).ravel(), (there[:, None] + offsets).ravel(), np.tile(lengths, len(here))


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
        self._holders = 1
        self.room = bytearray(2 * _IOVEC_BYTES * FEW_ROWS)
        """For the two arrays of iovec of `read_few`, which belongs to the thread that made the reader."""
        self.room_address = ctypes.addressof(ctypes.c_char.from_buffer(self.room))
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

    def hold(self) -> None:
        """Have the reader for oneself as well, until one more `close`."""
        self._holders += 1

    def close(self) -> None:
        """Let go of the process, if nobody else holds the reader."""
        self._holders -= 1
        if not self._holders:
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
            plan.read(reader, 1)
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
