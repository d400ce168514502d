"""Workers as Ray actors: one actor is one process, and Ray starts it again when it dies.

The only place that creates, asks and kills actors. Requests never travel through here: a Ray call is a control message
(`describe`, `close`), and ``max_task_retries=0`` keeps Ray from sending one twice.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from cluster_core.errors import PartUnavailable
from cluster_core.identity import Role, WorkerId
from cluster_core.settings_reader import Document
from cluster_launcher.ray_cluster import ROLE_RESOURCES, RayCluster
from cluster_launcher.settings import ClusterSettings
from cluster_launcher.worker_process import WorkerProcess

_CLOSE_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorLife:
    """What Ray says of an actor."""

    restarts: int
    dead: bool
    """Ray will not start it again."""
    waits_for_room: bool
    """No node has the resources that it asks for."""
    pid: int


class WorkerActors(Protocol):
    """What the pools need of actors. `RayWorkerActors` is the real one."""

    def create(self, worker_id: WorkerId, role: Role) -> None:
        """Ask for a worker; returns at once."""
        ...

    async def describe(self, worker_id: WorkerId) -> Mapping[str, Any]:
        """Wait until the worker serves and return its registration as plain values. Raises what the actor raised."""
        ...

    async def life(self, worker_id: WorkerId) -> ActorLife:
        """Ask Ray how the actor is."""
        ...

    async def last_words(self, worker_id: WorkerId) -> str:
        """Return the last line that the worker's process wrote to its log, or nothing."""
        ...

    async def end(self, worker_id: WorkerId) -> None:
        """Close the worker in good order, then end its process for good. Idempotent."""
        ...


class RayWorkerActors:
    """Actors of a connected `RayCluster`."""

    def __init__(
        self,
        cluster: RayCluster,
        document: Document,
        settings: ClusterSettings,
        directory_url: str,
        kind: type = WorkerProcess,
    ) -> None:
        """Take what every worker is started with: the configuration and the directory's URL.

        ``kind`` is the class of the actors, called as `WorkerProcess` is.
        """
        self._cluster = cluster
        self._document = document
        self._settings = settings
        self._directory_url = directory_url
        self._kind = kind
        self._handles: dict[WorkerId, Any] = {}
        self._served: set[WorkerId] = set()

    def create(self, worker_id: WorkerId, role: Role) -> None:
        """Ask Ray for the actor; its process starts in the background."""
        actor_class = self._cluster.ray.remote(self._kind)
        self._handles[worker_id] = actor_class.options(
            name=str(worker_id),
            num_cpus=self._settings.cpus_per_worker,
            num_gpus=self._settings.gpus_per_worker,
            resources={ROLE_RESOURCES[role]: 1},
            max_restarts=-1,
            max_task_retries=0,
        ).remote(role.value, self._document, str(worker_id), self._directory_url)

    async def describe(self, worker_id: WorkerId) -> Mapping[str, Any]:
        """Call the actor's `describe`."""
        described: Mapping[str, Any] = await _result(self._handles[worker_id].describe.remote())
        self._served.add(worker_id)
        return described

    async def life(self, worker_id: WorkerId) -> ActorLife:
        """Read the actor's row of Ray's actor table."""
        row = await asyncio.to_thread(self._cluster.actor_row, self._handles[worker_id])
        return ActorLife(
            restarts=int(row.get("NumRestarts", 0)),
            dead=row.get("State") == "DEAD",
            waits_for_room=row.get("State") == "PENDING_CREATION" and not row.get("Pid"),
            pid=int(row.get("Pid", 0)),
        )

    async def last_words(self, worker_id: WorkerId) -> str:
        """Look into the log of the actor's latest process; only a private Ray's logs are at hand."""
        life = await self.life(worker_id)
        return await asyncio.to_thread(self._cluster.last_log_line, life.pid)

    async def end(self, worker_id: WorkerId) -> None:
        """Call `close` and wait a little when the worker has ever served; then kill."""
        handle = self._handles.pop(worker_id, None)
        if handle is None:
            return
        ray = self._cluster.ray
        served = worker_id in self._served
        self._served.discard(worker_id)
        try:
            if served:
                await asyncio.wait_for(_result(handle.close.remote()), _CLOSE_TIMEOUT_S)
        except (TimeoutError, ray.exceptions.RayError):
            pass  # dead already, or stuck: the kill below is the answer to both
        finally:
            ray.kill(handle, no_restart=True)


async def _result(reference: Any) -> Any:
    """Await a Ray object without blocking the loop."""
    return await asyncio.wrap_future(reference.future())


def worker_failed(worker_id: WorkerId, why: str) -> PartUnavailable:
    """Return the error that names a worker which did not come up."""
    return PartUnavailable(f"{worker_id}: did not start ({why})")
