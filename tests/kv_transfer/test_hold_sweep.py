"""Holds without an owner: found in the second sweep, counted once, told, and given back where nothing can land."""

import asyncio
import logging

import pytest

from cluster_core.holds import Hold, LeaseHold, RequestHold, WriterHold
from cluster_core.identity import Attempt, RequestId, WorkerId
from kv_transfer.hold_sweep import HoldSweep
from kv_transfer.import_job import Imported
from kv_transfer.target_blocks import TargetBlocks
from tests.kv_transfer.fake_pool import ATTEMPT, REQUEST, REQUEST_HOLD, FakePool
from tests.kv_transfer.pair import Pair, SwitchedTransport, ended, until

FORGOTTEN = RequestHold(RequestId("forgotten"), Attempt(3))


def sweep_of(pair: Pair, pool: FakePool, *known: Hold) -> HoldSweep:
    return HoldSweep(
        worker_id=WorkerId("decode-0"),
        pool=pool,
        exporter=pair.exporter,
        importer=pair.importer,
        requests=lambda: known,
    )


def sweeps(sweep: HoldSweep, times: int = 4) -> list[int]:
    """Return how many orphans are known after each sweep."""
    found = []
    for _ in range(times):
        sweep.sweep()
        found.append(sweep.orphaned)
    return found


def test_a_request_hold_that_nobody_knows_is_given_back_and_told(
    switched: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    pool = switched.decode_pool
    for index in (3, 4):
        pool.acquire(index, FORGOTTEN)
        pool.acquire(index, REQUEST_HOLD)
    with caplog.at_level(logging.ERROR):
        assert sweeps(sweep_of(switched, pool, REQUEST_HOLD)) == [0, 2, 2, 2]
    assert pool.holders() == {REQUEST_HOLD: 2}
    (record,) = caplog.records
    told = record.getMessage()
    assert "decode-0" in told
    assert "request forgotten, attempt 3" in told
    assert "2 blocks" in told


def test_what_has_an_owner_again_at_the_second_look_was_between_two_of_them(switched: Pair) -> None:
    pool = switched.decode_pool
    pool.acquire(3, FORGOTTEN)
    known: list[Hold] = []
    sweep = sweep_of(switched, pool)
    sweep._requests = lambda: known
    sweep.sweep()
    known.append(FORGOTTEN)
    assert sweeps(sweep, 1) == [0]
    known.clear()
    assert sweeps(sweep, 2) == [0, 1], "it is under suspicion anew"


async def test_a_lease_hold_without_an_export_is_found_long_before_its_lease_would_end(switched: Pair) -> None:
    pool = switched.prefill_pool
    sweep = sweep_of(switched, pool)
    switched.export(60)
    assert sweeps(sweep) == [0] * 4
    assert pool.count(LeaseHold) == 4, "an export that waits keeps its blocks"
    running = switched.start(60)
    await ended(running)
    await switched.assert_no_holds()
    pool.acquire(9, LeaseHold(REQUEST, ATTEMPT))
    pool.acquire(10, LeaseHold(RequestId("another"), ATTEMPT, 7))
    assert sweeps(sweep) == [0, 2, 2, 2]
    assert not pool.count(LeaseHold)


async def stuck_import(pair: Pair) -> tuple[SwitchedTransport, FakePool, asyncio.Task[Imported]]:
    """Start an import of four blocks that never come."""
    transport, pool = pair.decode, pair.decode_pool
    assert isinstance(transport, SwitchedTransport)
    transport.astray, transport.stuck = 1 << 40, True
    pair.export(60)
    running = pair.start(60)
    await until(lambda: pool.count(WriterHold) == 4)
    return transport, pool, running


async def test_what_an_import_writes_is_its_own_while_it_runs_and_while_it_settles(switched: Pair) -> None:
    transport, pool, running = await stuck_import(switched)
    sweep = sweep_of(switched, pool)
    assert sweeps(sweep) == [0] * 4
    running.cancel()
    await until(lambda: transport.aborts > 0)
    assert sweeps(sweep) == [0] * 4
    assert pool.count(WriterHold) == 4


async def test_a_writer_that_nobody_waits_for_is_quarantined_until_the_transport_is_done(
    switched: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    transport, pool, running = await stuck_import(switched)
    running.cancel()
    await until(lambda: transport.aborts > 0)
    switched.importer.settling._receives.clear()  # the mistake: it forgets what is still under way
    sweep = sweep_of(switched, pool)
    with caplog.at_level(logging.ERROR):
        assert sweeps(sweep) == [0, 4, 4, 4]
    assert pool.count(WriterHold) == 4, "bytes may still land"
    (record,) = caplog.records
    assert "in quarantine" in record.getMessage()
    assert f"request {REQUEST}" in record.getMessage()


async def test_a_writer_that_outlives_its_receive_is_given_back(
    switched: Pair, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(TargetBlocks, "_release", lambda _self, _positions, _hold: None)
    pool = switched.decode_pool
    switched.export(60)
    await ended(switched.start(60))
    await until(lambda: switched.prefill_pool.count(LeaseHold) == 0)
    assert pool.count(WriterHold) == 4
    with caplog.at_level(logging.ERROR):
        assert sweeps(sweep_of(switched, pool)) == [0, 4, 4, 4]
    assert not pool.holders()
    assert all(f"request {REQUEST}" in record.getMessage() for record in caplog.records)


async def test_receives_that_left_nothing_are_forgotten(switched: Pair) -> None:
    switched.export(60)
    await ended(switched.start(60))
    await switched.assert_no_holds()
    assert len(switched.importer.receives)
    sweep_of(switched, switched.decode_pool).sweep()
    assert not len(switched.importer.receives)


def test_a_tag_that_was_never_posted_here_is_not_freed(switched: Pair) -> None:
    pool = switched.decode_pool
    pool.acquire(5, WriterHold(77))
    assert sweeps(sweep_of(switched, pool)) == [0, 1, 1, 1]
    assert pool.count(WriterHold) == 1
