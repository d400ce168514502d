"""The two ends that move a benchmark's lots by Baton's transport, through its public contract alone.

One clock for both: the seconds of a lot run from the moment at which the sender begins to the moment at which the
receiver is told of the last block, and what posting the receives took comes on top. Asking the sender is not counted:
in a hand-over it happens while the prompt is still being read. The pools may lie in host memory or in a GPU's.
"""

import asyncio
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Any

import numpy as np

from benchmarks.block_lots import LotKind, blocks_of, check, places
from benchmarks.kv_orders import TAGS_A_LOT, TRIGGER_BYTES, Lots, Order, order_line
from benchmarks.peer_process import PeerProcess
from kv_transfer.lots import Lot
from kv_transfer.transport import Transport

Answer = Callable[[str], None]
"""Says a line to the other side."""


class LotSender:
    """Sends lots of ``pool`` as `Lots` orders ask for."""

    def __init__(self, pool: Any, transports: Mapping[str, Transport], answer: Answer) -> None:
        """``transports`` by what orders call them: their ``UCX_TLS``."""
        self._pool = pool
        self._transports = transports
        self._answer = answer

    async def send(self, order: Lots) -> None:
        """Obey ``order``."""
        kind = order.kind
        rows = blocks_of(self._pool, kind.size)
        peer = await self._transports[order.tls].connect(bytes.fromhex(order.to))
        lots = []
        for number in range(order.number):
            sources = places(kind, order.first + number, len(self._pool))[0].tolist()
            tag = order.tag + number * TAGS_A_LOT + 1
            lots.append(Lot(rows=rows, indices=sources, tag=tag, numbers=range(len(sources))))
        triggers = [
            peer.receive(_trigger(self._pool), order.tag + number * TAGS_A_LOT) for number in range(order.number)
        ]
        self._answer("ready")
        began = []
        for trigger, lot in zip(triggers, lots, strict=True):
            await trigger
            began.append(time.perf_counter())
            await peer.send_lot(lot)
        self._answer(json.dumps(began))


class LotReceiver:
    """Asks a `LotSender` in another process for lots. Each measurement has places that the one before did not have."""

    def __init__(
        self, pool: Any, sender: PeerProcess, addresses: Mapping[str, str], transports: Mapping[str, Transport]
    ) -> None:
        """``addresses`` of the sender and ``transports`` of this side, by what orders call them."""
        self._pool = pool
        self._sender = sender
        self._addresses = addresses
        self._transports = transports
        self._numbers = count()
        self._tags = count(1 << 40, 1 << 32)

    async def gb_s(self, kind: LotKind, tls: str) -> float:
        """Return what Baton's transport moves in a second."""
        kind, numbers = self.next_lots(kind)
        transport = self._transports[tls]
        base = self.next_tag()
        order = Lots(tls=tls, to=transport.address.hex(), tag=base, kind=kind, first=numbers.start, number=len(numbers))
        await self.order(order)
        peer = await transport.connect(bytes.fromhex(self._addresses[tls]))
        rows = blocks_of(self._pool, kind.size)
        trigger = _trigger(self._pool)
        posted, ended = [], []
        lists = [places(kind, number, len(self._pool)) for number in numbers]
        for place, (_, targets) in enumerate(lists):
            tag = base + place * TAGS_A_LOT
            lot = Lot(rows=rows, indices=targets.tolist(), tag=tag + 1, numbers=range(len(targets)))
            landing = Landing(len(lot))
            started = time.perf_counter()
            done = peer.receive_lot(lot, landing)
            posted.append(time.perf_counter() - started)
            triggered = peer.send(trigger, tag)
            await done
            ended.append(landing.ended)
            await triggered
        began = json.loads(await self.hear())
        check(self._pool, kind, *lists[-1])  # it may have overwritten places of those before it
        return gb_s(kind, [post + end - begin for post, begin, end in zip(posted, began, ended, strict=True)])

    async def order(self, order: Order) -> None:
        """Ask the sender for something; return when it waits for what comes next."""
        self._sender.say(order_line(order))
        await self.hear()

    async def hear(self) -> str:
        """Return the sender's next line."""
        return await asyncio.to_thread(self._sender.hear)

    def next_lots(self, kind: LotKind) -> tuple[LotKind, range]:
        """Return the kind as it fits here, and numbers of lots that nobody has had."""
        kind = kind.fitting(len(self._pool))
        first = next(self._numbers) * 1000
        return kind, range(first, first + kind.lots_a_turn)

    def next_tag(self) -> int:
        """Return the first of many tags that nobody has had."""
        return next(self._tags)


class Landing:
    """Hears of blocks that have come, and when the last did."""

    def __init__(self, blocks: int) -> None:
        self._missing = blocks
        self.ended = 0.0

    def __call__(self, places: Sequence[int]) -> None:
        """Take that some more are here."""
        self._missing -= len(places)
        if not self._missing:
            self.ended = time.perf_counter()


def _trigger(pool: Any) -> Any:
    """Return a message in the kind of memory that the pool is."""
    piece = pool[:TRIGGER_BYTES]
    return piece.copy() if isinstance(piece, np.ndarray) else piece.clone()


def gb_s(kind: LotKind, taken_s: Sequence[float]) -> float:
    """Return what was moved in a second, given the seconds of some lots; the median counts."""
    return kind.lot_bytes / statistics.median(taken_s) / 1e9
