"""A worker's side of the directory."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

import pytest

from block_directory.directory import BlockDirectory, WorkersChanged
from block_directory.follower import Follower
from block_directory.index import PrefixIndex
from block_directory.memory_directory import MemoryDirectory
from block_directory.publisher import EVENT_HASHES, Publisher, merge_events
from block_directory.redis_directory import RedisDirectory
from block_directory.settings import DirectorySettings
from cluster_core.blocks import CacheCleared
from cluster_core.errors import PartUnavailable
from cluster_core.workers import WorkerRecord
from tests.block_directory.samples import Pool, block, blocks, eventually, quick_settings, record, removed, stored
from tests.machines.jumping_loop import JumpingLoop


@asynccontextmanager
async def publishing(
    directory: BlockDirectory, mine: WorkerRecord, pool: Pool, settings: DirectorySettings
) -> AsyncIterator[Publisher]:
    publisher = Publisher(directory, mine, pool.drain_events, pool.cached_hashes, settings)
    await publisher.start()
    async with asyncio.timeout(15.0):
        yield publisher
    await publisher.close()


async def snapshot_is(directory: BlockDirectory, mine: WorkerRecord, pool: Pool) -> None:
    async def equal() -> bool:
        snapshot = await directory.snapshot(mine.worker_id, mine.incarnation)
        return snapshot is not None and set(snapshot.hashes) == pool.held

    await eventually(equal)


async def test_a_life_is_published_from_start_to_end(directory: BlockDirectory, settings: DirectorySettings) -> None:
    mine, pool = record(), Pool()
    pool.store(1, 2)
    async with publishing(directory, mine, pool, settings) as publisher:
        await publisher.until_healthy()
        assert await directory.workers() == [mine]
        await snapshot_is(directory, mine, pool)
        pool.store(3)
        pool.remove(1)
        publisher.wake()
        await snapshot_is(directory, mine, pool)
        pool.clear()
        pool.store(4)
        publisher.wake()
        await snapshot_is(directory, mine, pool)
    assert await directory.workers() == []
    assert await directory.snapshot(mine.worker_id, mine.incarnation) is None


async def test_a_registration_outlives_many_leases(directory: BlockDirectory, settings: DirectorySettings) -> None:
    mine = record()
    brief = replace(settings, lease_s=0.3)
    async with publishing(directory, mine, Pool(), brief) as publisher:
        await publisher.until_healthy()
        clock = record("clock")
        await directory.register(clock, 1.0)

        async def clock_gone() -> bool:
            return clock not in await directory.workers()

        await eventually(clock_gone)
        assert await directory.workers() == [mine]


async def test_whoever_wiped_the_registration_gets_it_again(
    directory: BlockDirectory, settings: DirectorySettings
) -> None:
    mine, pool = record(), Pool()
    pool.store(1)
    async with publishing(directory, mine, pool, settings) as publisher:
        await publisher.until_healthy()
        await directory.unregister(mine.worker_id, mine.incarnation)

        async def back() -> bool:
            return await directory.workers() == [mine]

        await eventually(back)
        await snapshot_is(directory, mine, pool)


async def test_an_old_life_keeps_quiet_beside_a_new_one(directory: BlockDirectory, settings: DirectorySettings) -> None:
    old, new = record("decode-0"), record("decode-0")
    async with publishing(directory, old, Pool(), settings) as old_publisher:
        await old_publisher.until_healthy()
        async with publishing(directory, new, Pool(), settings) as new_publisher:
            await new_publisher.until_healthy()
            await eventually(lambda: old_publisher.replaced and not old_publisher.healthy)
            assert await directory.workers() == [new]
            assert new_publisher.healthy


def test_a_life_whose_successor_lives_is_told_once(settings: DirectorySettings) -> None:
    loop = JumpingLoop()
    settings = replace(settings, lease_s=3.0)
    directory = MemoryDirectory(settings, clock=loop.time)
    told: list[str] = []
    lives = [record("decode-0"), record("decode-0")]
    for name, mine in zip(("old", "new"), lives, strict=True):
        pool = Pool()
        publisher = Publisher(directory, mine, pool.drain_events, pool.cached_hashes, settings)
        publisher.on_replaced = partial(told.append, name)
        loop.finish(publisher.start())
        loop.advance(1.5)
    assert not told
    loop.advance(30.0)
    loop.shut()
    assert told == ["old"]


def test_a_server_that_came_back_with_old_data_is_told_everything_again(settings: DirectorySettings) -> None:
    loop = JumpingLoop()
    settings = replace(settings, lease_s=3.0)
    directory, pool, mine = MemoryDirectory(settings, clock=loop.time), Pool(), record("decode-0")
    pool.store(1)
    publisher = Publisher(directory, mine, pool.drain_events, pool.cached_hashes, settings)
    loop.finish(publisher.start())
    saved = directory.saved()
    pool.store(2)
    loop.do(publisher.wake)
    directory.go_back_to(saved)
    loop.advance(settings.lease_s / 2)
    snapshot = loop.finish(directory.snapshot(mine.worker_id, mine.incarnation))
    loop.shut()
    assert snapshot is not None
    assert set(snapshot.hashes) == set(pool.cached_hashes()) == {block(1), block(2)}


class Counting(MemoryDirectory):
    """Counts the calls in which blocks were told of."""

    told = 0

    async def publish(self, *arguments: object) -> bool:
        self.told += 1
        return await super().publish(*arguments)  # type: ignore[arg-type]  # passed on as they are


def test_news_is_gathered_before_it_is_told(settings: DirectorySettings) -> None:
    loop = JumpingLoop()
    settings = replace(settings, lease_s=30.0, gather_s=0.5)
    directory, pool, mine = Counting(settings, clock=loop.time), Pool(), record("decode-0")
    publisher = Publisher(directory, mine, pool.drain_events, pool.cached_hashes, settings)
    loop.finish(publisher.start())
    loop.advance(0.1)
    for number in range(4):
        pool.store(number)
        loop.do(publisher.wake)
        loop.advance(0.1)
    assert directory.told == 0
    loop.advance(0.2)
    assert directory.told == 1
    assert loop.finish(directory.sequences([(mine.worker_id, mine.incarnation)])) == [2]
    loop.shut()


class Faulty(MemoryDirectory):
    """Carries calls out and then loses the answer, while `cut` is set."""

    cut = False

    async def publish(self, *arguments: object) -> bool:
        done = await super().publish(*arguments)  # type: ignore[arg-type]  # passed on as they are
        self._break()
        return done

    async def renew(self, *arguments: object) -> bool:
        done = await super().renew(*arguments)  # type: ignore[arg-type]  # passed on as they are
        self._break()
        return done

    async def register(self, record: WorkerRecord, lease_s: float, *, replace: bool = True) -> bool:
        done = await super().register(record, lease_s, replace=replace)
        self._break()
        return done

    def _break(self) -> None:
        if self.cut:
            message = "cut"
            raise PartUnavailable(message)


async def test_lost_answers_end_in_a_snapshot_and_events_do_not_pile_up() -> None:
    settings = quick_settings()
    directory, mine, pool = Faulty(settings), record(), Pool()
    async with publishing(directory, mine, pool, settings) as publisher:
        await publisher.until_healthy()
        directory.cut = True
        pool.store(1)
        publisher.wake()
        await eventually(lambda: publisher.failures >= 2)
        pool.store(2)
        await eventually(lambda: not pool._events)
        directory.cut = False
        await publisher.until_healthy()
        await snapshot_is(directory, mine, pool)
        pool.remove(1)
        publisher.wake()
        await snapshot_is(directory, mine, pool)


async def test_a_source_that_fails_does_not_end_the_publisher(caplog: pytest.LogCaptureFixture) -> None:
    settings = quick_settings()
    directory, mine, pool = MemoryDirectory(settings), record(), Pool()
    failing = [RuntimeError("once")]

    def hashes() -> list[bytes]:
        if failing:
            raise failing.pop()
        return list(pool.cached_hashes())

    publisher = Publisher(directory, mine, pool.drain_events, hashes, settings)  # type: ignore[arg-type]  # bytes do
    await publisher.start()
    async with asyncio.timeout(15.0):
        await publisher.until_healthy()
    await publisher.close()
    assert "goes on" in caplog.text


async def test_workers_are_announced() -> None:
    settings = quick_settings()
    directory = MemoryDirectory(settings)
    cursor = (await directory.tail(None, 0.0)).cursor
    async with publishing(directory, record(), Pool(), settings) as publisher:
        await publisher.until_healthy()
    events = [each.event for each in (await directory.tail(cursor, 0.0)).entries]
    assert (events[0], events[-1]) == (WorkersChanged(), WorkersChanged())


def test_merging_tells_the_same_in_fewer_events() -> None:
    assert list(merge_events([])) == []
    assert list(merge_events([stored(1), stored(2), removed(1), removed(2), stored(1)])) == [
        stored(1, 2),
        removed(1, 2),
        stored(1),
    ]
    assert list(merge_events([stored(1), CacheCleared(), stored(2), CacheCleared(), removed(3), stored(4)])) == [
        CacheCleared(),
        removed(3),
        stored(4),
    ]
    long = [stored(*range(EVENT_HASHES)), stored(7777)]
    assert [len(each.hashes) for each in merge_events(long) if not isinstance(each, CacheCleared)] == [EVENT_HASHES, 1]
    assert blocks(7777)[0] == block(7777)


async def test_a_directory_that_was_never_there_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    settings, pool = quick_settings(), Pool()
    directory = RedisDirectory("redis://127.0.0.1:1", settings)
    publisher = Publisher(directory, record(), pool.drain_events, pool.cached_hashes, settings)
    follower = Follower(directory, PrefixIndex(), lambda _: None, settings)
    await publisher.start()
    await follower.start()
    await eventually(lambda: publisher.failures >= 2 and follower.failures >= 2)
    await publisher.close()
    await follower.close()
    await directory.close()
    told = [entry.getMessage() for entry in caplog.records if "127.0.0.1" in entry.getMessage()]
    assert len(told) == 2
    assert all("is the URL right" in text for text in told)
    assert {text.split(":")[0] for text in told} == {
        "decode-0 is out of touch with the directory",
        "going on without the directory",
    }
