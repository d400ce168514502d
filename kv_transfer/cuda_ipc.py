"""CUDA's own way to read another process's GPU memory: five calls of its driver, by ctypes.

https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__MEM.html. What one process has allocated in one piece gets a
**handle**, which another process opens to see that piece at an address of its own. They need a CUDA context that is
current in the calling thread.
"""

import ctypes
import errno
from typing import Any

from cluster_core.errors import PartUnavailable

HANDLE_BYTES = 64
_LAZY_PEER_ACCESS = 1


class _Handle(ctypes.Structure):
    _fields_ = (("content", ctypes.c_ubyte * HANDLE_BYTES),)


class CudaIpc:
    """The driver of this machine."""

    def __init__(self) -> None:
        """Raise `PartUnavailable` where there is none."""
        try:
            driver = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            message = f"CUDA's driver: {error}"
            raise PartUnavailable(message) from error
        address, size = ctypes.c_uint64, ctypes.c_size_t
        self._range = _call(driver, "cuMemGetAddressRange_v2", ctypes.POINTER(address), ctypes.POINTER(size), address)
        self._handle = _call(driver, "cuIpcGetMemHandle", ctypes.POINTER(_Handle), address)
        self._open = _call(driver, "cuIpcOpenMemHandle_v2", ctypes.POINTER(address), _Handle, ctypes.c_uint)
        self._close = _call(driver, "cuIpcCloseMemHandle", address)

    def allocation(self, address: int) -> tuple[int, int]:
        """Return where the piece begins that ``address`` lies in, and its bytes. Raises `OSError`."""
        begin, size = ctypes.c_uint64(), ctypes.c_size_t()
        _check("cuMemGetAddressRange", self._range(ctypes.byref(begin), ctypes.byref(size), address))
        return begin.value, size.value

    def handle(self, begin: int) -> bytes:
        """Return the handle of the piece that begins there. Raises `OSError` for memory that cannot be shared."""
        handle = _Handle()
        _check("cuIpcGetMemHandle", self._handle(ctypes.byref(handle), begin))
        return bytes(handle.content)

    def open(self, handle: bytes) -> int:
        """Return where another process's piece can be seen from now on. Raises `OSError`."""
        seen = ctypes.c_uint64()
        _check(
            "cuIpcOpenMemHandle",
            self._open(ctypes.byref(seen), _Handle.from_buffer_copy(handle), _LAZY_PEER_ACCESS),
        )
        return seen.value

    def close(self, seen: int) -> None:
        """See it no longer."""
        self._close(seen)


def _call(driver: Any, name: str, *types: Any) -> Any:
    call = getattr(driver, name)
    call.argtypes = types
    call.restype = ctypes.c_int
    return call


def _check(name: str, code: int) -> None:
    if code:
        raise OSError(errno.EIO, f"{name}: CUDA error {code}")
