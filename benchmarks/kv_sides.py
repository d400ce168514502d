"""The two sides of the block benchmark: what both processes have, and the process that sends.

``python -m benchmarks.kv_sides TLS`` prints the address of its transport and that of its hand-over service, then obeys
lines of JSON, each answered with ``ready`` once what it asks for waits for its trigger: `Blocks`, `Echoes`, `Offer`.
"""

import asyncio
import dataclasses
import json
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.peer_process import orders
from cluster_core.holds import RequestHold
from cluster_core.identity import Attempt, BlockHash, Incarnation, RequestId
from cluster_core.layout import KvLayout
from cluster_rpc.limits import INTERNAL
from cluster_rpc.server import HANDOFF, RpcServer
from inference_engine.block_pool import BlockPool
from inference_engine.kv_pool import KvPool
from kv_transfer.exporter import Exporter, SealedBlock
from kv_transfer.settings import TransferSettings
from kv_transfer.transport import Peer, make_transport
from prefill_worker.service import HandoffService

LAYOUT = KvLayout(layers=12, kv_heads=4, head_dim=64, block_size_tokens=16, dtype="bfloat16")
"""The bench model's: blocks of 192 KiB."""
HANDOVER_BLOCKS = 32
HASHES = tuple(BlockHash(position.to_bytes(16, "big")) for position in range(HANDOVER_BLOCKS))
MEMORY_BYTES = 128 * 2**20
"""More than any cache holds."""
TRIGGER_BYTES = 64
EXPORTER = Incarnation(7)
ATTEMPT = Attempt(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """Send ``count`` blocks of ``size`` bytes with the tags after ``tag``, when a message with ``tag`` has come."""

    to: str
    tag: int
    count: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Echoes:
    """Send ``count`` messages back, each as soon as it comes: tag ``tag`` + 2 i in, the next one out."""

    to: str
    tag: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """Export the pool's blocks as a finished prefill does."""

    request_id: str


Order = Blocks | Echoes | Offer


def order_line(order: Order) -> str:
    """Return the line that asks for ``order``."""
    return json.dumps({"do": type(order).__name__} | dataclasses.asdict(order))


def _order_from(line: str) -> Order:
    fields: dict[str, Any] = json.loads(line)
    kinds: dict[str, type[Order]] = {kind.__name__: kind for kind in (Blocks, Echoes, Offer)}
    return kinds[fields.pop("do")](**fields)


def transfer_settings(tls: str) -> TransferSettings:
    """Return the default settings over ``tls``."""
    return TransferSettings(ucx_tls=tls)


def new_memory() -> "np.ndarray[Any, np.dtype[np.uint8]]":
    """Return `MEMORY_BYTES` bytes that have been written: no page is missing when the clock runs."""
    return np.random.default_rng(1).integers(0, 256, MEMORY_BYTES, dtype=np.uint8)


async def windowed(count: int, in_flight: int, start: Callable[[int], Awaitable[object]]) -> None:
    """Await ``start(0)`` to ``start(count - 1)``, never more than ``in_flight`` at once."""
    numbers = iter(range(count))

    async def lane() -> None:
        for number in numbers:
            await start(number)

    async with asyncio.TaskGroup() as group:
        for _ in range(min(in_flight, count)):
            group.create_task(lane())


class Sender:
    """The process that has the blocks."""

    def __init__(self, tls: str) -> None:
        self._settings = transfer_settings(tls)
        self._transport = make_transport(self._settings)
        self._memory = new_memory()
        self._pool = KvPool(LAYOUT, HANDOVER_BLOCKS, torch.device("cpu"))
        self._holds = BlockPool(HANDOVER_BLOCKS)
        self._server = RpcServer(INTERNAL)
        self._exporter: Exporter

    async def start(self) -> str:
        """Become reachable; return the line that says where."""
        await self._transport.start()
        self._pool.storage.normal_()
        self._exporter = Exporter(
            transport=self._transport,
            memory=self._pool,
            holds=self._holds,
            incarnation=EXPORTER,
            layout=LAYOUT,
            settings=self._settings,
        )
        self._server.add(HANDOFF, HandoffService(self._exporter))
        return f"{self._transport.address.hex()} {await self._server.start('127.0.0.1', 0)}"

    async def close(self) -> None:
        """Let go of everything."""
        await self._server.close()
        await self._transport.close()

    async def obey(self, order: Order, ready: Callable[[], None]) -> None:
        """Do what is asked; ``ready`` is called when the other side may begin."""
        match order:
            case Offer():
                await self._offer(order)
                ready()
            case Blocks():
                peer = await self._transport.connect(bytes.fromhex(order.to))
                trigger = peer.receive(np.zeros(TRIGGER_BYTES, np.uint8), order.tag)
                ready()
                await trigger
                await self._send(peer, order)
            case Echoes():
                peer = await self._transport.connect(bytes.fromhex(order.to))
                message = np.zeros(TRIGGER_BYTES, np.uint8)
                coming = peer.receive(message, order.tag)
                ready()
                for number in range(1, order.count + 1):
                    await coming
                    coming = peer.receive(message, order.tag + 2 * number)
                    await peer.send(message, order.tag + 2 * number - 1)
                peer.abort()

    async def _send(self, peer: Peer, order: Blocks) -> None:
        blocks = self._memory[: order.count * order.size].reshape(order.count, order.size)
        await windowed(
            order.count,
            self._settings.blocks_in_flight,
            lambda number: peer.send(blocks[number], order.tag + 1 + number),
        )

    async def _offer(self, order: Offer) -> None:
        async with asyncio.timeout(self._settings.lease_s):
            # The acceptance of the last hand-over may still be on its way.
            while self._holds.available() < HANDOVER_BLOCKS:  # noqa: ASYNC110  # the pool has no event for it
                await asyncio.sleep(0.001)
        request_id = RequestId(order.request_id)
        hold = RequestHold(request_id, ATTEMPT)
        export = self._exporter.open(request_id, ATTEMPT)
        indices = self._holds.allocate(HANDOVER_BLOCKS, hold)
        export.seal(
            [
                SealedBlock(position=position, index=index, hash=HASHES[position], tokens=LAYOUT.block_size_tokens)
                for position, index in enumerate(indices)
            ]
        )
        export.finish(first_token_id=1)
        self._holds.release(hold)


async def main(tls: str) -> None:
    """Obey until the input ends or a signal comes."""
    sender = Sender(tls)

    def answer(line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    answer(await sender.start())
    async for line in orders():
        await sender.obey(_order_from(line), lambda: answer("ready"))
    await sender.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
