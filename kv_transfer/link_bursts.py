"""Messages that are moved for nothing but their timing: the two ends of a link, and the importer's bursts over it."""

import asyncio
import math
import secrets
from asyncio import Future
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, Protocol, Self

import numpy as np

from cluster_core.errors import TransferFailed
from cluster_core.links import ProbeAnswer, ProbeBurst, ProbeQuestion, ProbeReady, ProbeReceive, ProbeSend, ProbeTook
from kv_transfer.link_plan import LARGE_BYTES, SMALL_BYTES
from kv_transfer.lots import Lot
from kv_transfer.transport import Peer

_WORD_BYTES = 8
BURST_BYTES = 4 * LARGE_BYTES
SCRATCH_BYTES = BURST_BYTES + 2 * _WORD_BYTES
"""A burst's messages, and one short answer each way."""
SMALL = ProbeBurst(tag=0, message_bytes=SMALL_BYTES, count=256)
LARGE = ProbeBurst(tag=0, message_bytes=LARGE_BYTES, count=BURST_BYTES // LARGE_BYTES)
ROUND_TRIPS = 6
ROUNDS = 3
"""Bursts of a kind and direction; the quickest counts."""
ENOUGH_S = 0.02
"""No third burst of a kind after two that took so long: a slow link is known to be slow by then."""

_WORD = ProbeBurst(tag=0, message_bytes=_WORD_BYTES, count=1)
_TAG_ROOM_BITS = 16


class ProbeConversation(Protocol):
    """The importer's stream to the exporter."""

    async def ask(self, question: ProbeQuestion) -> ProbeAnswer:
        """Send a question and return its answer. Raises a `BatonError` when the other worker is gone or refuses."""
        ...


class LinkEnds:
    """One side's end of the transport while a link is measured. Leaving it aborts what is still posted."""

    def __init__(self, peer: Peer, scratch: Any, sent: Any) -> None:
        """Bursts come to ``scratch``, and ``sent`` goes, bytes in one piece both; it may be the same."""
        self.scratch = scratch
        self._sent = sent
        self._peer = peer

    async def __aenter__(self) -> Self:
        """Only enter."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Abort the receives that are left."""
        self._peer.abort()

    def post(self, burst: ProbeBurst) -> Future[None]:
        """Post the receives of ``burst``; the future, which must not be cancelled, is done when all have landed."""
        return self._peer.receive_lot(_lot(burst, self.scratch), lambda _: None)

    async def confirm(self, burst: ProbeBurst) -> None:
        """Tell the sender that all of ``burst`` have landed."""
        await landing(self._peer.send(self.scratch[BURST_BYTES : BURST_BYTES + _WORD_BYTES], burst.tag + burst.count))

    async def send(self, burst: ProbeBurst, clock: Callable[[], float]) -> float:
        """Send ``burst``; returns the seconds until the receiver confirmed it."""
        confirmed = self._peer.receive(self.scratch[BURST_BYTES + _WORD_BYTES :], burst.tag + burst.count)
        started = clock()
        sent = self._peer.send_lot(_lot(burst, self._sent))
        await landing(confirmed)
        elapsed_s = clock() - started
        await landing(sent)
        return elapsed_s


def _lot(burst: ProbeBurst, memory: Any) -> Lot:
    size = burst.count * burst.message_bytes
    if size > BURST_BYTES:
        message = f"a burst of {size} bytes; at most {BURST_BYTES}"
        raise TransferFailed(message)
    rows = memory[:size].reshape(burst.count, burst.message_bytes)
    places = range(burst.count)
    return Lot(rows=rows, indices=places, tag=burst.tag, numbers=places)


class LinkBursts:
    """The importer's bursts, one after the other."""

    def __init__(self, conversation: ProbeConversation, ends: LinkEnds, clock: Callable[[], float]) -> None:
        self._conversation = conversation
        self._ends = ends
        self._clock = clock

    async def round_trip(self) -> tuple[float, float]:
        """Return the quickest round trips of a call and of a short message, but for the first."""
        calls, trips = [], []
        for _ in range(ROUND_TRIPS):
            burst = _tagged(_WORD)
            asked = self._clock()
            await self._ready(burst)
            calls.append(self._clock() - asked)
            trips.append(await self._ends.send(burst, self._clock))
        return min(calls[1:]), min(trips[1:])

    async def rate(
        self, move: Callable[[ProbeBurst], Awaitable[float]], burst: ProbeBurst, round_trip_s: float
    ) -> float:
        """Return the bytes a second of the quickest of several bursts that ``move`` moves."""
        quickest_s = math.inf
        for number in range(ROUNDS):
            if number > 1 and quickest_s > ENOUGH_S:
                break
            quickest_s = min(quickest_s, await move(_tagged(burst)))
        return burst.count * burst.message_bytes / max(quickest_s - round_trip_s, quickest_s / 2, 1e-9)

    async def come(self, burst: ProbeBurst) -> float:
        """Let the exporter send ``burst``; returns the seconds that it took."""
        landed = self._ends.post(burst)
        asking = asyncio.create_task(_answered(self._conversation, ProbeSend(burst=burst)))
        try:
            waiting: tuple[Future[Any], ...] = (asking, landed)
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if not landed.done():
                asking.result()  # an exporter that has given up sends no bytes
            await landing(landed)
            await self._ends.confirm(burst)
            answer = await asking
        finally:
            asking.cancel()
        if not isinstance(answer, ProbeTook):
            message = "the exporter does not say how long a burst took"
            raise TransferFailed(message)
        return answer.seconds

    async def go(self, burst: ProbeBurst) -> float:
        """Send ``burst`` to the exporter; returns the seconds that it took."""
        await self._ready(burst)
        return await self._ends.send(burst, self._clock)

    async def _ready(self, burst: ProbeBurst) -> None:
        if not isinstance(await self._conversation.ask(ProbeReceive(burst=burst)), ProbeReady):
            message = "the exporter is not ready to receive"
            raise TransferFailed(message)


def copy_rate(scratch: Any, clock: Callable[[], float]) -> float:
    """Return how fast this machine copies 1 MiB, bytes a second, the quickest of three."""
    source, target = scratch[:LARGE_BYTES], scratch[LARGE_BYTES : 2 * LARGE_BYTES]
    best = 0.0
    for _ in range(ROUNDS):
        started = clock()
        np.copyto(target, source)
        best = max(best, LARGE_BYTES / max(clock() - started, 1e-9))
    return best


def _tagged(burst: ProbeBurst) -> ProbeBurst:
    return replace(burst, tag=secrets.randbits(64 - _TAG_ROOM_BITS) << _TAG_ROOM_BITS)


async def _answered(conversation: ProbeConversation, question: ProbeQuestion) -> ProbeAnswer:
    return await conversation.ask(question)


async def landing(future: "Future[None]") -> None:
    """Wait for a transport's future, which must not be cancelled, and raise what it raised."""
    await asyncio.wait({future})
    future.result()
