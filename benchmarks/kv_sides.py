"""The side of the block benchmark that has the blocks.

``python -m benchmarks.kv_sides POOL_BYTES`` prints one line of JSON, `Facts`, then obeys lines of JSON, each answered
with ``ready`` once it waits for what comes next; `Lots` are answered a second time, when all have left.
"""

import asyncio
import dataclasses
import json
import os
import socket
import sys

import numpy as np
import torch

from benchmarks.block_lots import new_pool, places
from benchmarks.kv_orders import (
    ATTEMPT,
    EXPORTER,
    HANDOVER_BLOCKS,
    HASHES,
    LAYOUT,
    SHARED_MEMORY,
    TCP,
    TRIGGER_BYTES,
    Echoes,
    Facts,
    Lots,
    LotStream,
    Offer,
    Order,
    RawLots,
    RawStream,
    order_from,
    transfer_settings,
)
from benchmarks.lot_sides import Answer, LotSender
from benchmarks.lot_streams import send_raw_stream, send_stream
from benchmarks.peer_process import orders
from benchmarks.raw_transfer import pieces_of, send_pieces, tell_begin
from cluster_core.holds import RequestHold
from cluster_core.identity import RequestId
from cluster_rpc.handoff_service import HandoffService
from cluster_rpc.limits import INTERNAL
from cluster_rpc.server import HANDOFF, RpcServer
from inference_engine.block_pool import BlockPool
from inference_engine.kv_pool import KvPool
from kv_transfer.export_memory import SealedBlock
from kv_transfer.exporter import Exporter
from kv_transfer.transport import make_transport


class Sender:
    """The process that has the blocks."""

    def __init__(self, pool_bytes: int, answer: Answer) -> None:
        """``answer`` says a line to the other side."""
        self._answer = answer
        self._memory = new_pool(pool_bytes)
        self._transports = {tls: make_transport(transfer_settings(tls)) for tls in (SHARED_MEMORY, TCP)}
        self._lots = LotSender(self._memory, self._transports, answer)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._connection: socket.socket | None = None
        self._pool = KvPool(LAYOUT, HANDOVER_BLOCKS, torch.device("cpu"))
        self._holds = BlockPool(HANDOVER_BLOCKS)
        self._server = RpcServer(INTERNAL)
        self._exporter: Exporter

    async def start(self) -> Facts:
        """Become reachable."""
        for transport in self._transports.values():
            await transport.start()
        self._pool.storage.normal_()
        self._exporter = Exporter(
            transport=self._transports[SHARED_MEMORY],
            memory=self._pool,
            holds=self._holds,
            incarnation=EXPORTER,
            layout=LAYOUT,
            settings=transfer_settings(SHARED_MEMORY),
        )
        self._server.add(HANDOFF, HandoffService(self._exporter))
        return Facts(
            transports={tls: transport.address.hex() for tls, transport in self._transports.items()},
            service=await self._server.start("127.0.0.1", 0),
            pid=os.getpid(),
            pool_address=self._memory.ctypes.data,
            port=self._listener.getsockname()[1],
        )

    async def close(self) -> None:
        """Let go of everything."""
        await self._server.close()
        for transport in self._transports.values():
            await transport.close()
        if self._connection is not None:
            self._connection.close()
        self._listener.close()

    async def obey(self, order: Order) -> None:
        """Do what is asked."""
        match order:
            case Lots():
                await self._lots.send(order)
            case LotStream():
                await send_stream(self._memory, self._transports[SHARED_MEMORY], order, self._answer)
            case RawStream():
                send_raw_stream(self._connected(), self._answer)
            case RawLots():
                self._send_raw(order)
            case Echoes():
                await self._echo(order)
            case Offer():
                await self._offer(order)

    def _send_raw(self, order: RawLots) -> None:
        """Block the loop: nothing else goes on meanwhile."""
        self._answer("ready")
        connection = self._connected()
        for number in range(order.first, order.first + order.number):
            sources, _ = places(order.kind, number, len(self._memory))
            pieces = pieces_of(self._memory, order.kind.size, sources) if order.send else []
            connection.recv(1)
            tell_begin(connection)
            send_pieces(connection, pieces)

    def _connected(self) -> socket.socket:
        if self._connection is None:
            self._connection, _ = self._listener.accept()
            self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self._connection

    async def _echo(self, order: Echoes) -> None:
        peer = await self._transports[SHARED_MEMORY].connect(bytes.fromhex(order.to))
        message = np.zeros(TRIGGER_BYTES, np.uint8)
        coming = peer.receive(message, order.tag)
        self._answer("ready")
        for number in range(1, order.count + 1):
            await coming
            coming = peer.receive(message, order.tag + 2 * number)
            await peer.send(message, order.tag + 2 * number - 1)
        peer.abort()

    async def _offer(self, order: Offer) -> None:
        async with asyncio.timeout(transfer_settings(SHARED_MEMORY).lease_s):
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
        self._answer("ready")


async def main(pool_bytes: int) -> None:
    """Obey until the input ends or a signal comes."""

    def answer(line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    sender = Sender(pool_bytes, answer)
    answer(json.dumps(dataclasses.asdict(await sender.start())))
    async for line in orders():
        await sender.obey(order_from(line))
    await sender.close()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
