"""Moves bytes between workers by tag: the sender names a tag, the receiver has posted a receive for it.

Nothing here knows of blocks. Tags are 64-bit numbers that sender and receiver agreed on elsewhere; a tag is used once.
A message may come before its receive: it waits at the sender until the receive is posted, and is then delivered.

The promise that the rest of the package is built on: **a receive's future is done only when no byte of its message
can land any more**. It holds after an abort too, and after the sender's death.
"""

from asyncio import Future
from typing import Any, Protocol

from kv_transfer.loopback_transport import PROCESS_NETWORK, LoopbackTransport
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

        It raises `TransferFailed` when the receive was aborted, when the sender died in the middle, or when the
        message is longer than the buffer. A shorter message fills the front only: the transport cannot tell, so a
        checksum of the content must. Cancelling the future takes nothing back; wait for it with `asyncio.wait`.
        """
        ...

    def abort(self) -> None:
        """Cancel every receive posted on this peer and still without a message. Does not block; can be repeated.

        A receive whose message is landing right now goes on until it has landed or its sender is known to be dead.
        Other peers are not touched.
        """
        ...


class Transport(Protocol):
    """One worker's side of the moving. Belongs to the event loop that `start` ran on."""

    @property
    def name(self) -> str:
        """``ucx`` or ``loopback``."""
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


def make_transport(settings: TransferSettings) -> Transport:
    """Return the transport that ``settings`` name, not yet started. Raises `PartUnavailable` without its library."""
    if settings.transport == "loopback":
        return LoopbackTransport(PROCESS_NETWORK)
    from kv_transfer.ucx_transport import UcxTransport  # noqa: PLC0415  # UCX is loaded only where it is used

    return UcxTransport(settings)
