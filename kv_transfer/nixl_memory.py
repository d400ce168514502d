"""Memory that NIXL may read and write: it must know of it, be *registered*, before it moves a byte.

Life of a region. The matrix of a pool is registered when the first lot of its blocks is sent or received; it stays
registered, and referenced, until the transport is closed. That is deliberate: a peer that was told of a region keeps a
key to it, and NIXL lets nobody replace that key, so another memory at the same address could never be read. A lot's
matrix must therefore be something lasting, as a pool is.

A single buffer is not lasting. Unless it lies in a region it is **staged**: copied through a slab, a region of our own
that goes back to the shelf when its message has been read.
"""

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from kv_transfer.nixl_messages import Space

_HOST = Space()
_LEAST_SLAB_BYTES = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A contiguous piece of memory."""

    address: int
    size: int
    space: Space


class Registrar(Protocol):
    """What knows of regions: NIXL, or a test's stand-in."""

    def register(self, span: Span) -> None:
        """Make ``span`` readable and writable. Raises `TransferFailed` when that cannot be."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Slab:
    """Registered memory of our own."""

    bytes: NDArray[np.uint8]
    span: Span


class Regions:
    """The registered memory of one transport."""

    def __init__(self, registrar: Registrar) -> None:
        self._registrar = registrar
        self._owners: dict[Span, Any] = {}
        """Regions, and what keeps their memory alive."""
        self._published: dict[bool, list[Span]] = {False: [], True: []}
        self._slabs: dict[int, list[Slab]] = {}

    def register(self, matrix: Any) -> Span:
        """Return where ``matrix`` is; all that it is a part of is registered from now on. Raises `TransferFailed`."""
        span = span_of(matrix)
        if span.size and self._region_of(span) is None:
            whole = _whole(matrix)
            region = span_of(whole)
            self._registrar.register(region)
            self._owners[region] = whole
        return span

    def covers(self, span: Span) -> bool:
        """Whether ``span`` needs no registration any more."""
        return not span.size or self._region_of(span) is not None

    def publish(self, span: Span) -> tuple[Span, ...]:
        """Let peers read the region of ``span``; returns all that they may read of its kind of memory, in order."""
        offered, region = self._published[span.space.on_device], self._region_of(span)
        if region is not None and region not in offered:
            offered.append(region)
        return tuple(offered)

    def take_slab(self, size: int) -> Slab:
        """Return a slab of ``size`` bytes or more, nobody else's until it is given back."""
        wanted = max(_LEAST_SLAB_BYTES, 1 << (size - 1).bit_length())
        shelf = self._slabs.setdefault(wanted, [])
        if shelf:
            return shelf.pop()
        memory = np.empty(wanted, np.uint8)
        return Slab(bytes=memory, span=self.register(memory))

    def give_back(self, slab: Slab) -> None:
        """Put ``slab`` back on its shelf: nothing reads or writes it any more."""
        self._slabs[slab.span.size].append(slab)

    def _region_of(self, span: Span) -> Span | None:
        if span in self._owners:
            return span
        for region in self._owners:
            first = span.address - region.address
            if region.space == span.space and first >= 0 and first + span.size <= region.size:
                return region
        return None


def _whole(matrix: Any) -> Any:
    """Return the array that ``matrix`` is a part of, so that its parts need no regions of their own."""
    while isinstance(matrix, np.ndarray) and isinstance(matrix.base, np.ndarray) and matrix.base.flags.c_contiguous:
        matrix = matrix.base
    return matrix


def span_of(buffer: Any) -> Span:
    """Return where the bytes of ``buffer`` are: an object with a contiguous buffer, or a CUDA tensor."""
    on_device = getattr(buffer, "__cuda_array_interface__", None)
    if on_device is None:
        host = bytes_of(buffer)
        return Span(address=int(host.__array_interface__["data"][0]), size=host.size, space=_HOST)
    size = math.prod(on_device["shape"]) * np.dtype(on_device["typestr"]).itemsize
    space = Space(on_device=True, device=int(buffer.device.index or 0))
    return Span(address=int(on_device["data"][0]), size=size, space=space)


def bytes_of(buffer: Any) -> NDArray[np.uint8]:
    """Return the bytes of a contiguous buffer in this machine's memory, in place."""
    if isinstance(buffer, np.ndarray):
        return buffer.reshape(-1).view(np.uint8)  # of a contiguous array, neither copies
    view = memoryview(buffer)
    return np.frombuffer(view, np.uint8) if view.nbytes else np.empty(0, np.uint8)
