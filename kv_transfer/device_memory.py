"""Blocks in the memory of a GPU that two processes share: the receiver reads them itself, with one launch for a lot.

Life of a piece of memory. A sender describes the piece (what CUDA has allocated as one, a pool for instance) before it
first offers rows of it; the receiver maps it then, once, which takes milliseconds, and keeps it as long as the link.
Measuring a link (`kv_transfer.link_probe`) sends from the pools, so they are mapped before the first request comes.
Such memory is never given back while a worker lives.

A copy is launched on a stream of its own and waited for, a slice at a time: so nobody writes a block but its owner, and
never late. What UCX does (CUDA IPC, too) is one copy for each block, and it takes microseconds to say each: on a GPU
that copies a block in less, that is most of the time.
"""

import errno
import os
import signal
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cluster_core.errors import PartUnavailable, TransferFailed
from kv_transfer.copy_triton_kernel import copy_rows
from kv_transfer.cuda_ipc import CudaIpc
from kv_transfer.device_rows import MOST_ROWS, DeviceReader, Piece
from kv_transfer.rows import RowsAt

_WIDE_BYTES, _WORD_BYTES = 16, 8
_WIDTH = 1024


class DeviceMemory:
    """See `kv_transfer.device_rows.SharedMemory`. Belongs to one thread."""

    def __init__(self, device: str) -> None:
        """``device`` is torch's name of the GPU."""
        self._device = torch.device(device)
        self._ipc: Any = None
        self._stream: Any = None
        self._pieces: list[Piece] = []
        self._table: torch.Tensor
        self._pinned: torch.Tensor

    def start(self) -> bytes:
        """Return the names of the GPU and of the namespace in which its handles are good."""
        if not torch.cuda.is_available():
            message = f"transport device: {self._device} is not there"
            raise PartUnavailable(message)
        self._ipc = CudaIpc()
        try:
            self.describe(torch.zeros(1, device=self._device).data_ptr())
        except TransferFailed as error:
            message = f"transport device: memory of {self._device} cannot be shared ({error})"
            raise PartUnavailable(message) from error
        self._stream = torch.cuda.Stream(self._device, priority=-1)  # type: ignore[no-untyped-call]  # torch's own
        self._prepare()
        name = torch.cuda.get_device_properties(self._device).uuid
        return f"{name} {os.readlink('/proc/self/ns/ipc')}".encode()  # noqa: PTH115  # no path

    def _prepare(self) -> None:
        self._table = torch.zeros((MOST_ROWS, 2), dtype=torch.int64, device=self._device)
        self._pinned = torch.zeros((MOST_ROWS, 2), dtype=torch.int64, pin_memory=self._device.type == "cuda")
        for row_bytes in (4096, 7):  # compiles
            memory = torch.zeros(2 * row_bytes, dtype=torch.uint8, device=self._device)
            begin = np.array([memory.data_ptr()], np.int64)
            self._launch(memory, begin, begin + row_bytes, row_bytes)

    def describe(self, address: int) -> bytes:
        """Return the piece that ``address`` lies in."""
        piece = next((each for each in self._pieces if each.begin <= address < each.begin + each.size), None)
        if piece is None:
            try:
                begin, size = self._ipc.allocation(address)
                piece = Piece(begin, size, self._ipc.handle(begin))
            except OSError as error:
                message = f"blocks that no other process can read: {error}"
                raise TransferFailed(message) from error
            self._pieces.append(piece)
        return piece.described()

    def reader(self, pid: int) -> DeviceReader:
        """Return a reader that has seen nothing yet."""
        return DeviceReader(pid, os.pidfd_open(pid), self._ipc)

    def learn(self, reader: DeviceReader, description: bytes) -> None:
        """Map a piece."""
        try:
            piece = Piece.of(description)
            here = piece.begin if reader.pid == os.getpid() else self._ipc.open(piece.handle)
        except (OSError, ValueError) as error:
            reader.failure = str(error)
        else:
            reader.seen.append((piece, here))

    def copy(self, reader: DeviceReader, there: RowsAt, matrix: Any, here: RowsAt) -> None:
        """Copy by one launch."""
        if isinstance(matrix, np.ndarray):
            raise OSError(errno.EFAULT, "blocks of a GPU came for host memory")
        seen = RowsAt(reader.where(there), there.stride, there.row_bytes, there.indices)
        self._launch(matrix, _addresses(seen), _addresses(here), there.row_bytes)
        signal.pidfd_send_signal(reader.descriptor, 0)  # 0: sends nothing, raises where that process is dead

    def _launch(self, anchor: torch.Tensor, there: NDArray[np.int64], here: NDArray[np.int64], row_bytes: int) -> None:
        """Copy rows between addresses of this GPU, ``anchor`` being some memory of it."""
        begin, count = anchor.data_ptr(), len(there)
        wide = not any(np.any(each % _WIDE_BYTES) for each in (there, here, row_bytes, begin))
        unit = _WORD_BYTES if wide else 1
        length = row_bytes // unit
        if not length:
            return
        table = self._pinned[:count]
        table.numpy()[:, 0] = (there - begin) // unit
        table.numpy()[:, 1] = (here - begin) // unit
        flat = anchor.as_strided((unit,), (1,)).view(torch.int64 if wide else torch.int8)
        with torch.cuda.stream(self._stream):
            self._table[:count].copy_(table, non_blocking=True)
            copy_rows[count, -(-length // _WIDTH)](flat, self._table, length, WIDE=wide, WIDTH=_WIDTH)
        if self._stream is not None:
            self._stream.synchronize()


def _addresses(rows: RowsAt) -> NDArray[np.int64]:
    addresses: NDArray[np.int64] = np.asarray(rows.indices, np.int64) * rows.stride + rows.base
    return addresses
