"""What the operating system itself does with a lot of blocks: its limits, without a transport around them.

* **CMA**: `process_vm_readv` over the lot's places, adjacent blocks as one piece. The sender tells with one message
  that its blocks are there, and the receiver, which sleeps until then, reads them out of the sender's memory: one copy.
* **Sockets**: the same bytes through one TCP connection over loopback, gathered by `sendmsg`, scattered by `recvmsg`.
* **memcpy**: one thread within one process, in machine code.

All block their thread. Times are those of the system's monotonic clock, which both processes read.
"""

import ctypes
import os
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np

from benchmarks.block_lots import LotKind, Memory, Places

_PIECES = 1024
"""Most pieces that the kernel takes in one call (``IOV_MAX``)."""
_MOMENT = struct.Struct("d")


class _Piece(ctypes.Structure):
    """``struct iovec``."""

    _fields_ = (("start", ctypes.c_void_p), ("length", ctypes.c_size_t))


@dataclass(frozen=True, slots=True, kw_only=True)
class RemotePool:
    """Where another process has its pool."""

    pid: int
    address: int


def runs(places: Places, other: Places) -> list[tuple[int, int, int]]:
    """Return ``(first place, first other place, count)`` of every stretch that is adjacent in both lists."""
    breaks = np.flatnonzero((np.diff(places) != 1) | (np.diff(other) != 1)) + 1
    starts = [0, *breaks.tolist()]
    ends = [*starts[1:], len(places)]
    return [(int(places[start]), int(other[start]), end - start) for start, end in zip(starts, ends, strict=True)]


class CmaReader:
    """Reads blocks out of another process of this user."""

    def __init__(self, pool: Memory, remote: RemotePool) -> None:
        self._pool = pool
        self._remote = remote
        library = ctypes.CDLL(None, use_errno=True)
        self._read = library.process_vm_readv
        self._read.restype = ctypes.c_ssize_t
        pieces = ctypes.POINTER(_Piece)
        self._read.argtypes = (ctypes.c_int, pieces, ctypes.c_ulong, pieces, ctypes.c_ulong, ctypes.c_ulong)

    def prepared(self, kind: LotKind, sources: Places, targets: Places) -> "list[tuple[Any, Any, int, int]]":
        """Return what `read` needs: local and remote pieces, their number, and their bytes, a call each."""
        stretches = runs(sources, targets)
        ours = self._pool.ctypes.data
        calls = []
        for start in range(0, len(stretches), _PIECES):
            part = stretches[start : start + _PIECES]
            kinds = _Piece * len(part)
            local, remote = kinds(), kinds()
            for position, (source, target, count) in enumerate(part):
                local[position] = _Piece(ours + target * kind.size, count * kind.size)
                remote[position] = _Piece(self._remote.address + source * kind.size, count * kind.size)
            calls.append((local, remote, len(part), kind.size * sum(count for _, _, count in part)))
        return calls

    def read(self, calls: "list[tuple[Any, Any, int, int]]") -> None:
        """Read what was prepared. Raises `OSError`."""
        for local, remote, pieces, length in calls:
            taken = self._read(self._remote.pid, local, pieces, remote, pieces, 0)
            if taken != length:
                code = ctypes.get_errno()
                raise OSError(code, f"process_vm_readv read {taken} of {length} bytes: {os.strerror(code)}")


def tell_begin(connection: socket.socket) -> None:
    """Tell the other side that the blocks are there, and when that was."""
    connection.sendall(_MOMENT.pack(time.perf_counter()))


def hear_begin(connection: socket.socket) -> float:
    """Sleep until the other side begins; return the moment at which it did."""
    told = bytearray()
    while len(told) < _MOMENT.size:
        part = connection.recv(_MOMENT.size - len(told))
        if not part:
            message = "the other side has closed the connection"
            raise RuntimeError(message)
        told += part
    moment: float
    (moment,) = _MOMENT.unpack(told)
    return moment


def send_pieces(connection: socket.socket, pieces: Sequence[memoryview]) -> None:
    """Send the pieces, one after another."""
    waiting = list(pieces)
    while waiting:
        waiting = _after(waiting, connection.sendmsg(waiting[:_PIECES]))


def receive_pieces(connection: socket.socket, pieces: Sequence[memoryview]) -> None:
    """Fill the pieces, one after another."""
    waiting = list(pieces)
    while waiting:
        taken, _, _, _ = connection.recvmsg_into(waiting[:_PIECES])
        if not taken:
            message = "the other side has closed the connection"
            raise RuntimeError(message)
        waiting = _after(waiting, taken)


def _after(pieces: list[memoryview], length: int) -> list[memoryview]:
    """Return what follows the first ``length`` bytes."""
    for position, piece in enumerate(pieces):
        if length < len(piece):
            return [piece[length:], *pieces[position + 1 :]]
        length -= len(piece)
    return []


def pieces_of(pool: Memory, size: int, places: Places) -> list[memoryview]:
    """Return the memory of the blocks, adjacent ones as one piece."""
    flat: memoryview = pool.data
    return [flat[first * size : (first + count) * size] for first, _, count in runs(places, places)]


_memcpy: Any = ctypes.CDLL(None).memcpy
_memcpy.argtypes = (ctypes.c_size_t, ctypes.c_size_t, ctypes.c_size_t)  # addresses as numbers: what numba can pass
_memcpy.restype = ctypes.c_size_t


@numba.njit
def _copy(source: int, target: int, stretches: "np.ndarray[Any, np.dtype[np.int64]]") -> None:
    for number in range(len(stretches)):
        _memcpy(target + stretches[number, 1], source + stretches[number, 0], stretches[number, 2])


class Copies:
    """memcpy within one process, from a pool to another."""

    def __init__(self, source: Memory, target: Memory) -> None:
        self._source = source
        self._target = target
        _copy(source.ctypes.data, target.ctypes.data, np.zeros((0, 3), np.int64))  # compiles

    def seconds(self, kind: LotKind, sources: Places, targets: Places) -> float:
        """Copy a lot, adjacent blocks at once."""
        stretches = np.array(runs(sources, targets), np.int64) * kind.size
        started = time.perf_counter()
        _copy(self._source.ctypes.data, self._target.ctypes.data, stretches)
        return time.perf_counter() - started
