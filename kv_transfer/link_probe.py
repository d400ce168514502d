"""Measures the way between two workers when they meet. As a side effect everything on it is warm.

Life of a measurement. The importer, which will take blocks over the link, opens a conversation with the exporter and
says hello: transport addresses are exchanged, and where each runs. Then it asks for bursts of messages, in both
directions: very short ones (round trip), 4 KiB and 1 MiB (rates). A burst is timed by its sender on the transport
alone: from the first message to a short answer that the receiver sends when all have landed, less a round trip. Of
several bursts of a kind the quickest counts: the first one opens endpoints. Bursts come to scratch memory, never to
blocks. What goes is scratch, too, but on a GPU the pool itself, whatever it holds: who reads another process's GPU
memory for the first time must map it, all of it, which takes milliseconds that the first hand-over would wait for.

One measurement at a time on either side: two at once would see half of the link each. A measurement that takes
`PATIENCE_S` is given up; nothing depends on it.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np

from cluster_core.errors import ExportGone, TransferFailed
from cluster_core.identity import Incarnation, WorkerId
from cluster_core.links import (
    LinkReport,
    LinkSite,
    ProbeAnswer,
    ProbeHello,
    ProbeQuestion,
    ProbeReady,
    ProbeReceive,
    ProbeSend,
    ProbeTook,
)
from kv_transfer.link_book import LinkBook
from kv_transfer.link_bursts import (
    BURST_BYTES,
    LARGE,
    SCRATCH_BYTES,
    SMALL,
    LinkBursts,
    LinkEnds,
    ProbeConversation,
    copy_rate,
    landing,
)
from kv_transfer.link_site import expected_lane, judged, lane_of, same_host, seen_lane, this_site
from kv_transfer.memory import BlockMemory
from kv_transfer.settings import TransferSettings
from kv_transfer.tcp_traffic import TcpWatch
from kv_transfer.transport import Transport

PATIENCE_S = 5.0


@runtime_checkable
class NamesLanes(Protocol):
    """A transport that tells what carries its messages."""

    def lanes(self, address: bytes) -> tuple[str, ...]:
        """Return the names of what carries messages to ``address``, once some have been sent there."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeParts:
    """What a worker brings to a measurement."""

    transport: Transport
    memory: BlockMemory
    worker_id: WorkerId
    incarnation: Incarnation
    settings: TransferSettings
    book: LinkBook
    """Where measurements are entered."""
    clock: Callable[[], float] = time.perf_counter


class LinkProbe:
    """Both sides of one worker's measurements."""

    def __init__(self, parts: ProbeParts) -> None:
        self.book = parts.book
        self._parts = parts
        self._cuda = hasattr(parts.memory.buffer(0), "__cuda_array_interface__")
        self._site: LinkSite | None = None
        self._bytes: Any = None
        self._measuring = asyncio.Lock()
        self._answering = asyncio.Lock()

    async def measure(self, peer: WorkerId, incarnation: Incarnation, conversation: ProbeConversation) -> LinkReport:
        """Measure the link from ``peer``, unless this life of it was measured before and that is settled.

        Raises a `BatonError` when it cannot be measured.
        """
        async with self._measuring:
            known = self.book.known(peer, incarnation)
            if known is not None and known.settled:
                return known
            try:
                async with asyncio.timeout(PATIENCE_S):
                    measured = await self._measure(peer, incarnation, conversation)
            except TimeoutError as error:
                message = f"the link from {peer} could not be measured within {PATIENCE_S:g} s"
                raise TransferFailed(message) from error
            if known is not None:
                measured = _best_of(known, measured)
            return self.book.enter(judged(measured, self._parts.settings.ucx_tls, self._parts.memory.block_bytes))

    async def answer(self, questions: AsyncIterator[ProbeQuestion]) -> AsyncIterator[ProbeAnswer]:
        """Be the exporter of one conversation. Raises a `BatonError` for what makes no sense or takes too long."""
        try:
            async with asyncio.timeout(PATIENCE_S), self._answering:
                hello = await anext(questions, None)
                if not isinstance(hello, ProbeHello):
                    message = "a measurement begins with hello"
                    raise TransferFailed(message)
                self._check(hello)
                yield self._hello(hello.incarnation)
                async with await self._ends(hello) as ends:
                    async for question in questions:
                        match question:
                            case ProbeSend(burst=burst):
                                yield ProbeTook(seconds=await ends.send(burst, self._parts.clock))
                            case ProbeReceive(burst=burst):
                                landed = ends.post(burst)
                                yield ProbeReady()
                                await landing(landed)
                                await ends.confirm(burst)
                            case _:
                                message = "a measurement has one hello"
                                raise TransferFailed(message)
        except TimeoutError as error:
            message = f"a measurement took more than {PATIENCE_S:g} s"
            raise TransferFailed(message) from error

    async def _measure(self, peer: WorkerId, incarnation: Incarnation, conversation: ProbeConversation) -> LinkReport:
        hello = await conversation.ask(self._hello(incarnation))
        if not isinstance(hello, ProbeHello):
            message = f"{peer} does not say hello"
            raise TransferFailed(message)
        transport, clock = self._parts.transport, self._parts.clock
        here, there = self._here(), hello.site
        async with await self._ends(hello) as ends:
            bursts = LinkBursts(conversation, ends, clock)
            watch = TcpWatch(bursts.come)
            call_s, round_trip_s = await bursts.round_trip()
            measured = LinkReport(
                peer=peer,
                incarnation=incarnation,
                transport=transport.name,
                expected_lane=expected_lane(transport.name, here, there),
                same_host=same_host(here, there),
                call_s=call_s,
                round_trip_s=round_trip_s,
                small_in_bytes_per_s=await bursts.rate(bursts.come, SMALL, round_trip_s),
                large_in_bytes_per_s=await bursts.rate(watch.come, LARGE, round_trip_s),
                small_out_bytes_per_s=await bursts.rate(bursts.go, SMALL, round_trip_s),
                large_out_bytes_per_s=await bursts.rate(bursts.go, LARGE, round_trip_s),
                copy_bytes_per_s=0.0 if self._cuda else copy_rate(ends.scratch, clock),
                measured=1,
            )
        return replace(measured, lane=self._lane(hello, by_tcp=watch.by_tcp))

    def _check(self, hello: ProbeHello) -> None:
        if hello.meant != self._parts.incarnation:
            message = "this worker was restarted"
            raise ExportGone(message)
        if hello.transport != self._parts.transport.name:
            message = f"blocks move by {self._parts.transport.name} here and by {hello.transport} there"
            raise TransferFailed(message)

    async def _ends(self, hello: ProbeHello) -> LinkEnds:
        scratch = self._scratch()
        pool = self._parts.memory.rows.reshape(-1) if self._cuda else scratch
        sent = pool if len(pool) >= BURST_BYTES else scratch
        return LinkEnds(await self._parts.transport.connect(hello.transport_address), scratch, sent)

    def _lane(self, hello: ProbeHello, *, by_tcp: bool | None) -> str:
        transport = self._parts.transport
        if transport.name == "loopback":
            return "memory"
        names = transport.lanes(hello.transport_address) if isinstance(transport, NamesLanes) else ()
        named = lane_of(names, cuda=self._cuda and hello.site.cuda)
        return named or seen_lane(self._here(), hello.site, by_tcp=by_tcp)

    def _here(self) -> LinkSite:
        if self._site is None:
            self._site = this_site(cuda=self._cuda)
        return self._site

    def _hello(self, meant: Incarnation) -> ProbeHello:
        return ProbeHello(
            worker_id=self._parts.worker_id,
            incarnation=self._parts.incarnation,
            meant=meant,
            transport=self._parts.transport.name,
            transport_address=self._parts.transport.address,
            site=self._here(),
        )

    def _scratch(self) -> Any:
        """Return bytes of the kind that the pool's are, touched, so that no page is missing when the clock runs.

        Made at the first measurement and kept: a transport may have registered them.
        """
        if self._bytes is None:
            made = self._parts.memory.buffer(0).new_ones(SCRATCH_BYTES) if self._cuda else None
            self._bytes = np.ones(SCRATCH_BYTES, np.uint8) if made is None else made
        return self._bytes


def _best_of(known: LinkReport, measured: LinkReport) -> LinkReport:
    """Return the better of two measurements: what slows a link down for a moment is not the link."""
    best = max(known, measured, key=lambda report: report.large_in_bytes_per_s)
    return replace(
        best,
        lane=measured.lane,
        small_in_bytes_per_s=max(known.small_in_bytes_per_s, measured.small_in_bytes_per_s),
        small_out_bytes_per_s=max(known.small_out_bytes_per_s, measured.small_out_bytes_per_s),
        large_out_bytes_per_s=max(known.large_out_bytes_per_s, measured.large_out_bytes_per_s),
        measured=known.measured + 1,
    )
