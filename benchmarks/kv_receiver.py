"""The side of the block benchmark that receives, as a decode worker does.

Every other way is timed as `benchmarks.lot_sides` times Baton's transport.
"""

import asyncio
import json
import socket
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count

import numpy as np
import torch

from benchmarks.block_lots import LotKind, Memory, Places, check, new_pool, places
from benchmarks.device_pool import LotDigests
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
    Offer,
    Order,
    RawLots,
    transfer_settings,
)
from benchmarks.lot_sides import LotReceiver, gb_s
from benchmarks.lot_streams import StreamReceiver
from benchmarks.peer_process import PeerProcess, running
from benchmarks.raw_transfer import CmaReader, Copies, RemotePool, hear_begin, pieces_of, receive_pieces
from cluster_core.holds import RequestHold
from cluster_core.identity import Incarnation, RequestId, WorkerId
from cluster_rpc.channels import ChannelPool
from cluster_rpc.worker_messages import PrefillOrigin
from decode_worker.handoff_call import GrpcBlockSource
from inference_engine.block_pool import BlockPool
from inference_engine.kv_pool import KvPool
from kv_transfer.import_job import ImportJob
from kv_transfer.importer import Importer
from kv_transfer.transport import Transport, make_transport


class Receiver:
    """Measures lots. Each measurement has places that the one before did not have."""

    def __init__(self, pool: Memory, sender: PeerProcess, facts: Facts, transports: dict[str, Transport]) -> None:
        self._pool = pool
        self._facts = facts
        self._transports = transports
        self._copies = Copies(new_pool(len(pool)), pool)
        self._digests = LotDigests(pool)
        self._cma = CmaReader(pool, RemotePool(pid=facts.pid, address=facts.pool_address))
        self._connection = socket.create_connection(("127.0.0.1", facts.port))
        self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._lots = LotReceiver(pool, sender, facts.transports, transports)
        self._streams = StreamReceiver(pool, self._lots, facts.transports, transports[SHARED_MEMORY])

    def close(self) -> None:
        """Close the plain connection."""
        self._connection.close()

    async def ours_gb_s(self, kind: LotKind, tls: str) -> float:
        """Return what Baton's transport moves in a second."""
        return await self._lots.gb_s(kind, tls)

    async def ours_streaming_gb_s(self, kind: LotKind) -> float:
        """Return what Baton's transport moves in a second with several lots under way."""
        return await self._streams.ours_gb_s(kind)

    async def cma_streaming_gb_s(self, kind: LotKind) -> float:
        """Return what `process_vm_readv` reads in a second where the sender tells of lots before others were read."""
        return await self._streams.cma_gb_s(kind, self._cma, self._connection)

    async def memcpy_gb_s(self, kind: LotKind) -> float:
        """Return what one thread copies in a second."""
        kind, numbers = self._lots.next_lots(kind)
        lists = [places(kind, number, len(self._pool)) for number in numbers]
        taken = [self._copies.seconds(kind, sources, targets) for sources, targets in lists]
        self._check(kind, lists)
        return gb_s(kind, taken)

    async def digest_gb_s(self, kind: LotKind) -> float:
        """Return what one side of a hand-over digests in a second."""
        kind, numbers = self._lots.next_lots(kind)
        lists = [places(kind, number, len(self._pool)) for number in numbers]
        return gb_s(kind, [self._digests.seconds(kind, targets.tolist()) for _, targets in lists])

    async def cma_gb_s(self, kind: LotKind) -> float:
        """Return what `process_vm_readv` reads in a second, by a process that sleeps until the sender begins."""
        kind, numbers = self._lots.next_lots(kind)
        lists = [places(kind, number, len(self._pool)) for number in numbers]
        await self.order(RawLots(kind=kind, first=numbers.start, number=len(numbers), send=False))
        taken = []
        for sources, targets in lists:
            calls = self._cma.prepared(kind, sources, targets)
            self._connection.send(b"!")
            began = hear_begin(self._connection)
            self._cma.read(calls)
            taken.append(time.perf_counter() - began)
        self._check(kind, lists)
        return gb_s(kind, taken)

    async def sockets_gb_s(self, kind: LotKind) -> float:
        """Return what a plain TCP connection over loopback moves in a second."""
        kind, numbers = self._lots.next_lots(kind)
        lists = [places(kind, number, len(self._pool)) for number in numbers]
        await self.order(RawLots(kind=kind, first=numbers.start, number=len(numbers), send=True))
        taken = []
        for _, targets in lists:
            pieces = pieces_of(self._pool, kind.size, targets)
            self._connection.send(b"!")
            began = hear_begin(self._connection)
            receive_pieces(self._connection, pieces)
            taken.append(time.perf_counter() - began)
        self._check(kind, lists)
        return gb_s(kind, taken)

    async def round_trip_us(self, messages: int) -> float:
        """Return the median round trip of ``messages`` small messages, in microseconds."""
        tag = self._lots.next_tag()
        transport = self._transports[SHARED_MEMORY]
        await self.order(Echoes(to=transport.address.hex(), tag=tag, count=messages))
        peer = await transport.connect(bytes.fromhex(self._facts.transports[SHARED_MEMORY]))
        message = np.zeros(TRIGGER_BYTES, np.uint8)
        taken = []
        for number in range(messages):
            started = time.perf_counter()
            back = peer.receive(message, tag + 2 * number + 1)
            await peer.send(message, tag + 2 * number)
            await back
            taken.append(time.perf_counter() - started)
        return 1e6 * statistics.median(taken)

    async def order(self, order: Order) -> None:
        """Ask the sender for something; return when it waits for what comes next."""
        await self._lots.order(order)

    def _check(self, kind: LotKind, lists: list[tuple[Places, Places]]) -> None:
        """Check the last lot: it may have overwritten places of those before it."""
        check(self._pool, kind, *lists[-1])


class Handovers:
    """Whole hand-overs of blocks that are sealed already, as the decode worker does them."""

    def __init__(self, receiver: Receiver, source: GrpcBlockSource, origin: PrefillOrigin, holds: BlockPool) -> None:
        self._receiver = receiver
        self._source = source
        self._origin = origin
        self._holds = holds
        self._requests = count()

    async def handover_s(self) -> float:
        """Return the seconds of one."""
        request_id = RequestId(f"handover-{next(self._requests)}")
        await self._receiver.order(Offer(request_id=request_id))
        hold = RequestHold(request_id, ATTEMPT)
        job = ImportJob(
            request_id=request_id,
            attempt=ATTEMPT,
            exporter=self._origin.worker_id,
            exporter_incarnation=self._origin.incarnation,
            targets=tuple(self._holds.allocate(HANDOVER_BLOCKS, hold)),
            kept=frozenset(),
            hashes=HASHES,
        )
        started = time.perf_counter()
        await self._source(self._origin, job)
        taken = time.perf_counter() - started
        self._holds.release(hold)
        return taken


@asynccontextmanager
async def both_sides(pool_bytes: int) -> AsyncIterator[tuple[Receiver, Handovers]]:
    """Start the sender and everything on this side; end all with the block."""
    async with AsyncExitStack() as exits:
        sender = exits.enter_context(running("benchmarks.kv_sides", str(pool_bytes)))
        facts = Facts(**json.loads(await asyncio.to_thread(sender.hear)))
        transports = {tls: make_transport(transfer_settings(tls)) for tls in (SHARED_MEMORY, TCP)}
        for transport in transports.values():
            await transport.start()
            exits.push_async_callback(transport.close)
        receiver = Receiver(new_pool(pool_bytes), sender, facts, transports)
        exits.callback(receiver.close)
        holds = BlockPool(HANDOVER_BLOCKS)
        importer = Importer(
            transport=transports[SHARED_MEMORY],
            memory=KvPool(LAYOUT, HANDOVER_BLOCKS, torch.device("cpu")),
            holds=holds,
            worker_id=WorkerId("decode-0"),
            incarnation=Incarnation(9),
            layout=LAYOUT,
            settings=transfer_settings(SHARED_MEMORY),
        )
        exits.push_async_callback(importer.close)
        channels = ChannelPool()
        exits.push_async_callback(channels.close)
        source = GrpcBlockSource(importer, channels)
        exits.push_async_callback(source.close)
        origin = PrefillOrigin(worker_id=WorkerId("prefill-0"), incarnation=EXPORTER, address=facts.service)
        yield receiver, Handovers(receiver, source, origin, holds)
