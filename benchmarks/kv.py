"""How fast KV blocks move between two processes of one machine: against memcpy and against UCX's own program.

This process receives, as a decode worker does; `benchmarks.kv_sides` sends. Blocks come from and go to memory larger
than any cache, as many in flight as a hand-over has by default. memcpy is one thread copying the same bytes within one
process, block by block: with CMA the kernel makes that same copy, and nothing can be faster.
"""

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count
from typing import Any

import numpy as np
import torch

from benchmarks import report, ucx_perftest
from benchmarks.kv_sides import (
    ATTEMPT,
    EXPORTER,
    HANDOVER_BLOCKS,
    HASHES,
    LAYOUT,
    MEMORY_BYTES,
    TRIGGER_BYTES,
    Blocks,
    Echoes,
    Offer,
    Order,
    new_memory,
    order_line,
    transfer_settings,
    windowed,
)
from benchmarks.peer_process import PeerProcess, running
from cluster_core.holds import RequestHold
from cluster_core.identity import Incarnation, RequestId, WorkerId
from cluster_rpc.channels import ChannelPool
from cluster_rpc.worker_messages import PrefillOrigin
from decode_worker.handoff_call import GrpcBlockSource
from inference_engine.block_pool import BlockPool
from inference_engine.kv_pool import KvPool
from kv_transfer.importer import Importer, ImportJob
from kv_transfer.transport import Transport, make_transport

TLS = "posix,cma,self,tcp"
"""UCX_TLS of both sides and of the peer."""
SIZES = {"64KiB": 64 * 1024, "192KiB": 192 * 1024, "1MiB": 1024 * 1024}
AIM_SIZE, AIM_PART = "1MiB", 0.5
CASES = (
    *(f"kv.blocks.{size}.{against}" for size in SIZES for against in ("memcpy", "ucx_perftest")),
    f"kv.blocks.{AIM_SIZE}.aim",
    "kv.round_trip.sleeping",
    "kv.round_trip.polling",
    "kv.handover.32x192KiB",
)

Measurement = Callable[[], Awaitable[float]]


class Receiver:
    """Asks the sender for something, receives it, and says how long that took."""

    def __init__(
        self, sender: PeerProcess, sender_address: bytes, transport: Transport, source: GrpcBlockSource
    ) -> None:
        self._sender = sender
        self._sender_address = sender_address
        self._transport = transport
        self._source = source
        self._memory = new_memory()
        self._tags = count(1 << 32, 1 << 24)
        self._requests = count()
        self._in_flight = transfer_settings(TLS).blocks_in_flight

    async def blocks_s(self, blocks: int, size: int) -> float:
        """Return the seconds that ``blocks`` blocks take, from the trigger's leaving to the last byte."""
        tag = next(self._tags)
        await self._order(Blocks(to=self._transport.address.hex(), tag=tag, count=blocks, size=size))
        peer = await self._transport.connect(self._sender_address)
        targets = self._memory[: blocks * size].reshape(blocks, size)
        started = time.perf_counter()
        await peer.send(np.zeros(TRIGGER_BYTES, np.uint8), tag)
        await windowed(blocks, self._in_flight, lambda number: peer.receive(targets[number], tag + 1 + number))
        return time.perf_counter() - started

    async def round_trip_us(self, messages: int) -> float:
        """Return the median round trip of ``messages`` small messages, in microseconds."""
        tag = next(self._tags)
        await self._order(Echoes(to=self._transport.address.hex(), tag=tag, count=messages))
        peer = await self._transport.connect(self._sender_address)
        message = np.zeros(TRIGGER_BYTES, np.uint8)
        taken = []
        for number in range(messages):
            started = time.perf_counter()
            back = peer.receive(message, tag + 2 * number + 1)
            await peer.send(message, tag + 2 * number)
            await back
            taken.append(time.perf_counter() - started)
        return 1e6 * statistics.median(taken)

    async def handover_s(self, origin: PrefillOrigin, holds: BlockPool) -> float:
        """Return the seconds of a whole hand-over of blocks that are sealed already, as the decode worker does it."""
        request_id = RequestId(f"handover-{next(self._requests)}")
        await self._order(Offer(request_id=request_id))
        hold = RequestHold(request_id, ATTEMPT)
        job = ImportJob(
            request_id=request_id,
            attempt=ATTEMPT,
            exporter=origin.worker_id,
            exporter_incarnation=origin.incarnation,
            targets=tuple(holds.allocate(HANDOVER_BLOCKS, hold)),
            kept=frozenset(),
            hashes=HASHES,
        )
        started = time.perf_counter()
        await self._source(origin, job)
        taken = time.perf_counter() - started
        holds.release(hold)
        return taken

    async def _order(self, order: Order) -> None:
        self._sender.say(order_line(order))
        await asyncio.to_thread(self._sender.hear)


@asynccontextmanager
async def _both_sides() -> AsyncIterator[tuple[Receiver, PrefillOrigin, BlockPool]]:
    """Start the sender and everything on this side; end all with the block."""
    settings = transfer_settings(TLS)
    async with AsyncExitStack() as exits:
        sender = exits.enter_context(running("benchmarks.kv_sides", TLS))
        transport_address, service_address = (await asyncio.to_thread(sender.hear)).split()
        transport = make_transport(settings)
        await transport.start()
        exits.push_async_callback(transport.close)
        memory = KvPool(LAYOUT, HANDOVER_BLOCKS, torch.device("cpu"))
        holds = BlockPool(HANDOVER_BLOCKS)
        importer = Importer(
            transport=transport,
            memory=memory,
            holds=holds,
            worker_id=WorkerId("decode-0"),
            incarnation=Incarnation(9),
            layout=LAYOUT,
            settings=settings,
        )
        exits.push_async_callback(importer.close)
        channels = ChannelPool()
        exits.push_async_callback(channels.close)
        source = GrpcBlockSource(importer, channels)
        exits.push_async_callback(source.close)
        origin = PrefillOrigin(worker_id=WorkerId("prefill-0"), incarnation=EXPORTER, address=service_address)
        yield Receiver(sender, bytes.fromhex(transport_address), transport, source), origin, holds


class Copies:
    """memcpy within this process."""

    def __init__(self) -> None:
        self._source, self._target = new_memory(), new_memory()

    async def gb_s(self, blocks: int, size: int) -> float:
        """Copy ``blocks`` blocks of ``size`` bytes; return GB/s."""
        sources: Any = self._source[: blocks * size].reshape(blocks, size)
        targets: Any = self._target[: blocks * size].reshape(blocks, size)
        started = time.perf_counter()
        for source, target in zip(sources, targets, strict=True):
            np.copyto(target, source)
        return blocks * size / (time.perf_counter() - started) / 1e9


async def _medians(what: str, rounds: int, measurements: list[Measurement]) -> list[float]:
    for measurement in measurements:
        await measurement()
    results: list[list[float]] = [[] for _ in measurements]
    for position in report.turns(what, rounds, len(measurements)):
        results[position].append(await measurements[position]())
    return [statistics.median(values) for values in results]


async def _block_rows(receiver: Receiver, copies: Copies, rounds: int, total_bytes: int) -> list[report.Row]:
    rows = []
    in_flight = transfer_settings(TLS).blocks_in_flight
    for name, size in SIZES.items():
        blocks = total_bytes // size

        async def ours(blocks: int = blocks, size: int = size) -> float:
            return blocks * size / await receiver.blocks_s(blocks, size) / 1e9

        async def memcpy(blocks: int = blocks, size: int = size) -> float:
            return await copies.gb_s(blocks, size)

        async def perftest(size: int = size) -> float:
            return await asyncio.to_thread(ucx_perftest.bandwidth, TLS, size, 4 * total_bytes, in_flight)

        case = f"kv.blocks.{name}"
        value, copied, peer = await _medians(case, rounds, [ours, memcpy, perftest])
        rows.append(report.higher_is_better(f"{case}.memcpy", value, "GB/s", "memcpy, one thread", copied))
        rows.append(report.higher_is_better(f"{case}.ucx_perftest", value, "GB/s", "ucx_perftest tag_bw", peer))
        if name == AIM_SIZE:
            against = f"aim: {AIM_PART:.0%} of memcpy"
            rows.append(report.higher_is_better(f"{case}.aim", value, "GB/s", against, AIM_PART * copied))
    return rows


async def _round_trip_rows(receiver: Receiver, rounds: int, messages: int) -> list[report.Row]:
    async def ours() -> float:
        return await receiver.round_trip_us(messages)

    async def sleeping() -> float:
        return await asyncio.to_thread(ucx_perftest.round_trip, TLS, TRIGGER_BYTES, messages, "sleep")

    async def polling() -> float:
        return await asyncio.to_thread(ucx_perftest.round_trip, TLS, TRIGGER_BYTES, 20 * messages, "poll")

    value, sleep, poll = await _medians("kv.round_trip", rounds, [ours, sleeping, polling])
    return [
        report.lower_is_better("kv.round_trip.sleeping", value, "us", "ucx_perftest tag_lat, sleeping", sleep),
        report.lower_is_better("kv.round_trip.polling", value, "us", "ucx_perftest tag_lat, spinning", poll),
    ]


async def measure(*, quick: bool) -> list[report.Row]:
    """Return a row for each of `CASES`."""
    rounds = 1 if quick else 7
    total_bytes = MEMORY_BYTES // 16 if quick else MEMORY_BYTES
    async with _both_sides() as (receiver, origin, holds):
        rows = await _block_rows(receiver, Copies(), rounds, total_bytes)
        rows += await _round_trip_rows(receiver, rounds, 50 if quick else 1000)

        async def handover() -> float:
            return 1e3 * await receiver.handover_s(origin, holds)

        async def bare() -> float:
            return 1e3 * await receiver.blocks_s(HANDOVER_BLOCKS, LAYOUT.block_bytes)

        value, moved = await _medians("kv.handover", 3 * rounds, [handover, bare])
    case = "kv.handover.32x192KiB"
    rows.append(report.lower_is_better(case, value, "ms", "the bare transport, same blocks", moved))
    return rows


def main() -> None:
    """Measure and print."""
    options = report.parser(__doc__).parse_args()
    report.show(asyncio.run(measure(quick=options.quick)), as_json=options.json)


if __name__ == "__main__":
    main()
