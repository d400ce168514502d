"""What only a directory on a server can get wrong."""

import time
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import redis.asyncio

from block_directory.redis_directory import RedisDirectory
from block_directory.settings import DirectorySettings
from cluster_core.errors import PartUnavailable
from cluster_core.identity import Incarnation, WorkerId
from tests.block_directory.samples import LEASE_S, blocks, quick_settings, record, stored

WORKER = WorkerId("decode-0")
LIFE = Incarnation(77)


@pytest.fixture
async def raw(server_url: str) -> AsyncIterator[redis.asyncio.Redis]:
    client = redis.asyncio.Redis.from_url(server_url)
    yield client
    await client.aclose()


@pytest.fixture
async def ours(server_url: str, settings: DirectorySettings) -> AsyncIterator[RedisDirectory]:
    directory = RedisDirectory(server_url, settings)
    yield directory
    await directory.close()


async def test_two_clusters_on_one_server_do_not_see_each_other(ours: RedisDirectory, server_url: str) -> None:
    other = RedisDirectory(server_url, quick_settings())
    await ours.register(record(incarnation=LIFE), LEASE_S)
    await ours.store_snapshot(WORKER, LIFE, 1, blocks(1))
    assert await other.workers() == []
    assert await other.snapshot(WORKER, LIFE) is None
    assert (await other.tail(None, 0.0)).cursor.position == "0-0"
    assert await other.epoch() != await ours.epoch()
    await other.close()


async def test_every_key_is_under_the_clusters_prefix_and_a_dead_lifes_keys_end(
    ours: RedisDirectory, raw: redis.asyncio.Redis, settings: DirectorySettings
) -> None:
    before = {bytes(key) for key in await raw.keys("*")}  # type: ignore[arg-type]  # this client answers in bytes
    await ours.register(record(incarnation=LIFE), LEASE_S)
    await ours.store_snapshot(WORKER, LIFE, 1, blocks(1))
    await ours.publish(WORKER, LIFE, 2, [stored(2)])
    made = {bytes(key) for key in await raw.keys("*")} - before  # type: ignore[arg-type]  # as above
    prefix = f"baton:{{{settings.cluster}}}:".encode()
    assert all(key.startswith(prefix) for key in made)
    for_ever = {key[len(prefix) :] for key in made if await raw.pttl(key) < 0}
    assert for_ever == {b"workers", b"events", b"epoch"}


async def test_the_log_is_capped(server_url: str, raw: redis.asyncio.Redis) -> None:
    settings = replace(quick_settings(), event_log_entries=100)
    directory = RedisDirectory(server_url, settings)
    await directory.store_snapshot(WORKER, LIFE, 1, ())
    await directory.publish(WORKER, LIFE, 2, [stored(number) for number in range(1000)])
    assert await raw.xlen(f"baton:{{{settings.cluster}}}:events") < 300
    await directory.close()


async def test_hostile_values_are_ignored_and_counted(
    ours: RedisDirectory, raw: redis.asyncio.Redis, settings: DirectorySettings
) -> None:
    prefix = f"baton:{{{settings.cluster}}}:"
    await ours.register(record(incarnation=LIFE), LEASE_S)
    cursor = (await ours.tail(None, 0.0)).cursor
    await raw.sadd(prefix + "workers", "evil", b"\xff\xfe", "a" * 3000, "thief")
    await raw.set(prefix + "worker:evil", b"[" * 5000)
    thief = await raw.get(prefix + "worker:decode-0")
    assert thief is not None
    await raw.set(prefix + "worker:thief", thief)
    assert [each.worker_id for each in await ours.workers()] == [WORKER]
    assert ours.ignored_values == 2
    await raw.xadd(prefix + "events", {"kind": "stored", "worker": "x"})
    await raw.xadd(prefix + "events", {"kind": "?", "worker": "x", "life": "0" * 15 + "1", "sequence": 1, "hashes": ""})
    assert (await ours.tail(cursor, 0.0)).entries == ()
    assert ours.ignored_values == 4
    await ours.store_snapshot(WORKER, LIFE, 1, blocks(1))
    await raw.sadd(prefix + f"blocks:decode-0:{LIFE:016x}", b"short")
    snapshot = await ours.snapshot(WORKER, LIFE)
    assert snapshot is not None
    assert snapshot.hashes == blocks(1)
    await raw.set(prefix + f"sequence:decode-0:{LIFE:016x}", b"-4")
    assert await ours.sequences([(WORKER, LIFE)]) == [0]
    assert ours.ignored_values == 6


async def test_names_without_a_registration_are_tidied_away(
    ours: RedisDirectory, raw: redis.asyncio.Redis, settings: DirectorySettings
) -> None:
    await raw.sadd(f"baton:{{{settings.cluster}}}:workers", "gone-1", "gone-2")
    assert await ours.workers() == []
    assert await raw.scard(f"baton:{{{settings.cluster}}}:workers") == 0


async def test_a_server_that_is_not_there_costs_no_more_than_the_timeout() -> None:
    directory = RedisDirectory("redis://127.0.0.1:1/0", quick_settings(call_timeout_s=0.2))
    started = time.monotonic()
    with pytest.raises(PartUnavailable, match="does not answer"):
        await directory.workers()
    assert time.monotonic() - started < 1.0
    await directory.close()


@pytest.mark.parametrize("bad", [b"", b"fifteen bytes..", b"seventeen bytes.."])
async def test_hashes_of_the_wrong_length_are_our_own_mistake(ours: RedisDirectory, bad: bytes) -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        await ours.store_snapshot(WORKER, LIFE, 1, [bad])  # type: ignore[list-item]  # on purpose
