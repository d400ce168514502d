"""What every block directory does."""

import asyncio
from dataclasses import replace

import pytest

from block_directory.directory import BlockDirectory, SnapshotStored, WorkersChanged
from block_directory.memory_directory import MemoryDirectory
from block_directory.settings import DirectorySettings
from cluster_core.blocks import BlockEvent, CacheCleared
from cluster_core.identity import Incarnation, WorkerId
from tests.block_directory.samples import LEASE_S, blocks, eventually, record, removed, stored

WORKER = WorkerId("decode-0")
LIFE = Incarnation(0xFEDCBA9876543211)


async def hashes_in_snapshot(directory: BlockDirectory) -> set[bytes]:
    snapshot = await directory.snapshot(WORKER, LIFE)
    assert snapshot is not None
    return set(snapshot.hashes)


async def test_a_registered_worker_is_listed_as_it_registered(directory: BlockDirectory) -> None:
    one, other = record("prefill-0"), record("decode-1", LIFE)
    assert await directory.register(one, LEASE_S)
    assert await directory.register(other, LEASE_S)
    assert await directory.workers() == [other, one]


async def test_a_registration_ends_with_its_lease(directory: BlockDirectory) -> None:
    await directory.register(record(), 0.05)

    async def gone() -> bool:
        return await directory.workers() == []

    await eventually(gone)
    assert not await directory.renew(WORKER, LIFE, LEASE_S)


async def test_renewing_keeps_a_registration(directory: BlockDirectory) -> None:
    await directory.register(record(incarnation=LIFE), 0.4)
    await directory.register(record("clock"), 0.4)
    assert await directory.renew(WORKER, LIFE, LEASE_S)

    async def clock_gone() -> bool:
        return len(await directory.workers()) == 1

    await eventually(clock_gone)
    assert [each.worker_id for each in await directory.workers()] == [WORKER]


async def test_a_new_life_replaces_the_old_one(directory: BlockDirectory) -> None:
    old, new = record(incarnation=5), record(incarnation=6)
    await directory.register(old, LEASE_S)
    assert await directory.register(new, LEASE_S)
    assert await directory.workers() == [new]
    assert not await directory.renew(WORKER, old.incarnation, LEASE_S)
    await directory.unregister(WORKER, old.incarnation)
    assert await directory.workers() == [new]


async def test_an_old_life_does_not_push_out_the_new_one(directory: BlockDirectory) -> None:
    old, new = record(incarnation=5), record(incarnation=6)
    await directory.register(new, LEASE_S)
    assert not await directory.register(old, LEASE_S, replace=False)
    assert await directory.workers() == [new]
    assert await directory.register(new, LEASE_S, replace=False)


async def test_a_life_that_was_replaced_does_not_take_its_successors_place(directory: BlockDirectory) -> None:
    old, new = record(incarnation=5), record(incarnation=6)
    assert await directory.register(old, LEASE_S)
    assert await directory.register(old, LEASE_S), "the answer may have been lost"
    assert await directory.register(new, LEASE_S)
    assert not await directory.register(old, LEASE_S)
    assert await directory.workers() == [new]
    await directory.unregister(WORKER, new.incarnation)
    assert await directory.register(old, LEASE_S), "it is alone"
    assert await directory.workers() == [old]


async def test_unregistering_removes_registration_and_snapshot(directory: BlockDirectory) -> None:
    await directory.register(record(incarnation=LIFE), LEASE_S)
    await directory.store_snapshot(WORKER, LIFE, 1, blocks(1))
    await directory.unregister(WORKER, LIFE)
    assert await directory.workers() == []
    assert await directory.snapshot(WORKER, LIFE) is None
    assert await directory.sequences([(WORKER, LIFE)]) == [0]


async def test_the_snapshot_follows_the_events(directory: BlockDirectory) -> None:
    await directory.store_snapshot(WORKER, LIFE, 7, blocks(1, 2))
    assert await directory.publish(WORKER, LIFE, 8, [stored(3, 4), removed(1), stored(), removed()])
    assert await hashes_in_snapshot(directory) == set(blocks(2, 3, 4))
    assert await directory.publish(WORKER, LIFE, 12, [CacheCleared(), stored(9)])
    assert await hashes_in_snapshot(directory) == set(blocks(9))
    assert await directory.sequences([(WORKER, LIFE), (WORKER, Incarnation(3))]) == [13, 0]


async def test_a_snapshot_may_be_large_or_empty(directory: BlockDirectory) -> None:
    many = blocks(*range(5000))
    await directory.store_snapshot(WORKER, LIFE, 1, many)
    assert await hashes_in_snapshot(directory) == set(many)
    await directory.store_snapshot(WORKER, LIFE, 2, ())
    assert await hashes_in_snapshot(directory) == set()


@pytest.mark.parametrize("first", [1, 2, 4, 9])
async def test_a_number_out_of_turn_changes_nothing(directory: BlockDirectory, first: int) -> None:
    await directory.store_snapshot(WORKER, LIFE, 2, blocks(1))
    start = (await directory.tail(None, 0.0)).cursor
    assert not await directory.publish(WORKER, LIFE, first, [stored(5)])
    assert await hashes_in_snapshot(directory) == set(blocks(1))
    assert (await directory.tail(start, 0.0)).entries == ()


async def test_events_before_any_snapshot_are_refused(directory: BlockDirectory) -> None:
    assert not await directory.publish(WORKER, LIFE, 1, [stored(5)])
    assert await directory.snapshot(WORKER, LIFE) is None


async def test_the_log_tells_everything_in_order(directory: BlockDirectory) -> None:
    start = (await directory.tail(None, 0.0)).cursor
    await directory.register(record(incarnation=LIFE), LEASE_S)
    start = (await directory.tail(None, 0.0)).cursor
    await directory.store_snapshot(WORKER, LIFE, 1, ())
    events: list[BlockEvent] = [stored(1, 2), removed(2), CacheCleared()]
    await directory.publish(WORKER, LIFE, 2, events)
    await directory.unregister(WORKER, LIFE)
    page = await directory.tail(start, 0.0)
    assert [each.event for each in page.entries] == [SnapshotStored(), *events, WorkersChanged()]
    assert [each.sequence for each in page.entries] == [1, 2, 3, 4, 0]
    assert {(each.worker_id, each.incarnation) for each in page.entries} == {(WORKER, LIFE)}
    assert page.at_end
    assert (await directory.tail(page.cursor, 0.0)).entries == ()


async def test_a_reader_that_waits_is_woken(directory: BlockDirectory) -> None:
    await directory.store_snapshot(WORKER, LIFE, 1, ())
    cursor = (await directory.tail(None, 0.0)).cursor
    reading = asyncio.create_task(directory.tail(cursor, 10.0))
    await directory.publish(WORKER, LIFE, 2, [stored(1)])
    page = await reading
    if not page.entries:
        page = await directory.tail(page.cursor, 0.0)
    assert [each.event for each in page.entries] == [stored(1)]


async def test_a_long_log_comes_in_pages(directory: BlockDirectory) -> None:
    await directory.store_snapshot(WORKER, LIFE, 1, ())
    cursor = (await directory.tail(None, 0.0)).cursor
    await directory.publish(WORKER, LIFE, 2, [stored(number) for number in range(700)])
    first = await directory.tail(cursor, 0.0)
    second = await directory.tail(first.cursor, 0.0)
    assert not first.at_end
    assert second.at_end
    assert [each.sequence for each in first.entries + second.entries] == list(range(2, 702))


async def test_a_cursor_of_lost_data_is_told_so(directory: BlockDirectory) -> None:
    await directory.register(record(incarnation=LIFE), LEASE_S)
    cursor = (await directory.tail(None, 0.0)).cursor
    foreign = await directory.tail(replace(cursor, epoch="another"), 0.0)
    assert foreign.lost
    assert foreign.cursor.epoch == cursor.epoch == await directory.epoch()
    again = await directory.tail(foreign.cursor, 0.0)
    assert not again.lost
    assert [each.event for each in again.entries] == [WorkersChanged()]


async def test_lives_of_one_worker_are_apart(directory: BlockDirectory) -> None:
    await directory.store_snapshot(WORKER, LIFE, 1, blocks(1))
    await directory.store_snapshot(WORKER, Incarnation(2), 1, blocks(2))
    await directory.publish(WORKER, Incarnation(2), 2, [CacheCleared()])
    assert await hashes_in_snapshot(directory) == set(blocks(1))


async def test_memory_leases_follow_the_given_clock() -> None:
    now = 100.0
    directory = MemoryDirectory(DirectorySettings(), clock=lambda: now)
    await directory.register(record(incarnation=LIFE), 5.0)
    now = 104.9
    assert await directory.renew(WORKER, LIFE, 5.0)
    now = 109.8
    assert len(await directory.workers()) == 1
    now = 109.95
    assert await directory.workers() == []
