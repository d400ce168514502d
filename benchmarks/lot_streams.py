"""Small lots with several under way at once, as programs that measure bandwidth keep a window of messages.

One small lot at a time is a matter of how long a message takes; a stream of them is one of how much work each makes.
Ours, the kernel's own call and NIXL keep `IN_FLIGHT` lots under way. One clock for all: from the moment at which the
side with the blocks begins to the moment at which the other knows that it has the last; what posting the first receives
took comes on top.
"""

import socket
import time
from asyncio import Future
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.block_lots import IN_FLIGHT, LOTS_OF_A_STREAM, LotKind, Memory, blocks_of, check, places
from benchmarks.kv_orders import SHARED_MEMORY, TAGS_A_LOT, TRIGGER_BYTES, LotStream, RawStream
from benchmarks.lot_sides import Answer, Landing, LotReceiver
from benchmarks.raw_transfer import CmaReader, hear_begin, tell_begin
from kv_transfer.lots import Lot
from kv_transfer.transport import Transport

_READY = b"!"


async def send_stream(pool: Any, transport: Transport, order: LotStream, answer: Answer) -> None:
    """Send lots of ``pool``: the next one when the oldest under way has left."""
    peer = await transport.connect(bytes.fromhex(order.to))
    lots = _lots(pool, order.kind, order.first, order.tag, side=0)
    trigger = peer.receive(np.zeros(TRIGGER_BYTES, np.uint8), order.tag)
    answer("ready")
    await trigger
    began = time.perf_counter()
    under_way: deque[Future[None]] = deque()
    for lot in lots:
        if len(under_way) == IN_FLIGHT:
            await under_way.popleft()
        under_way.append(peer.send_lot(lot))
    for sent in under_way:
        await sent
    answer(str(began))


def send_raw_stream(connection: socket.socket, answer: Answer) -> None:
    """Say of each lot that it is there; one more for each that was read. Blocks the thread."""
    answer("ready")
    told = read = 0
    connection.recv(len(_READY))
    while read < LOTS_OF_A_STREAM:
        while told < min(read + IN_FLIGHT, LOTS_OF_A_STREAM):
            tell_begin(connection)
            told += 1
        read += len(connection.recv(IN_FLIGHT))


class StreamReceiver:
    """Asks the sender for streams."""

    def __init__(self, pool: Memory, lots: LotReceiver, addresses: Mapping[str, str], transport: Transport) -> None:
        """``addresses`` are the sender's and ``transport`` this side's, over shared memory."""
        self._pool = pool
        self._asking = lots
        self._address = bytes.fromhex(addresses[SHARED_MEMORY])
        self._transport = transport

    async def ours_gb_s(self, kind: LotKind) -> float:
        """Return what Baton's transport moves in a second."""
        kind, numbers = self._asking.next_lots(kind)
        base, to = self._asking.next_tag(), self._transport.address.hex()
        await self._asking.order(LotStream(to=to, tag=base, kind=kind, first=numbers.start))
        peer = await self._transport.connect(self._address)
        lots = _lots(self._pool, kind, numbers.start, base, side=1)
        landing = Landing(sum(len(lot) for lot in lots))
        started = time.perf_counter()
        awaited = deque(peer.receive_lot(lot, landing) for lot in lots[:IN_FLIGHT])
        posted_s = time.perf_counter() - started
        triggered = peer.send(np.zeros(TRIGGER_BYTES, np.uint8), base)
        for lot in lots[IN_FLIGHT:]:
            await awaited.popleft()
            awaited.append(peer.receive_lot(lot, landing))
        for one in (*awaited, triggered):
            await one
        began = float(await self._asking.hear())
        return self._checked_gb_s(kind, numbers.start, posted_s + landing.ended - began)

    async def cma_gb_s(self, kind: LotKind, reader: CmaReader, connection: socket.socket) -> float:
        """Return what `process_vm_readv` reads in a second, by a process that sleeps while no lot is there."""
        kind, numbers = self._asking.next_lots(kind)
        await self._asking.order(RawStream())
        prepared = [reader.prepared(kind, *sides) for sides in _places(kind, numbers.start, self._pool)]
        connection.send(_READY)
        moments = []
        for calls in prepared:
            moments.append(hear_begin(connection))
            reader.read(calls)
            connection.send(_READY)
        return self._checked_gb_s(kind, numbers.start, time.perf_counter() - moments[0])

    def _checked_gb_s(self, kind: LotKind, first: int, taken_s: float) -> float:
        check(self._pool, kind, *_places(kind, first, self._pool)[-1])
        return LOTS_OF_A_STREAM * kind.lot_bytes / taken_s / 1e9


def _places(kind: LotKind, first: int, pool: Any) -> list[tuple[Any, Any]]:
    return [places(kind, number, len(pool)) for number in range(first, first + LOTS_OF_A_STREAM)]


def _lots(pool: Any, kind: LotKind, first: int, tag: int, *, side: int) -> list[Lot]:
    """Return the lots of a stream as the sender (``side`` 0) or the receiver (1) has them."""
    rows, numbers = blocks_of(pool, kind.size), range(kind.count)
    return [
        Lot(rows=rows, indices=both[side].tolist(), tag=tag + position * TAGS_A_LOT + 1, numbers=numbers)
        for position, both in enumerate(_places(kind, first, pool))
    ]
