"""A private Ray and real actors, small ones: start, describe, death, restart, last words, end, nothing left."""

import asyncio
import os
import sys
from typing import Any

import psutil

from cluster_core.identity import Role, WorkerId
from cluster_launcher.progress import SilentProgress
from cluster_launcher.ray_cluster import RayCluster
from cluster_launcher.ray_pools import RayPools
from cluster_launcher.settings import ClusterSettings
from cluster_launcher.stop_signals import descendants
from cluster_launcher.worker_actors import RayWorkerActors

PREFILL, DECODE = WorkerId("prefill-0"), WorkerId("decode-0")


class SmallWorker:
    """An actor that serves nothing; as a decode worker it can be told to die at birth."""

    def __init__(self, role: str, document: dict[str, Any], worker_id: str, directory_url: str) -> None:
        if document.get("dies_at_birth") and role == "decode":
            sys.stderr.write("engine.device: there is no such card\n")
            sys.stderr.flush()
            os._exit(3)
        self._record = {"worker_id": worker_id, "address": directory_url, "pid": os.getpid()}

    async def describe(self) -> dict[str, Any]:
        return self._record

    async def close(self) -> None:
        return


async def _until_restarted(actors: RayWorkerActors, worker_id: WorkerId, pid: int) -> int:
    async with asyncio.timeout(60):
        while True:
            life = await actors.life(worker_id)
            if life.restarts == 1 and life.pid not in {0, pid}:
                return life.pid
            await asyncio.sleep(0.05)


async def _until_it_said(actors: RayWorkerActors, worker_id: WorkerId, words: str) -> None:
    async with asyncio.timeout(60):
        while True:
            if words in await actors.last_words(worker_id):
                return
            await asyncio.sleep(0.05)


async def test_a_private_ray_lives_and_dies_with_its_cluster() -> None:
    before = {process.pid for process in descendants()}
    settings = ClusterSettings(prefill=1, decode=1, start_timeout_s=60.0)
    cluster = RayCluster(settings)
    try:
        await cluster.start()
        actors = RayWorkerActors(cluster, {}, settings, "unix:///nowhere", kind=SmallWorker)
        pools = RayPools(actors, settings, SilentProgress())
        records = await pools.start()
        assert [record["worker_id"] for record in records] == [PREFILL, DECODE]

        pid = int(records[1]["pid"])
        psutil.Process(pid).kill()
        assert await _until_restarted(actors, DECODE, pid) != pid

        doomed = RayWorkerActors(cluster, {"dies_at_birth": True}, settings, "", kind=SmallWorker)
        doomed.create(WorkerId("decode-9"), Role.DECODE)
        await _until_it_said(doomed, WorkerId("decode-9"), "no such card")
        await doomed.end(WorkerId("decode-9"))
        await pools.close()
        started = [process for process in descendants() if process.pid not in before]
        assert started
    finally:
        await cluster.close()
    assert not psutil.wait_procs(started, timeout=10)[1]
    cluster.remove_folders()
