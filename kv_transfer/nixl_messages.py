"""What two workers tell each other beside the bytes, when NIXL moves them: three messages of fixed layout.

They travel as NIXL notifications and consist of plain integers, little-endian. NIXL's own serialised descriptors are
pickles in Python, so nothing of that kind is ever read from a peer. What is passed on to NIXL untouched is the sender's
metadata (`Advert.metadata`, the rest of an address): its C++ reads that, and a worker takes it only from its peers.
"""

import struct
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from cluster_core.errors import TransferFailed, WorkerLost

_ADVERT, _TAKEN, _NUDGE = 1, 2, 3
_HEAD = struct.Struct("<BBHII")
_ENTRY = np.dtype("<u8")
_ADDRESS_HEAD = struct.Struct("<4s16s")
_ADDRESS_MAGIC = b"NIX1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """Which memory an address is in."""

    on_device: bool = False
    device: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Advert:
    """Messages that lie ready at the sender, to be read by whoever has posted receives for their tags."""

    space: Space
    regions: int
    """How many regions in this kind of memory the sender has offered to be read; ``metadata`` has them all."""
    entries: NDArray[np.uint64]
    """A row for each message: tag, address, bytes."""
    metadata: bytes
    """The sender's connection and these regions, as NIXL packs them. They are always there, a few hundred bytes, so
    that who has dropped the sender, or has not heard of it, can read. Who knows as many regions skips them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """Messages that the receiver will not read any more: it has them, or does not want them."""

    tags: NDArray[np.uint64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Nudge:
    """Says nothing. That it cannot be sent shows that the other is gone; who hears it looks after NIXL without pause.

    For where nothing reads another machine's memory by itself, over TCP, its owner has to hand the bytes out.
    """


Message: TypeAlias = Advert | Taken | Nudge


def encode(message: Message) -> bytes:
    """Return the bytes of ``message``."""
    match message:
        case Advert(space=space, regions=regions, entries=entries, metadata=metadata):
            head = _HEAD.pack(_ADVERT, space.on_device, space.device, regions, len(entries))
            return head + entries.astype(_ENTRY).tobytes() + metadata
        case Taken(tags=tags):
            return _HEAD.pack(_TAKEN, 0, 0, 0, len(tags)) + tags.astype(_ENTRY).tobytes()
        case Nudge():
            return _HEAD.pack(_NUDGE, 0, 0, 0, 0)


def decode(data: bytes) -> Message:
    """Return the message in ``data``. Raises `TransferFailed` when there is none."""
    if len(data) < _HEAD.size:
        message = f"a notification of {len(data)} bytes is no message"
        raise TransferFailed(message)
    kind, on_device, device, regions, count = _HEAD.unpack_from(data)
    width = {_ADVERT: 3, _TAKEN: 1, _NUDGE: 0}.get(kind)
    body = len(data) - _HEAD.size
    if width is None or body < count * width * _ENTRY.itemsize:
        message = f"a notification of kind {kind} and {len(data)} bytes is no message"
        raise TransferFailed(message)
    if kind == _NUDGE:
        return Nudge()
    numbers = np.frombuffer(data, _ENTRY, count * width, _HEAD.size).astype(np.uint64)
    if kind == _TAKEN:
        return Taken(tags=numbers)
    return Advert(
        space=Space(on_device=bool(on_device), device=device),
        regions=regions,
        entries=numbers.reshape(count, 3),
        metadata=data[_HEAD.size + numbers.nbytes :],
    )


def pack_address(name: str, metadata: bytes) -> bytes:
    """Return the address of the agent ``name`` (16 letters), which ``metadata`` tells how to connect to."""
    return _ADDRESS_HEAD.pack(_ADDRESS_MAGIC, name.encode("ascii")) + metadata


def unpack_address(address: bytes) -> tuple[str, bytes]:
    """Return the agent's name and its metadata. Raises `WorkerLost` when ``address`` is of another transport."""
    if len(address) <= _ADDRESS_HEAD.size or not address.startswith(_ADDRESS_MAGIC):
        message = "nixl: the other worker's transport is not nixl"
        raise WorkerLost(message)
    _, name = _ADDRESS_HEAD.unpack_from(address)
    return name.decode("ascii", "replace"), address[_ADDRESS_HEAD.size :]
