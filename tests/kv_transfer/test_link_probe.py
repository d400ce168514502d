"""Measuring a link: within one process, and between two over UCX."""

import asyncio
import pickle
import socket
import struct
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from threading import Thread
from typing import Any

import numpy as np
import pytest

from cluster_core.errors import BatonError, ExportGone, TransferFailed
from cluster_core.identity import Incarnation, WorkerId
from cluster_core.links import LinkReport, ProbeAnswer, ProbeBurst, ProbeHello, ProbeQuestion, ProbeReceive
from kv_transfer import link_probe
from kv_transfer.link_bursts import BURST_BYTES, LinkBursts
from kv_transfer.link_probe import LinkProbe, ProbeParts
from kv_transfer.loopback_transport import LoopbackNetwork, LoopbackTransport
from kv_transfer.settings import TransferSettings
from kv_transfer.transport import make_transport
from tests.kv_transfer.probes import BLOCK_BYTES, DirectConversation, parts_of

TIMEOUT_S = 30.0


@contextmanager
def tcp_connection() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as sending:
        receiving, _ = server.accept()
        with receiving:
            yield sending, receiving


EXPORTER = WorkerId("prefill-0")


@pytest.fixture
async def pair() -> AsyncIterator[tuple[ProbeParts, ProbeParts]]:
    """Yield the parts of an importer and of an exporter."""
    network = LoopbackNetwork()
    transports = LoopbackTransport(network), LoopbackTransport(network)
    for transport in transports:
        await transport.start()
    yield parts_of("decode-0", transports[0]), parts_of(EXPORTER, transports[1])
    for transport in transports:
        await transport.close()


def assert_measured(report: LinkReport, life: Incarnation) -> None:
    figures = (
        report.call_s,
        report.round_trip_s,
        report.small_in_bytes_per_s,
        report.large_in_bytes_per_s,
        report.small_out_bytes_per_s,
        report.large_out_bytes_per_s,
        report.copy_bytes_per_s,
        report.fixed_s,
        report.bytes_per_s,
        report.blocks_in_flight,
    )
    assert all(figure > 0 for figure in figures)
    assert (report.peer, report.incarnation, report.measured, report.same_host) == (EXPORTER, life, 1, True)


async def test_both_directions_are_measured_and_remembered(pair: tuple[ProbeParts, ProbeParts]) -> None:
    here, there = pair
    probe, conversation = LinkProbe(here), DirectConversation(LinkProbe(there))
    report = await probe.measure(EXPORTER, there.incarnation, conversation)
    assert_measured(report, there.incarnation)
    assert (report.lane, report.expected_lane, report.warning) == ("memory", "memory", "")
    asked = conversation.asked
    again = await probe.measure(EXPORTER, there.incarnation, conversation)
    assert conversation.asked == asked
    assert again == here.book.reports()[0]
    await conversation.close()


class OnDevice(np.ndarray[Any, np.dtype[np.uint8]]):
    """A GPU's memory, as far as one can tell from outside."""

    __cuda_array_interface__: Any = {}  # noqa: RUF012  # the protocol's name for an attribute

    def new_ones(self, size: int) -> "OnDevice":
        return np.ones(size, np.uint8).view(OnDevice)


async def test_bursts_of_a_gpu_come_from_its_pool_and_never_go_into_it(pair: tuple[ProbeParts, ProbeParts]) -> None:
    probes = []
    for parts, byte in zip(pair, (3, 5), strict=True):
        parts.memory.rows = np.full((100, BLOCK_BYTES), byte, np.uint8).view(OnDevice)  # type: ignore[misc]  # a fake's
        probes.append(LinkProbe(parts))
    conversation = DirectConversation(probes[1])
    await probes[0].measure(EXPORTER, pair[1].incarnation, conversation)
    await conversation.close()
    for parts, probe, byte in zip(pair, probes, (5, 3), strict=True):
        assert (probe._scratch()[:BURST_BYTES] == byte).all()
        assert (parts.memory.rows == 8 - byte).all()


async def test_a_bad_moment_is_measured_again_and_the_best_stands(pair: tuple[ProbeParts, ProbeParts]) -> None:
    here, there = pair
    probe = LinkProbe(here)
    slow = LinkReport(
        peer=EXPORTER,
        incarnation=there.incarnation,
        transport="loopback",
        same_host=True,
        small_in_bytes_per_s=1e3,
        large_in_bytes_per_s=1e3,
        copy_bytes_per_s=1e9,
        measured=1,
        settled=False,
    )
    here.book.enter(slow)
    conversation = DirectConversation(LinkProbe(there))
    report = await probe.measure(EXPORTER, there.incarnation, conversation)
    assert (report.measured, report.warning) == (2, "")
    assert report.large_in_bytes_per_s > 1e3
    await conversation.close()


async def test_of_each_direction_the_best_measurement_stands(pair: tuple[ProbeParts, ProbeParts]) -> None:
    here, there = pair
    probe = LinkProbe(here)
    known = LinkReport(
        peer=EXPORTER,
        incarnation=there.incarnation,
        transport="loopback",
        large_in_bytes_per_s=1e3,
        small_out_bytes_per_s=1e15,
        large_out_bytes_per_s=1e15,
        measured=1,
        settled=False,
    )
    here.book.enter(known)
    conversation = DirectConversation(LinkProbe(there))
    report = await probe.measure(EXPORTER, there.incarnation, conversation)
    await conversation.close()
    assert report.large_in_bytes_per_s > 1e3
    assert (report.small_out_bytes_per_s, report.large_out_bytes_per_s) == (1e15, 1e15)


class MuteTransport(LoopbackTransport):
    """Like NIXL, it does not say what carries its messages."""

    name = "nixl"


@pytest.mark.parametrize(("by_tcp", "lane"), [(True, "tcp"), (False, "shared memory")])
async def test_what_a_transport_does_not_say_the_kernel_does(
    by_tcp: bool,
    lane: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Bursts(LinkBursts):
        async def come(self, burst: ProbeBurst) -> float:
            if by_tcp:
                await asyncio.to_thread(lambda: carry(burst.count * burst.message_bytes))
            return await super().come(burst)

    monkeypatch.setattr(link_probe, "LinkBursts", Bursts)
    network = LoopbackNetwork()
    transports = MuteTransport(network), MuteTransport(network)
    for transport in transports:
        await transport.start()
    here, there = parts_of("decode-0", transports[0]), parts_of(EXPORTER, transports[1])
    with tcp_connection() as (sending, receiving):

        def carry(count: int) -> None:
            sender = Thread(target=sending.sendall, args=(bytes(count),))
            sender.start()
            while count:
                count -= len(receiving.recv(1 << 20))
            sender.join()

        carry(1)
        conversation = DirectConversation(LinkProbe(there))
        report = await LinkProbe(here).measure(EXPORTER, there.incarnation, conversation)
    await conversation.close()
    for transport in transports:
        await transport.close()
    assert report.lane == lane
    assert ("where shared memory was expected" in report.warning) == by_tcp


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"meant": Incarnation(1)}, ExportGone, "restarted"),
        ({"transport": "nixl"}, TransferFailed, "blocks move by loopback here and by nixl there"),
    ],
)
async def test_a_stranger_is_refused(
    pair: tuple[ProbeParts, ProbeParts], changes: dict[str, Any], error: type[BatonError], says: str
) -> None:
    here, there = pair
    hello = replace(LinkProbe(here)._hello(there.incarnation), **changes)
    conversation = DirectConversation(LinkProbe(there))
    with pytest.raises(error, match=says):
        await conversation.ask(hello)
    await conversation.close()


@pytest.mark.parametrize(
    "question",
    [
        ProbeReceive(burst=ProbeBurst(tag=0, message_bytes=BURST_BYTES, count=2)),
        "hello again",
    ],
)
async def test_what_makes_no_sense_ends_the_measurement(
    pair: tuple[ProbeParts, ProbeParts], question: ProbeQuestion | str
) -> None:
    here, there = pair
    hello = LinkProbe(here)._hello(there.incarnation)
    conversation = DirectConversation(LinkProbe(there))
    assert isinstance(await conversation.ask(hello), ProbeHello)
    with pytest.raises(TransferFailed):
        await conversation.ask(hello if isinstance(question, str) else question)
    await conversation.close()


@pytest.mark.parametrize("mute_from", [0, 1, 4, 8, 14])
async def test_a_mute_exporter_costs_patience_and_nothing_else(
    pair: tuple[ProbeParts, ProbeParts], monkeypatch: pytest.MonkeyPatch, mute_from: int
) -> None:
    monkeypatch.setattr(link_probe, "PATIENCE_S", 0.05)
    here, there = pair
    probe = LinkProbe(here)
    mute = DirectConversation(LinkProbe(there), mute_from)
    with pytest.raises(TransferFailed, match="could not be measured within"):
        await probe.measure(EXPORTER, there.incarnation, mute)
    await mute.close()
    assert here.book.reports() == ()
    monkeypatch.setattr(link_probe, "PATIENCE_S", 10.0)
    conversation = DirectConversation(LinkProbe(there))
    assert_measured(await probe.measure(EXPORTER, there.incarnation, conversation), there.incarnation)
    await conversation.close()


class PipeConversation:
    """The stream to an exporter process."""

    def __init__(self, process: Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._in, self._out = process.stdin, process.stdout

    async def ask(self, question: ProbeQuestion) -> ProbeAnswer:
        data = pickle.dumps(question)
        self._in.write(struct.pack("<I", len(data)) + data)
        answer: ProbeAnswer = await self.read()
        return answer

    async def read(self) -> Any:
        (size,) = struct.unpack("<I", await self._out.readexactly(4))
        return pickle.loads(await self._out.readexactly(size))  # noqa: S301  # our own child

    def end(self) -> None:
        self._in.close()


@pytest.mark.parametrize(
    ("ucx_tls", "lane", "warning"),
    [("", "cma", ""), ("posix,self,tcp", "shared memory", ""), ("self,tcp", "tcp", "where shared memory was expected")],
)
async def test_between_two_processes_the_lane_is_the_one_that_ucx_uses(ucx_tls: str, lane: str, warning: str) -> None:
    settings = TransferSettings(ucx_tls=ucx_tls)
    transport = make_transport(settings)
    module = "tests.kv_transfer.probe_process"
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", module, ucx_tls, stdin=PIPE, stdout=PIPE)
    await transport.start()
    try:
        async with asyncio.timeout(TIMEOUT_S):
            conversation = PipeConversation(process)
            life = await conversation.read()
            report = await LinkProbe(parts_of("decode-0", transport, settings)).measure(EXPORTER, life, conversation)
            conversation.end()
            assert await process.wait() == 0
    finally:
        await transport.close()
    assert_measured(report, life)
    assert (report.lane, report.expected_lane) == (lane, "shared memory")
    assert warning in report.warning
    assert bool(report.cure) == bool(report.warning)
