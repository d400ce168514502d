"""Exporter and importer together: what arrives, and who holds what afterwards."""

import asyncio
import dataclasses
from asyncio import Future
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cluster_core.errors import ExportGone, LegFailed, TransferFailed, WorkerLost
from cluster_core.handoff import (
    AcceptBlocks,
    BlocksSealed,
    BlocksSent,
    ExporterMessage,
    ExportFailed,
    ExportFinished,
    OpenExport,
    PullBlocks,
    RejectBlocks,
)
from cluster_core.holds import LeaseHold, WriterHold
from cluster_core.identity import Attempt, Incarnation
from kv_transfer.exporter import Exporter
from kv_transfer.importer import Imported, Importer
from kv_transfer.loopback_transport import LoopbackNetwork, LoopbackTransport
from kv_transfer.transport import Peer, Transport
from kv_transfer.ucx_transport import UcxTransport
from tests.kv_transfer.fake_pool import ATTEMPT, REQUEST, TOKEN_BYTES, FakePool, sealed_blocks
from tests.kv_transfer.handover import SETTINGS, Channel, Clock, job_of, make_exporter, make_importer

TIMEOUT_S = 20.0


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not condition():  # noqa: ASYNC110  # the condition lies in the unit under test, which has no event for it
            await asyncio.sleep(0)


def _same(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> bool:
    return np.array_equal(first, second)


class SwitchedPeer:
    """A peer whose incoming bytes can be held back, as those of a slow sender are."""

    def __init__(self, peer: Peer, transport: "SwitchedTransport") -> None:
        self._peer = peer
        self._transport = transport

    def send(self, buffer: Any, tag: int) -> Future[None]:
        return self._peer.send(buffer, tag)

    def receive(self, buffer: Any, tag: int) -> Future[None]:
        return self._peer.receive(buffer, tag + self._transport.astray)

    def abort(self) -> None:
        self._transport.aborts += 1
        if not self._transport.stuck:
            self._peer.abort()


class SwitchedTransport:
    """A loopback transport that counts aborts, can let messages go astray, and can be deaf to aborts."""

    name = "loopback"

    def __init__(self, network: LoopbackNetwork) -> None:
        self._inner = LoopbackTransport(network)
        self.astray = 0
        self.stuck = False
        self.aborts = 0

    @property
    def address(self) -> bytes:
        return self._inner.address

    async def start(self) -> None:
        await self._inner.start()

    async def connect(self, address: bytes) -> Peer:
        return SwitchedPeer(await self._inner.connect(address), self)

    async def close(self) -> None:
        await self._inner.close()


class Pair:
    """An exporter and an importer with a pool each."""

    def __init__(self, prefill: Transport, decode: Transport, settings: Any = SETTINGS) -> None:
        self.clock = Clock()
        self.prefill, self.decode = prefill, decode
        self.prefill_pool, self.decode_pool = FakePool(40, seed=1), FakePool(40, seed=2)
        self.exporter: Exporter = make_exporter(prefill, self.prefill_pool, settings, self.clock)
        self.importer: Importer = make_importer(decode, self.decode_pool, settings)
        self.channel = Channel()
        self.serving: asyncio.Task[None] | None = None

    def start(self, tokens: int, kept: frozenset[int] = frozenset()) -> "asyncio.Task[Imported]":
        self.serving = asyncio.create_task(self.channel.serve(self.exporter))
        return asyncio.create_task(self.importer.run(job_of(tokens, first_target=4, kept=kept), self.channel))

    def export(self, tokens: int) -> None:
        export = self.exporter.open(REQUEST, ATTEMPT)
        export.seal(sealed_blocks(tokens))
        export.finish(77)

    def assert_same(self, tokens: int, kept: frozenset[int] = frozenset()) -> None:
        for block in sealed_blocks(tokens):
            same = np.array_equal(self.prefill_pool.bytes[block.index], self.decode_pool.bytes[4 + block.position])
            assert same == (block.position not in kept)

    async def assert_no_holds(self) -> None:
        await _until(lambda: not (self.prefill_pool.count(LeaseHold) or self.decode_pool.count(WriterHold)))
        assert self.importer.quarantined == 0


@pytest.fixture(params=["loopback", "ucx"])
async def pair(request: pytest.FixtureRequest) -> AsyncIterator[Pair]:
    network = LoopbackNetwork()
    transports: list[Transport] = [
        LoopbackTransport(network) if request.param == "loopback" else UcxTransport(SETTINGS) for _ in range(2)
    ]
    for transport in transports:
        await transport.start()
    one = Pair(*transports)
    yield one
    await one.importer.close()
    for transport in transports:
        await transport.close()


@pytest.fixture
async def switched() -> AsyncIterator[Pair]:
    network = LoopbackNetwork()
    prefill, decode = LoopbackTransport(network), SwitchedTransport(network)
    await prefill.start()
    await decode.start()
    one = Pair(prefill, decode)
    yield one
    await one.importer.close()
    await decode.close()
    await prefill.close()


async def _ended(running: "asyncio.Task[Imported]") -> Imported:
    return await asyncio.wait_for(running, TIMEOUT_S)


@pytest.mark.parametrize("tokens", [1, 15, 16, 17, 32, 500])
async def test_a_prompt_of_any_length_arrives(pair: Pair, tokens: int) -> None:
    running = pair.start(tokens)
    pair.export(tokens)
    imported = await _ended(running)
    assert imported.first_token_id == 77
    blocks = len(sealed_blocks(tokens))
    report = imported.report
    assert (report.moved_blocks, report.kept_blocks) == (blocks, 0)
    assert report.moved_bytes == blocks * pair.prefill_pool.block_bytes
    assert report.transport == pair.decode.name
    pair.assert_same(tokens)
    await pair.assert_no_holds()
    assert isinstance(pair.channel.said[-1], AcceptBlocks)


async def test_blocks_move_while_the_prefill_runs(pair: Pair) -> None:
    running = pair.start(100)
    export = pair.exporter.open(REQUEST, ATTEMPT)
    blocks = sealed_blocks(100)
    there, here = pair.prefill_pool.bytes, pair.decode_pool.bytes
    for block in blocks:
        export.seal([block])
        ends = block.position + 1
        await _until(partial(_same, there[:ends], here[4 : 4 + ends]))
    assert not running.done()
    export.finish(5)
    assert (await _ended(running)).report.exposed_s >= 0
    await pair.assert_no_holds()


async def test_only_what_is_lacking_is_moved(pair: Pair) -> None:
    kept = frozenset({0, 1, 3})
    running = pair.start(90, kept=kept)
    pair.export(90)
    report = (await _ended(running)).report
    assert (report.moved_blocks, report.kept_blocks) == (3, 3)
    pair.assert_same(90, kept=kept)
    await pair.assert_no_holds()


async def test_a_full_hit_moves_nothing(pair: Pair) -> None:
    running = pair.start(64, kept=frozenset(range(4)))
    pair.export(64)
    report = (await _ended(running)).report
    assert (report.moved_blocks, report.moved_bytes, report.transfer_s) == (0, 0, 0.0)
    await pair.assert_no_holds()


async def test_many_handovers_at_once(pair: Pair) -> None:
    running = [pair.start(60)]
    pair.export(60)
    others = []
    for number in range(2, 6):
        request, channel = type(REQUEST)(f"r-{number}"), Channel()
        export = pair.exporter.open(request, ATTEMPT)
        export.seal(sealed_blocks(60, first_index=4 * number))
        export.finish(number)
        others.append(asyncio.create_task(channel.serve(pair.exporter)))
        job = dataclasses.replace(job_of(60, first_target=4 + 4 * number), request_id=request)
        running.append(asyncio.create_task(pair.importer.run(job, channel)))
    results = [await _ended(one) for one in running]
    assert [result.first_token_id for result in results] == [77, 2, 3, 4, 5]
    for number in range(2, 6):
        there = pair.prefill_pool.bytes[4 * number : 4 * number + 4]
        assert np.array_equal(there, pair.decode_pool.bytes[4 + 4 * number : 8 + 4 * number])
    await pair.assert_no_holds()


async def test_no_more_than_the_limit_is_in_flight(switched: Pair) -> None:
    settings = dataclasses.replace(SETTINGS, blocks_in_flight=3)
    pair = Pair(switched.prefill, switched.decode, settings)
    running = pair.start(320)
    pair.export(320)
    await _ended(running)
    pulls = [message.positions for message in pair.channel.said if isinstance(message, PullBlocks)]
    assert max(len(positions) for positions in pulls) == 3
    assert sorted(position for positions in pulls for position in positions) == list(range(20))


async def test_what_another_request_left_in_a_part_filled_block_stays_here(pair: Pair) -> None:
    running = pair.start(20)
    pair.export(20)
    await _ended(running)
    assert not pair.decode_pool.bytes[5, 4 * TOKEN_BYTES :].any()
    assert pair.decode_pool.bytes[5, : 4 * TOKEN_BYTES].any()


def _flip_a_bit(pair: Pair) -> None:
    pair.prefill_pool.bytes[2, 1234] ^= 4


def _swap_two_blocks(pair: Pair) -> None:
    pair.prefill_pool.bytes[[1, 2]] = pair.prefill_pool.bytes[[2, 1]]


def _reuse_a_block(pair: Pair) -> None:
    pair.prefill_pool.generations[2] += 1


@pytest.mark.parametrize(
    ("harm", "reason"), [(_flip_a_bit, "digest"), (_swap_two_blocks, "digest"), (_reuse_a_block, "reused")]
)
async def test_harm_between_sealing_and_reading_is_caught(pair: Pair, harm: Any, reason: str) -> None:
    pair.export(60)
    harm(pair)
    with pytest.raises(TransferFailed, match=reason):
        await _ended(pair.start(60))
    await pair.assert_no_holds()
    assert isinstance(pair.channel.said[-1], RejectBlocks)


def _change_sealed(**changes: Any) -> Any:
    def twist(message: ExporterMessage) -> list[ExporterMessage]:
        if isinstance(message, BlocksSealed):
            first, *others = message.blocks
            message = BlocksSealed(blocks=(dataclasses.replace(first, **changes), *others))
        return [message]

    return twist


def _drop(kind: type) -> Any:
    return lambda message: [] if isinstance(message, kind) else [message]


@pytest.mark.parametrize(
    ("twist", "reason"),
    [
        (_change_sealed(hash=b"h" * 16), "hash"),
        (_change_sealed(hash=None), "hash"),
        (_change_sealed(digest=b""), "without a digest"),
        (_change_sealed(digest=b"d" * 16), "digest differs"),
        (_change_sealed(tokens=15), "cannot hold"),
        (_change_sealed(position=9), "does not exist"),
        (_change_sealed(position=1), "expected hash"),
        (_drop(BlocksSealed), "finished without"),
    ],
)
async def test_a_reference_that_cannot_be_right_is_refused(pair: Pair, twist: Any, reason: str) -> None:
    pair.channel.twist = twist
    pair.export(60)
    with pytest.raises(TransferFailed, match=reason):
        await _ended(pair.start(60))
    await pair.assert_no_holds()


async def test_a_duplicated_message_about_sealed_blocks_changes_nothing(pair: Pair) -> None:
    pair.channel.twist = lambda message: [message] * (2 if isinstance(message, BlocksSealed) else 1)
    pair.export(60)
    assert (await _ended(pair.start(60))).report.moved_blocks == 4


async def test_a_lost_echo_ends_by_the_deadline(switched: Pair) -> None:
    pair = Pair(switched.prefill, switched.decode, dataclasses.replace(SETTINGS, pull_timeout_s=0.05))
    pair.channel.twist = _drop(BlocksSent)
    pair.export(60)
    with pytest.raises(TransferFailed, match="waited"):
        await _ended(pair.start(60))
    assert pair.decode_pool.count(WriterHold) == 0


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"exporter_incarnation": Incarnation(99)}, "restarted"),
        ({"attempt": Attempt(0)}, "is over"),
    ],
)
async def test_an_opening_for_another_life_or_attempt_is_refused(pair: Pair, change: Any, error: str) -> None:
    pair.export(60)
    serving = asyncio.create_task(pair.channel.serve(pair.exporter))
    with pytest.raises(ExportGone, match=error):
        await pair.importer.run(dataclasses.replace(job_of(60), **change), pair.channel)
    await serving
    assert pair.prefill_pool.count(LeaseHold) == 4


async def test_another_layout_is_refused(pair: Pair) -> None:
    pair.importer.layout = dataclasses.replace(pair.importer.layout, kv_heads=1)
    pair.export(60)
    with pytest.raises(ExportGone, match="layouts differ"):
        await _ended(pair.start(60))


async def test_an_export_that_never_comes_is_not_waited_for_for_ever(switched: Pair) -> None:
    pair = Pair(switched.prefill, switched.decode, dataclasses.replace(SETTINGS, open_timeout_s=0.05))
    with pytest.raises(ExportGone, match="nothing was exported"):
        await _ended(pair.start(60))


async def test_a_second_importer_is_refused_while_the_first_is_served(pair: Pair) -> None:
    running = pair.start(60)
    export = pair.exporter.open(REQUEST, ATTEMPT)
    export.seal(sealed_blocks(60)[:2])
    await _until(lambda: len(pair.channel.said) >= 2)
    second = Channel()
    serving = asyncio.create_task(second.serve(pair.exporter))
    with pytest.raises(ExportGone, match="already"):
        await pair.importer.run(job_of(60, first_target=20), second)
    await serving
    export.seal(sealed_blocks(60)[2:])
    export.finish(3)
    await _ended(running)


async def test_a_failed_prefill_tells_the_importer(pair: Pair) -> None:
    running = pair.start(60)
    export = pair.exporter.open(REQUEST, ATTEMPT)
    export.seal(sealed_blocks(60)[:2])
    export.fail("the request was cancelled")
    with pytest.raises(ExportGone, match="the request was cancelled"):
        await _ended(running)
    export.seal(sealed_blocks(60)[2:])
    export.finish(1)
    await pair.assert_no_holds()


async def test_leases_end_when_nobody_comes(pair: Pair) -> None:
    export = pair.exporter.open(REQUEST, ATTEMPT)
    export.seal(sealed_blocks(60))
    pair.clock.now += 1000
    assert await pair.exporter.sweep() == 0
    export.finish(1)
    pair.clock.now += SETTINGS.lease_s - 0.1
    assert await pair.exporter.sweep() == 0
    assert pair.prefill_pool.count(LeaseHold) == 4
    pair.clock.now += 0.2
    assert await pair.exporter.sweep() == 1
    assert pair.prefill_pool.count(LeaseHold) == 0
    assert (pair.exporter.expired, pair.exporter.orphaned) == (1, 0)
    with pytest.raises(ExportGone, match="nobody came"):
        await _ended(pair.start(60))
    pair.clock.now += SETTINGS.lease_s
    assert await pair.exporter.sweep() == 0


async def test_a_hold_that_outlives_its_export_is_freed_and_counted(pair: Pair) -> None:
    running = pair.start(60)
    pair.export(60)
    await _ended(running)
    await pair.assert_no_holds()
    pair.prefill_pool.acquire(9, LeaseHold(REQUEST, ATTEMPT))
    pair.clock.now += SETTINGS.lease_s + 1
    await pair.exporter.sweep()
    assert pair.exporter.orphaned == 1
    await pair.assert_no_holds()


async def test_after_a_broken_stream_another_importer_may_come_within_the_grace(pair: Pair) -> None:
    pair.export(60)
    channel = Channel()
    serving = asyncio.create_task(channel.serve(pair.exporter))
    opening = OpenExport(
        request_id=REQUEST,
        attempt=ATTEMPT,
        exporter_incarnation=Incarnation(11),
        importer=pair.importer.worker_id,
        importer_incarnation=Incarnation(22),
        importer_transport_address=pair.decode.address,
        layout=pair.importer.layout.describe(),
    )
    await channel.send(opening)
    assert not isinstance(await channel.receive(), ExportFailed)
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)
    assert pair.prefill_pool.count(LeaseHold) == 4
    assert await pair.exporter.sweep() == 0
    await _ended(pair.start(60))
    await pair.assert_no_holds()


async def test_the_grace_ends(pair: Pair) -> None:
    pair.export(60)
    pair.channel.twist = _drop(ExportFinished)
    running = pair.start(60)
    await _until(lambda: len(pair.channel.said) >= 2)
    running.cancel()
    pair.channel.to_exporter.put_nowait(None)
    assert pair.serving is not None
    await pair.serving
    pair.clock.now += SETTINGS.grace_s + 0.1
    assert await pair.exporter.sweep() == 1
    await asyncio.gather(running, return_exceptions=True)
    await pair.assert_no_holds()


async def test_a_newer_attempt_takes_the_older_ones_place(pair: Pair) -> None:
    running = pair.start(60)
    old = pair.exporter.open(REQUEST, ATTEMPT)
    old.seal(sealed_blocks(60))
    new = pair.exporter.open(REQUEST, Attempt(2))
    with pytest.raises(ExportGone, match="attempt 1 of request r-1 is over"):
        await _ended(running)
    assert old.over
    assert not new.over
    with pytest.raises(ExportGone):
        pair.exporter.open(REQUEST, ATTEMPT)
    new.fail("enough")
    await pair.assert_no_holds()


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 4, 6, 8, 10, 12, 15, 20, 30])
async def test_cancelled_at_any_step_nothing_is_held_afterwards(pair: Pair, steps: int) -> None:
    pair.export(500)
    running = pair.start(500)
    for _ in range(steps):
        await asyncio.sleep(0)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    pair.channel.to_exporter.put_nowait(None)
    assert pair.serving is not None
    await asyncio.wait_for(pair.serving, TIMEOUT_S)
    pair.clock.now += SETTINGS.lease_s + 1
    await pair.exporter.sweep()
    await pair.assert_no_holds()
    assert pair.exporter.orphaned == 0


async def test_a_target_stays_held_until_its_receive_is_over(switched: Pair) -> None:
    transport = switched.decode
    assert isinstance(transport, SwitchedTransport)
    transport.astray, transport.stuck = 1 << 40, True
    switched.export(60)
    running = switched.start(60)
    await _until(lambda: switched.decode_pool.count(WriterHold) == 4)
    running.cancel()
    await _until(lambda: transport.aborts > 0)
    assert switched.decode_pool.count(WriterHold) == 4
    assert switched.importer.quarantined == 4
    transport.stuck = False
    await transport.close()
    await switched.importer.close()
    assert switched.importer.quarantined == 0
    assert switched.decode_pool.count(WriterHold) == 0


async def test_when_the_stream_is_lost_the_receives_are_aborted_at_once(switched: Pair) -> None:
    transport = switched.decode
    assert isinstance(transport, SwitchedTransport)
    transport.astray = 1 << 40
    switched.export(60)
    running = switched.start(60)
    await _until(lambda: switched.decode_pool.count(WriterHold) == 4)
    switched.channel.to_importer.put_nowait(None)
    with pytest.raises(WorkerLost):
        await _ended(running)
    await _until(lambda: switched.decode_pool.count(WriterHold) == 0)
    assert transport.aborts == 1


@pytest.mark.parametrize(
    "message", [AcceptBlocks(), PullBlocks(tag=1, positions=(0,)), PullBlocks(tag=1, positions=(9,))]
)
async def test_an_importer_out_of_turn_is_told_so(pair: Pair, message: Any) -> None:
    channel = Channel()
    serving = asyncio.create_task(channel.serve(pair.exporter))
    await channel.send(message)
    answer = await channel.receive()
    assert isinstance(answer, ExportFailed)
    await serving


async def test_the_error_of_a_handover_is_of_the_leg(pair: Pair) -> None:
    assert issubclass(TransferFailed, LegFailed)
    pair.exporter.open(REQUEST, ATTEMPT)
    running = pair.start(60)
    await asyncio.sleep(0)
    pair.exporter.close("the worker is shutting down")
    with pytest.raises(LegFailed):
        await _ended(running)
