"""The launcher's wiring: the parts of a cluster in the order in which they start; they end in the reverse order.

::

    directory server -> Ray -> workers (each an actor) -> router -> ready
"""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Self

from block_directory.embedded import EmbeddedServer
from cluster_core.errors import PartUnavailable
from cluster_launcher.configuration import Configuration
from cluster_launcher.progress import Progress
from cluster_launcher.ray_cluster import RayCluster
from cluster_launcher.ray_pools import RayPools
from cluster_launcher.readiness import wait_until_it_answers
from cluster_launcher.stop_signals import descendants, wait_until_gone
from cluster_launcher.worker_actors import RayWorkerActors
from cluster_rpc.client import BatonClient
from router.wiring import build_router

_WATCH_PERIOD_S = 1.0
_WARM_TIMEOUT_S = 3.0
"""How long `start` waits for the links between workers to be measured: after it, requests may find them cold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """A cluster that serves."""

    address: str
    model: str
    directory_url: str
    ray_address: str
    workers: tuple[Mapping[str, Any], ...]


class Cluster:
    """One cluster, as an async context manager. Whatever happens inside, its processes are gone afterwards."""

    def __init__(
        self, configuration: Configuration, progress: Progress, on_ray_started: Callable[[], None], *, verbose: bool
    ) -> None:
        """Only remember. ``on_ray_started`` is called once Ray has installed its signal handlers."""
        self._configuration = configuration
        self._progress = progress
        self._on_ray_started = on_ray_started
        self._ray_cluster = RayCluster(configuration.cluster, verbose=verbose)
        self._parts = AsyncExitStack()
        self._watching: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        """Start nothing yet: `start` can then fail inside the block that ends everything."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """End the parts, last one first, and see that no process is left."""
        processes = descendants()
        with self._progress.part("stopping") as tell:
            await self._parts.aclose()
            for straggler in await wait_until_gone(processes):
                tell(f"had to kill pid {straggler.pid}")
            self._ray_cluster.remove_folders()

    async def start(self) -> Ready:
        """Start every part. Raises an `OperatorError` that names the part and the cure.

        What the file names has been looked at before, with `check_surroundings`.
        """
        configuration = self._configuration
        directory_url = await self._start_directory()
        ray_address, pools = await self._start_workers(directory_url)
        records = await pools.start()
        router = build_router(configuration.document, directory_url, pools)
        with self._progress.part("router") as tell:
            address = await router.start()
            self._parts.push_async_callback(router.close)
            client = await self._parts.enter_async_context(BatonClient(address))
            await pools.attach(client)
            await router.wait_until_warm(_WARM_TIMEOUT_S)
            await wait_until_it_answers(address, configuration.cluster.start_timeout_s)
            model = (await client.list_workers()).model
            tell(address)
        self._watch(pools.watch())
        return Ready(
            address=address,
            model=model,
            directory_url=directory_url,
            ray_address=ray_address,
            workers=tuple(records),
        )

    async def wait(self) -> None:
        """Return never, unless a part that should live has ended: then raise `PartUnavailable`."""
        await asyncio.gather(*self._watching)

    async def _start_directory(self) -> str:
        server = EmbeddedServer(self._configuration.directory)
        with self._progress.part("directory server") as tell:
            self._parts.push_async_callback(asyncio.to_thread, server.stop)
            url = await asyncio.to_thread(server.start)
            tell(f"pid {server.pid}" if server.pid else url.rpartition("@")[2])
        if server.pid:
            self._watch(self._keep_directory(server))
        return url

    async def _start_workers(self, directory_url: str) -> tuple[str, RayPools]:
        configuration = self._configuration
        ray_cluster = self._ray_cluster
        self._parts.push_async_callback(ray_cluster.close)
        with self._progress.part("Ray") as tell:
            ray_address = await ray_cluster.start()
            self._on_ray_started()
            tell(ray_address)
        actors = RayWorkerActors(ray_cluster, configuration.document, configuration.cluster, directory_url)
        pools = RayPools(actors, configuration.cluster, self._progress)
        self._parts.push_async_callback(pools.close)
        return ray_address, pools

    async def _keep_directory(self, server: EmbeddedServer) -> None:
        """Start our directory server again when it dies. The cluster serves from memory meanwhile."""
        while True:
            await asyncio.sleep(_WATCH_PERIOD_S)
            if server.pid is None:
                pause_s = self._configuration.cluster.directory_restart_s
                self._progress.note(f"the directory server died; serving goes on, a new one starts in {pause_s:g} s")
                await asyncio.sleep(pause_s)
                try:
                    await asyncio.to_thread(server.restart)
                except PartUnavailable as error:
                    self._progress.note(f"the directory server did not start again: {error}")
                else:
                    self._progress.note(f"the directory server is back, pid {server.pid}")

    def _watch(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._watching.append(task)

        async def end() -> None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        self._parts.push_async_callback(end)
