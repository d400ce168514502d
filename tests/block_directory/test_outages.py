"""Real servers that are killed, stopped and emptied under a worker and a router."""

import os
import signal
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import pytest
import redis.asyncio

from block_directory.embedded import EmbeddedServer
from block_directory.follower import Follower
from block_directory.index import PrefixIndex
from block_directory.publisher import Publisher
from block_directory.redis_directory import RedisDirectory
from block_directory.settings import DirectorySettings
from cluster_core.workers import WorkerRecord
from tests.block_directory.samples import Pool, blocks, eventually, quick_settings, record

# Leases and grace run by the clock: a machine that stalls under other tests' load looks like an outage.
pytestmark = pytest.mark.alone


@pytest.fixture
def server() -> Iterator[EmbeddedServer]:
    made = EmbeddedServer(DirectorySettings())
    made.start()
    yield made
    made.stop()


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Two workers and one router on one server."""

    pools: list[Pool]
    publishers: list[Publisher]
    follower: Follower
    index: PrefixIndex
    told: list[list[WorkerRecord]]

    def store(self, worker: int, *numbers: int) -> None:
        self.pools[worker].store(*numbers)
        self.publishers[worker].wake()

    def holds(self, *numbers: int) -> dict[str, int]:
        return {str(worker): length for worker, length in self.index.longest_prefix(blocks(*numbers)).items()}


@pytest.fixture
async def cluster(server: EmbeddedServer) -> AsyncIterator[Cluster]:
    settings = quick_settings(call_timeout_s=0.5, lease_s=2.0)
    directories = [RedisDirectory(server.url, settings) for _ in range(3)]
    pools = [Pool(), Pool()]
    publishers = [
        Publisher(directory, record(f"decode-{number}"), pool.drain_events, pool.cached_hashes, settings)
        for number, (directory, pool) in enumerate(zip(directories, pools, strict=False))
    ]
    index = PrefixIndex()
    told: list[list[WorkerRecord]] = []
    follower = Follower(directories[2], index, told.append, settings)
    for publisher in publishers:
        await publisher.start()
    await follower.start()
    made = Cluster(pools=pools, publishers=publishers, follower=follower, index=index, told=told)
    await eventually(lambda: bool(told) and len(told[-1]) == 2)
    made.store(0, 1, 2, 3)
    made.store(1, 1)
    await eventually(lambda: made.holds(1, 2, 3) == {"decode-0": 3, "decode-1": 1})
    told.clear()
    yield made
    await follower.close()
    for publisher in publishers:
        await publisher.close()
    for directory in directories:
        await directory.close()


async def unhealthy(cluster: Cluster) -> None:
    await eventually(lambda: cluster.follower.degraded and not any(each.healthy for each in cluster.publishers))


async def healthy_again(cluster: Cluster) -> None:
    await eventually(lambda: not cluster.follower.degraded and all(each.healthy for each in cluster.publishers))


async def test_a_killed_server_is_outlived_and_an_empty_one_is_filled_again(
    cluster: Cluster, server: EmbeddedServer
) -> None:
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    await unhealthy(cluster)
    assert cluster.holds(1, 2, 3) == {"decode-0": 3, "decode-1": 1}
    cluster.store(1, 2)
    await eventually(lambda: server.pid is None)
    server.restart()
    await healthy_again(cluster)
    await eventually(lambda: cluster.holds(1, 2, 3) == {"decode-0": 3, "decode-1": 2})
    cluster.store(1, 3)
    await eventually(lambda: cluster.holds(1, 2, 3) == {"decode-0": 3, "decode-1": 3})
    assert cluster.told == []


async def test_a_server_that_stops_for_longer_than_the_leases_is_outlived(
    cluster: Cluster, server: EmbeddedServer
) -> None:
    assert server.pid is not None
    os.kill(server.pid, signal.SIGSTOP)
    await unhealthy(cluster)
    cluster.store(0, 4)
    failures = cluster.follower.failures
    await eventually(lambda: cluster.follower.failures >= failures + 5)
    os.kill(server.pid, signal.SIGCONT)
    await healthy_again(cluster)
    await eventually(lambda: cluster.holds(1, 2, 3, 4) == {"decode-0": 4, "decode-1": 1})
    assert cluster.told == []


async def test_a_wiped_server_is_filled_again(cluster: Cluster, server: EmbeddedServer) -> None:
    client = redis.asyncio.Redis.from_url(server.url)
    await client.flushall()
    cluster.store(0, 4)
    cluster.store(1, 2)
    await eventually(lambda: cluster.holds(1, 2, 3, 4) == {"decode-0": 4, "decode-1": 2})
    assert cluster.told == []
    await client.aclose()


async def test_a_worker_that_dies_with_the_server_is_forgotten_after_the_grace(
    cluster: Cluster, server: EmbeddedServer
) -> None:
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    await unhealthy(cluster)
    await cluster.publishers[1].close()
    await eventually(lambda: server.pid is None)
    server.restart()
    await eventually(lambda: bool(cluster.told) and [each.worker_id for each in cluster.told[-1]] == ["decode-0"])
    await eventually(lambda: cluster.holds(1, 2, 3) == {"decode-0": 3})


async def test_parts_start_before_the_server_does(server: EmbeddedServer) -> None:
    server.stop()
    settings = quick_settings(call_timeout_s=0.3)
    directory = RedisDirectory(server.url, settings)
    pool = Pool()
    publisher = Publisher(directory, record(), pool.drain_events, pool.cached_hashes, settings)
    follower = Follower(directory, PrefixIndex(), lambda _: None, settings)
    await publisher.start()
    await follower.start()
    await eventually(lambda: publisher.failures >= 3 and follower.failures >= 3)
    assert follower.degraded
    assert not publisher.healthy
    await publisher.close()
    await follower.close()
    await directory.close()
