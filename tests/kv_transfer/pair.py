"""An exporter and an importer with a pool each, and ways to disturb them."""

import asyncio
from asyncio import Future
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster_core.handoff import PullBlocks
from cluster_core.holds import LeaseHold, WriterHold
from kv_transfer.exporter import Exporter
from kv_transfer.import_job import Imported
from kv_transfer.importer import Importer
from kv_transfer.loopback_transport import LoopbackNetwork, LoopbackTransport
from kv_transfer.lots import Landed, Lot
from kv_transfer.transport import Peer, Transport
from tests.kv_transfer.fake_pool import ATTEMPT, REQUEST, FakePool, sealed_blocks
from tests.kv_transfer.handover import SETTINGS, Channel, Clock, job_of, make_exporter, make_importer

TIMEOUT_S = 20.0


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not condition():  # noqa: ASYNC110  # the condition lies in the unit under test, which has no event for it
            await asyncio.sleep(0)


def same(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> bool:
    return np.array_equal(first, second)


class SwitchedPeer:
    """A peer whose incoming bytes can be held back, as those of a slow sender are."""

    def __init__(self, peer: Peer, transport: "SwitchedTransport") -> None:
        self._peer = peer
        self._transport = transport

    def send(self, buffer: Any, tag: int) -> Future[None]:
        return self._peer.send(buffer, tag)

    def receive(self, buffer: Any, tag: int) -> Future[None]:
        return self._peer.receive(buffer, tag + self._transport.astray)

    def send_lot(self, lot: Lot) -> Future[None]:
        return self._peer.send_lot(lot)

    def receive_lot(self, lot: Lot, landed: Landed) -> Future[None]:
        return self._peer.receive_lot(replace(lot, tag=lot.tag + self._transport.astray), landed)

    def abort(self) -> None:
        self._transport.aborts += 1
        if not self._transport.stuck:
            self._peer.abort()


class SwitchedTransport:
    """A loopback transport that counts aborts, can let messages go astray, and can be deaf to aborts."""

    name = "loopback"

    def __init__(self, network: LoopbackNetwork) -> None:
        self._inner = LoopbackTransport(network)
        self.astray = 0
        self.stuck = False
        self.aborts = 0

    @property
    def address(self) -> bytes:
        return self._inner.address

    async def start(self) -> None:
        await self._inner.start()

    async def connect(self, address: bytes) -> Peer:
        return SwitchedPeer(await self._inner.connect(address), self)

    async def close(self) -> None:
        await self._inner.close()


class Pair:
    """An exporter and an importer with a pool each."""

    def __init__(self, prefill: Transport, decode: Transport, settings: Any = SETTINGS) -> None:
        self.clock = Clock()
        self.prefill, self.decode = prefill, decode
        self.prefill_pool, self.decode_pool = FakePool(40, seed=1), FakePool(40, seed=2)
        self.exporter: Exporter = make_exporter(prefill, self.prefill_pool, settings, self.clock)
        self.importer: Importer = make_importer(decode, self.decode_pool, settings)
        self.channel = Channel()
        self.serving: asyncio.Task[None] | None = None

    def start(self, tokens: int, kept: frozenset[int] = frozenset()) -> "asyncio.Task[Imported]":
        self.serving = asyncio.create_task(self.channel.serve(self.exporter))
        return asyncio.create_task(self.importer.run(job_of(tokens, first_target=4, kept=kept), self.channel))

    def is_pulled(self) -> bool:
        """Whether the importer has asked for blocks."""
        return any(isinstance(message, PullBlocks) for message in self.channel.said)

    def export(self, tokens: int) -> None:
        export = self.exporter.open(REQUEST, ATTEMPT)
        export.seal(sealed_blocks(tokens))
        export.finish(77)

    def assert_same(self, tokens: int, kept: frozenset[int] = frozenset()) -> None:
        for block in sealed_blocks(tokens):
            same = np.array_equal(self.prefill_pool.bytes[block.index], self.decode_pool.bytes[4 + block.position])
            assert same == (block.position not in kept)

    async def assert_no_holds(self) -> None:
        await until(lambda: not (self.prefill_pool.count(LeaseHold) or self.decode_pool.count(WriterHold)))
        assert self.importer.quarantined == 0


async def ended(running: "asyncio.Task[Imported]") -> Imported:
    return await asyncio.wait_for(running, TIMEOUT_S)


def drop(kind: type) -> Any:
    """Return a twist that loses the exporter's messages of one kind."""
    return lambda message: [] if isinstance(message, kind) else [message]
