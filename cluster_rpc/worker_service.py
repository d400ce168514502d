"""``WorkerService`` for both roles: the status stream by which the router watches a worker, and draining."""

import asyncio
from collections.abc import AsyncIterator, Callable

from cluster_core.errors import InvalidField
from cluster_core.identity import Incarnation, WorkerId
from cluster_core.workers import WorkerLoad
from cluster_rpc.guard import Context
from cluster_rpc.v1 import worker_pb2 as pb
from cluster_rpc.worker_messages import status_to_proto

SHORTEST_PERIOD_S = 0.01
LONGEST_PERIOD_S = 60.0


class WorkerStatusService:
    """Answers `Watch` from ``load`` and passes `DrainWorker` to ``drain``."""

    def __init__(
        self,
        worker_id: WorkerId,
        incarnation: Incarnation,
        *,
        load: Callable[[], WorkerLoad],
        drain: Callable[[], None],
    ) -> None:
        self._worker_id = worker_id
        self._incarnation = incarnation
        self._load = load
        self._drain = drain

    async def Watch(self, request: pb.WatchRequest, context: Context) -> AsyncIterator[pb.WorkerStatus]:  # noqa: N802, ARG002  # named and called by gRPC
        """Send the status at once, then every ``period_s`` seconds until the router goes away."""
        if not SHORTEST_PERIOD_S <= request.period_s <= LONGEST_PERIOD_S:
            field = "period_s"
            reason = f"must be {SHORTEST_PERIOD_S} to {LONGEST_PERIOD_S}"
            raise InvalidField(field, reason)
        while True:
            yield status_to_proto(self._worker_id, self._incarnation, self._load())
            await asyncio.sleep(request.period_s)

    async def DrainWorker(self, request: pb.DrainWorkerRequest, context: Context) -> pb.DrainWorkerResponse:  # noqa: N802, ARG002  # as above
        """Take no new requests from now on. Idempotent."""
        self._drain()
        return pb.DrainWorkerResponse()
