"""A transport whose messages land when the test says so, in two halves: in between, the bytes are torn.

A message is read from the sender's memory when it lands, not when it is sent: what is written there meanwhile travels.
"""

import asyncio
from asyncio import Future
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from cluster_core.errors import TransferFailed, WorkerLost
from kv_transfer.lots import Landed, Lot, receive_each, send_each


@dataclass(slots=True, eq=False)
class _Receive:
    buffer: Any
    done: Future[None]
    peer: "HeldPeer"


@dataclass(slots=True, eq=False)
class _Send:
    buffer: Any
    done: Future[None]
    sender: bytes


@dataclass(slots=True, eq=False)
class Landing:
    """A message on its way."""

    tag: int
    send: _Send
    receive: _Receive
    halves: int = 0


@dataclass(slots=True)
class HeldNetwork:
    """All messages between the workers of a test."""

    landings: list[Landing] = field(default_factory=list)
    """Messages that have a sender and a receiver, in the order in which they met."""
    _sends: dict[int, deque[_Send]] = field(default_factory=dict)
    _receives: dict[int, deque[_Receive]] = field(default_factory=dict)
    _addresses: set[bytes] = field(default_factory=set)
    _made: int = 0

    def land(self, landing: Landing, *, torn: bool = False) -> None:
        """Land the next half; ``torn``: the message ends where it is, and nobody is told."""
        send, receive = landing.send, landing.receive
        middle = len(send.buffer) // 2
        part = slice(0, middle) if landing.halves == 0 else slice(middle, None)
        receive.buffer[part] = send.buffer[part]
        landing.halves += 1
        if landing.halves == 2 or torn:
            self.landings.remove(landing)
            for done in (receive.done, send.done):
                if not done.done():
                    done.set_result(None)

    def lose_sender(self, address: bytes) -> None:
        """Let a worker die: what it was sending never comes, and half a message fails."""
        self._addresses.discard(address)
        for landing in [landing for landing in self.landings if landing.send.sender == address]:
            self.landings.remove(landing)
            if landing.halves:
                _fail(landing.receive.done, TransferFailed("the sender died"))
            else:
                self._receives.setdefault(landing.tag, deque()).append(landing.receive)
        for tag, sends in list(self._sends.items()):
            self._sends[tag] = deque(send for send in sends if send.sender != address)

    def abort(self, peer: "HeldPeer") -> None:
        """Cancel a peer's receives, but for those that are landing."""
        for landing in [landing for landing in self.landings if landing.receive.peer is peer and not landing.halves]:
            self.landings.remove(landing)
            _fail(landing.receive.done, TransferFailed("the receive was aborted"))
            self._sends.setdefault(landing.tag, deque()).appendleft(landing.send)
        for receives in self._receives.values():
            for receive in [receive for receive in receives if receive.peer is peer]:
                receives.remove(receive)
                _fail(receive.done, TransferFailed("the receive was aborted"))

    def new_address(self) -> bytes:
        self._made += 1
        address = b"held-%d" % self._made
        self._addresses.add(address)
        return address

    def reaches(self, address: bytes) -> bool:
        return address in self._addresses

    def send(self, tag: int, send: _Send) -> None:
        self._sends.setdefault(tag, deque()).append(send)
        self._meet(tag)

    def receive(self, tag: int, receive: _Receive) -> None:
        self._receives.setdefault(tag, deque()).append(receive)
        self._meet(tag)

    def _meet(self, tag: int) -> None:
        sends, receives = self._sends.get(tag), self._receives.get(tag)
        if sends and receives:
            self.landings.append(Landing(tag, sends.popleft(), receives.popleft()))


class HeldTransport:
    """See `kv_transfer.transport.Transport`; reachable from its making on."""

    name = "held"

    def __init__(self, network: HeldNetwork) -> None:
        self.network = network
        self.address = network.new_address()

    async def start(self) -> None:
        """Nothing is to be done."""

    async def connect(self, address: bytes) -> "HeldPeer":
        return HeldPeer(self, address)

    async def close(self) -> None:
        self.network.lose_sender(self.address)


class HeldPeer:
    """See `kv_transfer.transport.Peer`."""

    def __init__(self, transport: HeldTransport, address: bytes) -> None:
        self._transport = transport
        self._address = address

    def send(self, buffer: Any, tag: int) -> Future[None]:
        if not self._transport.network.reaches(self._address):
            message = "nobody listens there"
            raise WorkerLost(message)
        done: Future[None] = asyncio.get_running_loop().create_future()
        self._transport.network.send(tag, _Send(buffer, done, self._transport.address))
        return done

    def receive(self, buffer: Any, tag: int) -> Future[None]:
        done: Future[None] = asyncio.get_running_loop().create_future()
        self._transport.network.receive(tag, _Receive(buffer, done, self))
        return done

    def send_lot(self, lot: Lot) -> Future[None]:
        return send_each(self.send, lot)

    def receive_lot(self, lot: Lot, landed: Landed) -> Future[None]:
        return receive_each(self.receive, self.abort, lot, landed)

    def abort(self) -> None:
        self._transport.network.abort(self)


def _fail(done: Future[None], error: Exception) -> None:
    if not done.done():
        done.set_exception(error)
        done.exception()  # nobody need ask
