"""The transport of a worker that has peers on its own machine and on others: each is reached the best way for it.

Both ends must choose alike, so the choice follows from their two addresses alone: whoever runs on the same machine, for
the same user and in the same namespaces, and has its blocks in host memory or in the same GPU's, says so in its
address.
"""

import struct

from cluster_core.errors import PartUnavailable
from kv_transfer.near_transport import NearPeer, NearTransport
from kv_transfer.ucx_transport import UcxPeer, UcxTransport

_LENGTH = struct.Struct("<H")
_LANES = {"host": "cma", "device": "cuda_ipc"}
"""What UCX would call the near ways: they do what it does, but for a whole lot at once."""


class NearOrFarTransport:
    """See `kv_transfer.transport.Transport`."""

    name = "ucx"

    def __init__(self, near: NearTransport | None, far: UcxTransport, device: str = "cpu") -> None:
        """Without ``near``, UCX reaches everybody. ``device`` is where the blocks lie, by torch's name."""
        self._near = near
        self._far = far
        self._device = device

    @property
    def address(self) -> bytes:
        """Both addresses."""
        near = b"" if self._near is None else self._near.address
        return _LENGTH.pack(len(near)) + near + self._far.address

    async def start(self) -> None:
        """Become reachable. Where processes may not read each other, UCX has to do."""
        if self._device != "cpu":
            enter_device(self._device)
        await self._far.start()
        if self._near is not None:
            try:
                await self._near.start()
            except PartUnavailable:
                self._near = None

    async def connect(self, address: bytes) -> NearPeer | UcxPeer:
        """Return a peer for the worker at ``address``."""
        near, far = _parts(address)
        if self._near is not None and self._near.reaches(near):
            return await self._near.connect(near)
        return await self._far.connect(far)

    def lanes(self, address: bytes) -> tuple[str, ...]:
        """Return what carries messages to ``address``, as UCX names it; none before the first message."""
        near, far = _parts(address)
        if self._near is not None and self._near.reaches(near):
            return (_LANES[self._near.name],)
        return self._far.lanes(far)

    async def close(self) -> None:
        """Abort everything and become unreachable."""
        if self._near is not None:
            await self._near.close()
        await self._far.close()


def enter_device(device: str) -> None:
    """Make the context of a GPU current in this thread, before UCX looks for one; without effect where it is not there.

    UCX wants that, and wants no memory to be allocated on the GPU before it is loaded, of which it would not know.
    """
    import torch  # noqa: PLC0415  # only where there is a GPU to enter

    wanted = torch.device(device).index or 0
    if wanted < torch.cuda.device_count():
        torch.cuda.set_device(wanted)


def _parts(address: bytes) -> tuple[bytes, bytes]:
    (length,) = _LENGTH.unpack_from(address)
    return address[_LENGTH.size : _LENGTH.size + length], address[_LENGTH.size + length :]
