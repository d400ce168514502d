"""Moves bytes between workers by tag: the sender names a tag, the receiver has posted a receive for it.

Nothing here knows of blocks. Tags are 64-bit numbers that sender and receiver agreed on elsewhere; a tag is used once.
A message may come before its receive: it waits at the sender until the receive is posted, and is then delivered.

Blocks travel in **lots**: one call, one future, any number of blocks of one pool, each under a tag of its own. How a
lot is cut into messages, and whether bytes are sent or fetched, is the transport's business; the two sides may cut the
same tags into different lots. `Peer.send` and `Peer.receive` are the same for one buffer.

The promise that the rest of the package is built on: **a receive's future is done only when no byte of its message
can land any more**. It holds after an abort too, and after the sender's death.
"""

from asyncio import Future
from importlib.util import find_spec
from typing import Any, Protocol

from kv_transfer.device_transport import make_device_transport
from kv_transfer.host_transport import make_host_transport
from kv_transfer.loopback_transport import PROCESS_NETWORK, LoopbackTransport
from kv_transfer.lots import Landed, Lot
from kv_transfer.near_transport import NearTransport
from kv_transfer.settings import TransferSettings


class Peer(Protocol):
    """What one user of a transport says to and hears from one other worker. Peers of one worker are independent."""

    def send(self, buffer: Any, tag: int) -> Future[None]:
        """Post a send and return at once; the future is done when the transport no longer reads ``buffer``.

        Raises `WorkerLost`, here or by the future, when the other worker is gone. Nothing takes a message back.
        """
        ...

    def receive(self, buffer: Any, tag: int) -> Future[None]:
        """Post a receive into ``buffer`` and return at once; the future is done when the bytes have landed.

        It raises `TransferFailed` when the receive was aborted, when the sender died in the middle (`WorkerLost` where
        that is certain), or when the message is longer than the buffer. A shorter message fills the front only: the
        transport cannot tell, so a checksum of the content must. Cancelling the future takes nothing back; wait for it
        with `asyncio.wait`.
        """
        ...

    def send_lot(self, lot: Lot) -> Future[None]:
        """Post the sends of ``lot``; the future is done when the transport reads none of its blocks any more.

        Raises `WorkerLost` as `send` does. A lot that fails fails as a whole, whatever part of it has arrived.
        """
        ...

    def receive_lot(self, lot: Lot, landed: Landed) -> Future[None]:
        """Post receives into the blocks of ``lot``; the future is done when no byte can land in any of them.

        ``landed`` is called from the event loop, never from within this call, with the places in the lot whose blocks
        have come since it was last called: every place once, the last ones before the future is done. The future
        raises as that of `receive` does when a part of the lot failed; then the peer has been aborted, so that the
        failure shows at once. What ``landed`` was told of is whole even so. Blocks may come from several lots sent.
        """
        ...

    def abort(self) -> None:
        """Cancel every receive posted on this peer and still without a message. Does not block; can be repeated.

        Sends whose receive nobody has posted are taken back, too, if the transport can do so; they fail.
        A receive whose message is landing right now goes on until it has landed or its sender is known to be dead.
        Other peers are not touched.
        """
        ...


class Transport(Protocol):
    """One worker's side of the moving. Belongs to the event loop that `start` ran on."""

    @property
    def name(self) -> str:
        """``ucx``, ``nixl`` or ``loopback``."""
        ...

    @property
    def address(self) -> bytes:
        """Where other workers reach this one; new in every life of a process. Known after `start`."""
        ...

    async def start(self) -> None:
        """Become reachable. Raises `PartUnavailable` when the transport cannot work here."""
        ...

    async def connect(self, address: bytes) -> Peer:
        """Return a new peer for the worker at ``address``. Cheap: a dead worker shows at the first send."""
        ...

    async def close(self) -> None:
        """Abort everything and become unreachable. Can be repeated."""
        ...


def make_transport(settings: TransferSettings, *, device: str = "cpu") -> Transport:
    """Return the transport that ``settings`` name, not yet started. Raises `PartUnavailable` without its library.

    ``device`` is where all blocks lie, by torch's name: other processes of the machine can read them there.
    """
    if settings.transport == "loopback":
        return LoopbackTransport(PROCESS_NETWORK)
    if settings.transport == "nixl":
        from kv_transfer.nixl_transport import NixlTransport  # noqa: PLC0415  # NIXL brings a UCX of its own

        return NixlTransport(settings)
    from kv_transfer.near_or_far import NearOrFarTransport  # noqa: PLC0415  # UCX is loaded only where it is used
    from kv_transfer.ucx_transport import UcxTransport  # noqa: PLC0415  # as above

    return NearOrFarTransport(_near(settings, device), UcxTransport(settings), device)


def _near(settings: TransferSettings, device: str) -> NearTransport | None:
    """Return the way between workers whose blocks lie in one memory; None where it is not wanted, or not possible."""
    lane = "cma" if device == "cpu" else "cuda_ipc"
    if settings.ucx_tls and lane not in settings.ucx_tls.split(","):
        return None
    if device == "cpu":
        return make_host_transport()
    if not settings.gpu_copies or find_spec("triton") is None:
        return None
    from kv_transfer.device_memory import DeviceMemory  # noqa: PLC0415  # no part of CPU installs

    return make_device_transport(DeviceMemory(device))
