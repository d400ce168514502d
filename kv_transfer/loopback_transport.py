"""A transport within one process: a send copies into the buffer of the receive that waits for its tag."""

import asyncio
import itertools
from asyncio import Future
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from cluster_core.errors import TransferFailed, WorkerLost
from kv_transfer.lots import Landed, Lot, receive_each, send_each, settle


@dataclass(slots=True)
class _Receive:
    view: memoryview
    done: Future[None]
    peer: "LoopbackPeer"


@dataclass(slots=True)
class _Send:
    view: memoryview
    done: Future[None]
    sender: "LoopbackTransport"


@dataclass(slots=True)
class LoopbackNetwork:
    """The addresses of the transports that can reach one another."""

    transports: dict[bytes, "LoopbackTransport"] = field(default_factory=dict)
    _numbers: "itertools.count[int]" = field(default_factory=itertools.count)

    def new_address(self) -> bytes:
        """Return an address that no transport of this network has had."""
        return b"loopback-%d" % next(self._numbers)


PROCESS_NETWORK = LoopbackNetwork()
"""The one network of workers that share a process."""


class LoopbackTransport:
    """See `kv_transfer.transport.Transport`."""

    name = "loopback"

    def __init__(self, network: LoopbackNetwork) -> None:
        self._network = network
        self._address = b""
        self._receives: dict[int, _Receive] = {}
        self._early: dict[int, _Send] = {}

    @property
    def address(self) -> bytes:
        """Where other transports of the network reach this one."""
        assert self._address, "start() comes first"
        return self._address

    async def start(self) -> None:
        """Enter the network."""
        self._address = self._network.new_address()
        self._network.transports[self._address] = self

    async def connect(self, address: bytes) -> "LoopbackPeer":
        """Return a peer for the transport at ``address``."""
        return LoopbackPeer(self, address)

    async def close(self) -> None:
        """Leave the network: receives are cancelled, what waits to be received from here or there is lost."""
        for receive in list(self._receives.values()):
            receive.peer.abort()
        self._lose(self._early.values())
        self._early.clear()
        self._network.transports.pop(self._address, None)
        for other in self._network.transports.values():
            mine = {tag: send for tag, send in other._early.items() if send.sender is self}  # noqa: SLF001  # its own kind
            self._lose(mine.values())
            for tag in mine:
                del other._early[tag]  # noqa: SLF001  # as above

    def _lose(self, sends: Iterable[_Send]) -> None:
        for send in sends:
            settle(send.done, WorkerLost(f"{self._address.decode()} was closed"))

    def _post(self, tag: int, receive: _Receive) -> None:
        early = self._early.pop(tag, None)
        if early is None:
            self._receives[tag] = receive
        else:
            _deliver(early, receive)

    def _arrive(self, tag: int, send: _Send) -> None:
        receive = self._receives.pop(tag, None)
        if receive is None:
            self._early[tag] = send
        else:
            _deliver(send, receive)

    def _cancel(self, peer: "LoopbackPeer") -> None:
        for tag in [tag for tag, receive in self._receives.items() if receive.peer is peer]:
            settle(self._receives.pop(tag).done, TransferFailed("the receive was aborted"))

    def _send(self, address: bytes, view: memoryview, tag: int) -> Future[None]:
        target = self._network.transports.get(address)
        if target is None:
            message = f"nobody listens at {address.decode(errors='replace')}"
            raise WorkerLost(message)
        done: Future[None] = asyncio.get_running_loop().create_future()
        target._arrive(tag, _Send(view, done, self))  # noqa: SLF001  # its own kind
        return done


class LoopbackPeer:
    """See `kv_transfer.transport.Peer`."""

    def __init__(self, transport: LoopbackTransport, address: bytes) -> None:
        self._transport = transport
        self._address = address

    def send(self, buffer: Any, tag: int) -> Future[None]:
        """Post a send; it is done when the bytes are in the receiver's buffer."""
        return self._transport._send(self._address, _bytes_of(buffer), tag)  # noqa: SLF001  # one class in two parts

    def receive(self, buffer: Any, tag: int) -> Future[None]:
        """Post a receive."""
        done: Future[None] = asyncio.get_running_loop().create_future()
        self._transport._post(tag, _Receive(_bytes_of(buffer), done, self))  # noqa: SLF001  # as above
        return done

    def send_lot(self, lot: Lot) -> Future[None]:
        """Post sends."""
        return send_each(self.send, lot)

    def receive_lot(self, lot: Lot, landed: Landed) -> Future[None]:
        """Post receives."""
        return receive_each(self.receive, self.abort, lot, landed)

    def abort(self) -> None:
        """Cancel this peer's receives."""
        self._transport._cancel(self)  # noqa: SLF001  # as above


def _bytes_of(buffer: Any) -> memoryview:
    view = memoryview(buffer)
    return view.cast("B") if view.nbytes else memoryview(bytearray())


def _deliver(send: _Send, receive: _Receive) -> None:
    size = send.view.nbytes
    if size > receive.view.nbytes:
        settle(receive.done, TransferFailed(f"a message of {size} bytes for a buffer of {receive.view.nbytes}"))
    else:
        receive.view[:size] = send.view
        if not receive.done.done():
            receive.done.set_result(None)
    if not send.done.done():
        send.done.set_result(None)
