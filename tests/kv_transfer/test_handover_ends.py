"""How hand-overs end: refusals, leases, broken streams, cancellation; and who holds what afterwards."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from typing import Any

import pytest

from cluster_core.errors import ExportGone, InvalidField, LegFailed, TransferFailed, WorkerLost
from cluster_core.handoff import (
    AcceptBlocks,
    BlocksSealed,
    ExporterMessage,
    ExportFailed,
    ExportFinished,
    ImporterMessage,
    OpenExport,
    PullBlocks,
    RejectBlocks,
)
from cluster_core.holds import LeaseHold, WriterHold
from cluster_core.identity import Attempt, Incarnation
from tests.kv_transfer.fake_pool import ATTEMPT, REQUEST, sealed_blocks
from tests.kv_transfer.handover import SETTINGS, Channel, job_of
from tests.kv_transfer.pair import TIMEOUT_S, Pair, SwitchedTransport, drop, ended, until


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
        await ended(pair.start(60))


async def test_an_export_that_never_comes_is_not_waited_for_for_ever(switched: Pair) -> None:
    pair = Pair(switched.prefill, switched.decode, dataclasses.replace(SETTINGS, open_timeout_s=0.05))
    with pytest.raises(ExportGone, match="nothing was exported"):
        await ended(pair.start(60))


async def test_a_second_importer_is_refused_while_the_first_is_served(pair: Pair) -> None:
    running = pair.start(60)
    export = pair.exporter.open(REQUEST, ATTEMPT)
    export.seal(sealed_blocks(60)[:2])
    await until(lambda: len(pair.channel.said) >= 2)
    second = Channel()
    serving = asyncio.create_task(second.serve(pair.exporter))
    with pytest.raises(ExportGone, match="already"):
        await pair.importer.run(job_of(60, first_target=20), second)
    await serving
    export.seal(sealed_blocks(60)[2:])
    export.finish(3)
    await ended(running)


async def test_a_failed_prefill_tells_the_importer(pair: Pair) -> None:
    running = pair.start(60)
    export = pair.exporter.open(REQUEST, ATTEMPT)
    export.seal(sealed_blocks(60)[:2])
    export.fail("the request was cancelled")
    with pytest.raises(ExportGone, match="the request was cancelled"):
        await ended(running)
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
        await ended(pair.start(60))
    pair.clock.now += SETTINGS.lease_s
    assert await pair.exporter.sweep() == 0


async def test_a_hold_that_outlives_its_export_is_freed_and_counted(pair: Pair) -> None:
    running = pair.start(60)
    pair.export(60)
    await ended(running)
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
    await ended(pair.start(60))
    await pair.assert_no_holds()


class Garbled(Channel):
    """A stream on which messages of one kind cannot be read at the other end."""

    kind: type = BlocksSealed

    async def receive(self) -> ExporterMessage:
        message = await super().receive()
        self._read(message)
        return message

    async def _requests(self) -> AsyncIterator[ImporterMessage]:
        async for message in super()._requests():
            self._read(message)
            yield message

    def _read(self, message: object) -> None:
        if isinstance(message, self.kind):
            raise InvalidField(self.kind.__name__, "makes no sense")


async def test_an_unreadable_message_of_the_exporter_ends_the_import_at_once(switched: Pair) -> None:
    switched.channel = Garbled()
    switched.export(60)
    with pytest.raises(TransferFailed, match="BlocksSealed: makes no sense"):
        await ended(switched.start(60))
    assert isinstance(switched.channel.said[-1], RejectBlocks)
    await switched.assert_no_holds()


@pytest.mark.parametrize("kind", [OpenExport, PullBlocks])
async def test_an_unreadable_message_of_the_importer_is_answered(switched: Pair, kind: type) -> None:
    channel = switched.channel = Garbled()
    channel.kind = kind
    switched.export(60)
    with pytest.raises(ExportGone, match=f"{kind.__name__}: makes no sense"):
        await ended(switched.start(60))


async def test_a_prefill_whose_importer_left_before_its_end_keeps_its_blocks_for_the_grace_only(pair: Pair) -> None:
    running = pair.start(60)
    export = pair.exporter.open(REQUEST, ATTEMPT)
    export.seal(sealed_blocks(60)[:2])
    await until(lambda: len(pair.channel.said) >= 2)
    running.cancel()
    pair.channel.to_exporter.put_nowait(None)
    assert pair.serving is not None
    await pair.serving
    pair.clock.now += 1000
    assert await pair.exporter.sweep() == 0
    export.seal(sealed_blocks(60)[2:])
    export.finish(1)
    assert await pair.exporter.sweep() == 0
    pair.clock.now += SETTINGS.grace_s + 0.1
    assert await pair.exporter.sweep() == 1
    await pair.assert_no_holds()


async def test_the_grace_ends(pair: Pair) -> None:
    pair.export(60)
    pair.channel.twist = drop(ExportFinished)
    running = pair.start(60)
    await until(lambda: len(pair.channel.said) >= 2)
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
        await ended(running)
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
    await until(lambda: switched.decode_pool.count(WriterHold) == 4)
    running.cancel()
    await until(lambda: transport.aborts > 0)
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
    await until(lambda: switched.decode_pool.count(WriterHold) == 4)
    switched.channel.to_importer.put_nowait(None)
    with pytest.raises(WorkerLost):
        await ended(running)
    await until(lambda: switched.decode_pool.count(WriterHold) == 0)
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
        await ended(running)
