"""What is told of the times of a hand-over, from moments that are known exactly."""

import asyncio
from asyncio import Future
from typing import Any

import pytest

from cluster_core.handoff import BlocksSealed, ExporterMessage, ExportFinished, HandoffReport, PullBlocks
from kv_transfer.exporter import Export
from kv_transfer.import_times import ImportTimes
from kv_transfer.loopback_transport import LoopbackNetwork, LoopbackTransport
from kv_transfer.lots import Landed, Lot, settle
from kv_transfer.settings import TransferSettings
from kv_transfer.transport import Peer
from tests.kv_transfer.fake_pool import ATTEMPT, LAYOUT, REQUEST, sealed_blocks
from tests.kv_transfer.handover import Clock
from tests.kv_transfer.pair import Pair, ended, until

MS = 0.001
TOKENS = 320
BLOCKS = 20
KV_BYTES = BLOCKS * LAYOUT.block_bytes
APART_S = 5000.0
"""By so much the exporter's clock differs from the importer's."""


class HeldPeer:
    """A peer whose lots leave when the test says so."""

    def __init__(self, peer: Peer, held: "list[tuple[Lot, Future[None]]]") -> None:
        self.peer = peer
        self._held = held

    def send(self, buffer: Any, tag: int) -> Future[None]:
        return self.peer.send(buffer, tag)

    def receive(self, buffer: Any, tag: int) -> Future[None]:
        return self.peer.receive(buffer, tag)

    def send_lot(self, lot: Lot) -> Future[None]:
        sent: Future[None] = asyncio.get_running_loop().create_future()
        self._held.append((lot, sent))
        return sent

    def receive_lot(self, lot: Lot, landed: Landed) -> Future[None]:
        return self.peer.receive_lot(lot, landed)

    def abort(self) -> None:
        self.peer.abort()


class HeldTransport(LoopbackTransport):
    """A loopback whose peers hold what they are to send."""

    def __init__(self, network: LoopbackNetwork) -> None:
        super().__init__(network)
        self.held: list[tuple[Lot, Future[None]]] = []
        self._peer: HeldPeer

    async def connect(self, address: bytes) -> Any:
        self._peer = HeldPeer(await super().connect(address), self.held)
        return self._peer

    async def release(self) -> None:
        held, self.held[:] = list(self.held), []
        for lot, sent in held:
            await self._peer.peer.send_lot(lot)
            settle(sent, None)


class Handover:
    """One hand-over of which the test moves the bytes, the news and the time."""

    def __init__(self, sender: HeldTransport, receiver: LoopbackTransport, settings: Any = None) -> None:
        self.pair = Pair(sender, receiver, settings) if settings is not None else Pair(sender, receiver)
        self.here = Clock(now=7.0)
        self.pair.importer.clock = self.here
        self._sender = sender
        self._news: list[ExporterMessage] = []
        self.pair.channel.twist = self._hold
        self.export: Export
        self.running: asyncio.Task[Any]

    def _hold(self, message: ExporterMessage) -> list[ExporterMessage]:
        if isinstance(message, BlocksSealed | ExportFinished):
            self._news.append(message)
            return []
        return [message]

    def offer(self) -> None:
        self.export = self.pair.exporter.open(REQUEST, ATTEMPT)

    def start(self) -> None:
        self.running = self.pair.start(TOKENS)

    async def pulled(self) -> None:
        await until(self.pair.is_pulled)
        await self.settled()

    def at(self, ms: float) -> None:
        """Let it be so many milliseconds after the beginning."""
        self.here.now = 7.0 + ms * MS
        self.pair.clock.now = 7.0 + APART_S + ms * MS

    def fill(self, first: int, end: int) -> None:
        self.export.seal(sealed_blocks(TOKENS)[first:end])

    async def bytes_come(self) -> None:
        await self._sender.release()
        await self.settled()

    async def news_come(self) -> None:
        await self.settled()
        news, self._news[:] = list(self._news), []
        for message in news:
            self.pair.channel.to_importer.put_nowait(message)
        await self.settled()

    async def settled(self) -> None:
        """Let everything happen that can at this moment of the clocks."""
        for _ in range(40):
            await asyncio.sleep(0)

    async def report(self) -> HandoffReport:
        return (await ended(self.running)).report


@pytest.fixture
async def transports() -> tuple[HeldTransport, LoopbackTransport]:
    network = LoopbackNetwork()
    sender, receiver = HeldTransport(network), LoopbackTransport(network)
    await sender.start()
    await receiver.start()
    return sender, receiver


@pytest.fixture
async def handover(transports: tuple[HeldTransport, LoopbackTransport]) -> Handover:
    handover = Handover(*transports)
    handover.at(0)
    return handover


def in_ms(report: HandoffReport) -> tuple[float, ...]:
    """Return for how long blocks were under way, of that before the end of the prefill, and what followed its end."""
    spans = (report.transfer_s, report.overlapped_s, report.exposed_s)
    return tuple(round(each / MS, 6) for each in spans)


@pytest.mark.parametrize(
    ("bytes_ms", "news_ms", "exposed_ms"),
    [(50, 51, 51), (50, 50.1, 50.1), (51, 50, 51), (1, 30, 30), (30, 1, 30), (30, 30, 30), (0, 0, 0)],
)
async def test_what_follows_the_prefill_is_exposed_whatever_comes_first(
    handover: Handover, bytes_ms: float, news_ms: float, exposed_ms: float
) -> None:
    handover.start()
    handover.offer()
    await handover.pulled()
    handover.at(20)
    handover.fill(0, BLOCKS)
    handover.export.finish(7)
    await handover.settled()
    for ms, come in sorted([(bytes_ms, handover.bytes_come), (news_ms, handover.news_come)], key=lambda each: each[0]):
        handover.at(20 + ms)
        await come()
    report = await handover.report()
    assert in_ms(report) == (bytes_ms, 0.0, exposed_ms)
    assert report.messages == 1, "one lot of 20 blocks"
    assert report.bytes_per_s == pytest.approx(KV_BYTES / (bytes_ms * MS) if bytes_ms else 0.0)
    assert report.unsure_s == pytest.approx(0.0)


async def test_what_was_under_way_before_the_end_of_the_prefill_is_overlapped(handover: Handover) -> None:
    handover.start()
    handover.offer()
    await handover.pulled()
    handover.at(10)
    handover.fill(0, 8)
    handover.at(14)
    await handover.bytes_come()
    handover.at(16)
    await handover.news_come()
    handover.at(20)
    handover.fill(8, 16)
    await handover.news_come()
    handover.at(25)
    handover.fill(16, BLOCKS)
    handover.export.finish(7)
    handover.at(28)
    await handover.bytes_come()
    handover.at(40)
    await handover.news_come()
    report = await handover.report()
    assert in_ms(report) == (4 + 8, 4 + 5, 15)
    assert report.messages == 3
    assert report.bytes_per_s == pytest.approx(KV_BYTES / (12 * MS))


async def test_the_wait_for_an_importer_that_comes_late_is_exposed_and_no_transfer(handover: Handover) -> None:
    handover.offer()
    handover.fill(0, 10)
    handover.at(3)
    handover.fill(10, BLOCKS)
    handover.export.finish(7)
    handover.at(100)
    handover.start()
    await handover.pulled()
    handover.at(101)
    await handover.news_come()
    handover.at(104)
    await handover.bytes_come()
    report = await handover.report()
    assert in_ms(report) == (4, 0, 101)
    assert report.messages == 1, "all of it was there when it was asked for"


async def test_each_pull_of_what_is_there_is_a_lot(transports: tuple[HeldTransport, LoopbackTransport]) -> None:
    handover = Handover(*transports, TransferSettings(transport="loopback", blocks_in_flight=8))
    handover.at(0)
    handover.offer()
    handover.fill(0, BLOCKS)
    handover.export.finish(7)
    handover.start()
    await handover.pulled()
    await handover.news_come()
    for ms in (2, 3, 7):
        handover.at(ms)
        await handover.bytes_come()
    report = await handover.report()
    assert in_ms(report) == (7, 0, 7)
    pulls = len([message for message in handover.pair.channel.said if isinstance(message, PullBlocks)])
    assert report.messages == pulls == 4, "of 8 blocks, and by halves of that when half has come"


def told(times: ImportTimes) -> tuple[float, ...]:
    spans = times.spans()
    return spans.transfer_s, spans.unsure_s, spans.overlapped_s, spans.exposed_s


def opened(clock: Clock, waited_s: float = 3.0, news_s: float | None = None) -> ImportTimes:
    """Return an import that asked at 0, was answered between 3 and 5, and asks for two blocks at 5."""
    clock.now = 0.0
    times = ImportTimes(clock, news_s)
    times.opening()
    clock.now = 5.0
    times.answered(waited_s)
    times.pulled((0, 1))
    return times


def test_without_a_measurement_the_answer_came_half_of_the_way_back() -> None:
    clock = Clock()
    times = opened(clock)
    clock.now = 20.0
    times.filled((0, 1), filled_s=10.0)
    times.ended(10.0)
    times.landed(0)
    times.landed(1)
    assert told(times) == (20.0 - 14.0, 1.0, 0.0, 6.0), "answered at 4, give or take 1"


def test_a_measured_link_tells_how_long_news_take() -> None:
    clock = Clock()
    times = opened(clock, news_s=0.5)
    clock.now = 20.0
    times.filled((0, 1), filled_s=10.0)
    times.ended(10.0)
    times.landed(0)
    times.landed(1)
    assert told(times) == (20.0 - 14.5, 1.5, 0.0, 5.5)
    times = opened(clock, news_s=60.0)
    clock.now = 20.0
    times.filled((0, 1), filled_s=10.0)
    times.ended(10.0)
    times.landed(0)
    times.landed(1)
    assert told(times) == (7.0, 2.0, 0.0, 7.0), "never before it was asked"


@pytest.mark.parametrize("kind", ["news of blocks", "news of the end", "bytes"])
def test_nothing_is_seen_before_it_happened(kind: str) -> None:
    clock = Clock()
    times = opened(clock, news_s=0.0)
    clock.now = 13.5  # so the opening was answered at 3.5 at the latest
    if kind == "news of blocks":
        times.filled((0, 1), filled_s=10.0)
    if kind == "news of the end":
        times.ended(10.0)
    if kind == "bytes":
        times.landed(0)
    clock.now = 20.0
    times.filled((0, 1), filled_s=10.0)
    times.ended(10.0)
    for position in {0, 1} - ({0} if kind == "bytes" else set()):
        times.landed(position)
    transfer_s, unsure_s, overlapped_s, exposed_s = told(times)
    assert (transfer_s, overlapped_s, exposed_s) == (6.5, 0.0, 6.5)
    assert unsure_s == 0.5


def test_each_time_that_begins_with_the_exporters_word_may_be_off() -> None:
    clock = Clock()
    times = opened(clock)
    for position, (filled_s, landed_s) in enumerate([(10.0, 16.0), (20.0, 25.0)]):
        clock.now = landed_s
        times.landed(position)
        times.filled((position,), filled_s)
    times.ended(20.0)
    assert told(times) == (2.0 + 1.0, 2.0, 2.0, 1.0)
    times = opened(clock)
    times.filled((0,), filled_s=-2.0)
    clock.now = 7.0
    times.landed(0)
    times.filled((1,), filled_s=2.0)
    times.ended(2.0)
    times.landed(1)
    assert told(times) == (2.0, 0.0, 1.0, 1.0), "what was there when it was asked for: from 5 to 7, by one clock"


def test_the_first_pull_was_said_before_it_was_heard() -> None:
    clock = Clock()
    times = opened(clock)
    times.pulling()
    clock.now = 9.0
    times.pulling()
    clock.now = 20.0
    times.filled((0, 1), filled_s=10.0, pulled_s=0.5)
    times.ended(10.0)
    times.landed(0)
    times.landed(1)
    assert told(times) == (5.25, 0.25, 0.0, 5.25), "answered between 4.5 and 5"


def test_an_exporter_that_cannot_be_right_makes_no_time_negative() -> None:
    clock = Clock()
    times = opened(clock, waited_s=1e6)
    clock.now = 6.0
    times.pulling()
    times.filled((0, 1), filled_s=1e6, pulled_s=-1e6)
    times.ended(1e6)
    times.landed(0)
    times.landed(1)
    assert min(told(times)) >= 0.0
