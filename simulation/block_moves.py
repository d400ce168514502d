"""A transport whose bytes take time, and may be lost, late, torn, doubled or changed on their way.

It keeps the promise of `kv_transfer.transport`: a receive's future is done only when no byte of its message can land
any more. A send reads its buffer when its bytes land, as a transfer without copies does: whoever reuses the buffer
before that changes what arrives. With bytes that land in two halves, an abort in between takes nothing back.
"""

import asyncio
import random
from asyncio import Future
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cluster_core.errors import TransferFailed, WorkerLost
from kv_transfer.lots import Landed, Lot, receive_each, send_each
from simulation.network import Network
from simulation.virtual_loop import Host

MOVE_S = 0.0005
LATE_S = 0.01, 0.7
TORN_S = 0.0005, 0.2


@dataclass(slots=True, eq=False)
class _Receive:
    view: memoryview
    done: "Future[None]"
    peer: "SimulatedPeer"
    block: tuple[int, int] | None = None
    """The block's index and the tag of its lot; None: the bytes belong to no pool."""


@dataclass(slots=True, eq=False)
class _Move:
    """A message on its way."""

    view: memoryview
    tag: int
    done: "Future[None]"
    sender: "SimulatedTransport"
    target: "SimulatedTransport"
    fault: str | None

    @property
    def ends(self) -> tuple[Host, Host]:
        return self.sender.host, self.target.host

    def broken(self, _reason: str) -> None:
        network = self.sender.network
        network.drop(self)
        network.loop.on_host(self.sender.host, 1e-6, _fail, self.done, WorkerLost("the other worker is gone"))
        network.loop.on_host(self.target.host, 1e-6, self.target.lose, self)


class BlockFaults:
    """Which faults the moves of one run meet, and how often. ``injected`` counts them."""

    def __init__(self, randomness: random.Random) -> None:
        self.injected = 0
        self._random = randomness
        self._rates: dict[str, float] = {}

    def set_rate(self, fault: str, rate: float) -> None:
        """Let a part of all moves meet ``fault``."""
        self._rates[fault] = rate

    def clear(self) -> None:
        """Let every move go well."""
        self._rates.clear()

    def draw(self) -> str | None:
        """Return what happens to the next move."""
        for fault, rate in self._rates.items():
            if rate and self._random.random() < rate:
                self.injected += 1
                return fault
        return None

    def time_s(self, least_s: float, most_s: float) -> float:
        """Draw how long something takes."""
        return self._random.uniform(least_s, most_s)

    def place(self, size: int) -> int:
        """Draw a place among ``size``."""
        return self._random.randrange(size)


class SimulatedTransport:
    """See `kv_transfer.transport.Transport`."""

    name = "simulated"

    def __init__(
        self, network: Network, host: Host, address: bytes, faults: BlockFaults, may_land: Callable[[int, int], bool]
    ) -> None:
        """``may_land`` says of a block's index and a lot's tag whether the block is kept for the lot's bytes."""
        self._may_land = may_land
        self.network = network
        self.host = host
        self.faults = faults
        self._address = address
        self._receives: dict[int, _Receive] = {}
        self._early: dict[int, _Move] = {}
        self._landing: dict[_Move, _Receive] = {}

    @property
    def address(self) -> bytes:
        """Where others reach it."""
        return self._address

    async def start(self) -> None:
        """Become reachable."""
        self.listen()

    def listen(self) -> None:
        """Become reachable."""
        self.network.servers[self._address.decode()] = self

    async def connect(self, address: bytes) -> "SimulatedPeer":
        """Return a peer."""
        return SimulatedPeer(self, address)

    async def close(self) -> None:
        """Abort everything."""
        self.network.servers.pop(self._address.decode(), None)
        for receive in list(self._receives.values()):
            receive.peer.abort()

    def lose(self, move: _Move) -> None:
        """Note that a message's sender is gone: a receive that it had begun to fill fails, others wait on."""
        self._early.pop(move.tag, None)
        receive = self._landing.pop(move, None)
        if receive is not None:
            _fail(receive.done, TransferFailed("the sender died in the middle"))

    def post(self, tag: int, receive: _Receive) -> None:
        """Wait for a message."""
        early = self._early.pop(tag, None)
        self._receives[tag] = receive
        if early is not None:
            self._land(early)

    def cancel(self, peer: "SimulatedPeer") -> None:
        """Cancel what a peer waits for and what has not begun to land."""
        for tag in [tag for tag, receive in self._receives.items() if receive.peer is peer]:
            _fail(self._receives.pop(tag).done, TransferFailed("the receive was aborted"))

    def send(self, address: bytes, view: memoryview, tag: int) -> "Future[None]":
        """Put a message on its way."""
        target = self.network.servers.get(address.decode())
        if target is None:
            message = f"nobody listens at {address.decode()}"
            raise WorkerLost(message)
        done: Future[None] = asyncio.get_running_loop().create_future()
        fault = self.faults.draw()
        move = _Move(view, tag, done, self, target, fault)
        self.network.history.note(self.network.loop.now, "block", self.host.name, target.host.name, fault or "")
        if fault == "lost":
            return done
        self.network.carry(move)
        delay_s = MOVE_S + (self.faults.time_s(*LATE_S) if fault == "late" else 0.0)
        self.network.loop.on_host(self.network.loop.world, delay_s, self._leave, move)
        return done

    def _leave(self, move: _Move) -> None:
        self.network.deliver(self.host, move.target.host, 0.0, move.target.arrive, move)

    def arrive(self, move: _Move) -> None:
        """Take a message whose receive may be posted already."""
        if not move.sender.host.alive:
            return
        if move.tag in self._receives:
            self._land(move)
        else:
            self._early[move.tag] = move

    def _land(self, move: _Move) -> None:
        """Let the bytes land: all at once, or in two halves."""
        receive = self._receives.pop(move.tag)
        if move.view.nbytes > receive.view.nbytes:
            _fail(receive.done, TransferFailed("a message too long for its buffer"))
            return
        if move.fault != "torn":
            self._copy(move, receive, 0, move.view.nbytes)
            self._landed(move, receive)
            return
        half = move.view.nbytes // 2
        self._landing[move] = receive
        self._copy(move, receive, 0, half)
        self.network.loop.on_host(self.host, self.faults.time_s(*TORN_S), self._rest, move, half)

    def _rest(self, move: _Move, half: int) -> None:
        receive = self._landing.pop(move, None)
        if receive is not None:
            self._copy(move, receive, half, move.view.nbytes)
            self._landed(move, receive)

    def _copy(self, move: _Move, receive: _Receive, begin: int, end: int) -> None:
        content = bytearray(move.view[begin:end])
        match move.fault:
            case "flipped" if begin == 0:
                content[self.faults.place(len(content))] ^= 1 << self.faults.place(8)
            case "short":
                content = content[: len(content) // 2]
            case "misplaced":
                content = content[8:] + content[:8]
            case _:
                pass
        free = receive.block is not None and not self._may_land(*receive.block)
        assert not free, f"bytes of {move.sender.host.name} land in a block that no writer holds"
        receive.view[begin : begin + len(content)] = content

    def _landed(self, move: _Move, receive: _Receive) -> None:
        self.network.drop(move)
        if not receive.done.done():
            receive.done.set_result(None)
        self.network.loop.on_host(move.sender.host, 1e-6, _finish, move.done)
        if move.fault == "doubled":
            self._early[move.tag] = move


class SimulatedPeer:
    """See `kv_transfer.transport.Peer`."""

    def __init__(self, transport: SimulatedTransport, address: bytes) -> None:
        self._transport = transport
        self._address = address

    def send(self, buffer: Any, tag: int) -> "Future[None]":
        """Post a send."""
        return self._transport.send(self._address, memoryview(buffer).cast("B"), tag)

    def receive(self, buffer: Any, tag: int) -> "Future[None]":
        """Post a receive."""
        return self._receive(buffer, tag, None)

    def _receive(self, buffer: Any, tag: int, block: tuple[int, int] | None) -> "Future[None]":
        done: Future[None] = asyncio.get_running_loop().create_future()
        self._transport.post(tag, _Receive(memoryview(buffer).cast("B"), done, self, block))
        return done

    def send_lot(self, lot: Lot) -> "Future[None]":
        """Post sends."""
        return send_each(self.send, lot)

    def receive_lot(self, lot: Lot, landed: Landed) -> "Future[None]":
        """Post receives."""
        blocks = {lot.tag + number: index for number, index in zip(lot.numbers, lot.indices, strict=True)}

        def receive(buffer: Any, tag: int) -> "Future[None]":
            return self._receive(buffer, tag, (blocks[tag], lot.tag))

        return receive_each(receive, self.abort, lot, landed)

    def abort(self) -> None:
        """Cancel this peer's receives."""
        self._transport.cancel(self)


def _finish(done: "Future[None]") -> None:
    if not done.done():
        done.set_result(None)


def _fail(done: "Future[None]", error: Exception) -> None:
    if not done.done():
        done.set_exception(error)
        done.exception()  # nobody may wait for it any more
