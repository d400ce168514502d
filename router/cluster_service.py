"""What operators call: `ListWorkers`, `GetPlacement`, `SetPools`, `Drain`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, assert_never

import grpc

from cluster_core.errors import InvalidField, NotServed, PartUnavailable
from cluster_core.identity import RequestId, WorkerId
from cluster_core.placement import Local, Split
from cluster_rpc.v1 import cluster_pb2, cluster_pb2_grpc, worker_pb2
from cluster_rpc.worker_messages import fetch_to_proto, report_to_proto, role_to_proto
from router.admission import Admission
from router.balancer import Candidate
from router.membership import Membership, Worker
from router.placement_history import AttemptRecord, PlacementHistory

Context = grpc.aio.ServicerContext[Any, Any]


class PoolController(Protocol):
    """Whoever starts and stops workers."""

    async def set_pools(self, prefill: int, decode: int) -> tuple[int, int]:
        """Run so many workers of each role; return how many run once they serve. Raises `OperatorError`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """What operators are told about."""

    membership: Membership
    admission: Admission
    history: PlacementHistory
    served_name: str
    directory_url: str
    """Shown to whoever asks: without its password."""
    degraded: Callable[[], bool]
    pools: PoolController | None


class ClusterService(cluster_pb2_grpc.ClusterServiceServicer):
    """Raises `BatonError`; the server's call guard translates."""

    def __init__(self, overview: Overview) -> None:
        self._overview = overview

    async def ListWorkers(  # noqa: N802  # the name in the .proto
        self,
        request: cluster_pb2.ListWorkersRequest,  # noqa: ARG002  # it is empty
        context: Context,  # noqa: ARG002  # gRPC passes it
    ) -> cluster_pb2.ListWorkersResponse:
        """List workers and the state of the router."""
        overview = self._overview
        return cluster_pb2.ListWorkersResponse(
            workers=[_worker_info(worker) for worker in overview.membership.workers()],
            mode="DEGRADED" if overview.degraded() else "SERVING",
            model=overview.served_name,
            live_requests=overview.admission.live,
            queued_requests=overview.admission.queued,
            directory_url=overview.directory_url,
            late_tokens=overview.history.late_tokens,
        )

    async def GetPlacement(  # noqa: N802  # the name in the .proto
        self,
        request: cluster_pb2.GetPlacementRequest,
        context: Context,  # noqa: ARG002  # gRPC passes it
    ) -> cluster_pb2.GetPlacementResponse:
        """Explain one of the last requests."""
        record = self._overview.history.find(RequestId(request.request_id))
        if record is None:
            field = "request_id"
            raise NotServed(field, f"{request.request_id!r} is none of the last requests; see kept_placements")
        now_s = record.timeline.now_s()
        return cluster_pb2.GetPlacementResponse(
            request_id=record.request_id, attempts=[_attempt(attempt, now_s) for attempt in record.attempts]
        )

    async def SetPools(  # noqa: N802  # the name in the .proto
        self,
        request: cluster_pb2.SetPoolsRequest,
        context: Context,  # noqa: ARG002  # gRPC passes it
    ) -> cluster_pb2.SetPoolsResponse:
        """Change how many workers run."""
        pools = self._overview.pools
        if pools is None:
            message = "this router was started without a launcher: start or stop workers yourself"
            raise PartUnavailable(message)
        if request.decode < 1:
            field = "decode"
            raise InvalidField(field, "0 decode workers cannot write answers; at least 1")
        prefill, decode = await pools.set_pools(request.prefill, request.decode)
        return cluster_pb2.SetPoolsResponse(prefill=prefill, decode=decode)

    async def Drain(  # noqa: N802  # the name in the .proto
        self,
        request: cluster_pb2.DrainRequest,
        context: Context,  # noqa: ARG002  # gRPC passes it
    ) -> cluster_pb2.DrainResponse:
        """Send nothing more to a worker."""
        found = await self._overview.membership.drain(WorkerId(request.worker_id))
        return cluster_pb2.DrainResponse(found=found)


def _worker_info(worker: Worker) -> cluster_pb2.WorkerInfo:
    record = worker.record
    return cluster_pb2.WorkerInfo(
        worker_id=record.worker_id,
        incarnation=record.incarnation,
        role=role_to_proto(record.role),
        address=record.address,
        transport=record.transport,
        state=worker.state,
        status=worker.status or worker_pb2.WorkerStatus(worker_id=record.worker_id, incarnation=record.incarnation),
        pid=record.pid,
    )


def _attempt(record: AttemptRecord, now_s: float) -> cluster_pb2.Attempt:
    return cluster_pb2.Attempt(
        attempt=record.attempt,
        chosen=_candidate(record.choice.chosen),
        candidates=[_candidate(candidate) for candidate in record.choice.candidates],
        outcome=record.outcome,
        handoff=report_to_proto(record.handoff) if record.handoff is not None else None,
        fetch=fetch_to_proto(record.fetch),
        spans=[
            cluster_pb2.Span(name=span.name, start_s=span.start_s, end_s=span.end_s)
            for span in record.times.spans(now_s)
        ],
        rung=record.rung,
        kept_of_failed=record.kept_blocks,
        link=record.link,
        overlapped_s=record.handoff.overlapped_s if record.handoff is not None else 0.0,
        bytes_per_s=record.handoff.bytes_per_s if record.handoff is not None else 0.0,
    )


def _candidate(candidate: Candidate) -> cluster_pb2.PlacementCandidate:
    match candidate.placement:
        case Local(worker=worker):
            prefill, decode = "", worker
        case Split(prefill=reader, decode=writer):
            prefill, decode = reader, writer
        case never:
            assert_never(never)
    return cluster_pb2.PlacementCandidate(
        prefill_worker=prefill,
        decode_worker=decode,
        total_s=candidate.total_s,
        terms=[cluster_pb2.Term(name=name, seconds=seconds) for name, seconds in candidate.terms],
        prefill_cached_tokens=candidate.prefill_cached_tokens,
        decode_cached_tokens=candidate.decode_cached_tokens,
        fetch_worker=candidate.loan.lender if candidate.loan is not None else "",
        fetch_blocks=candidate.loan.blocks if candidate.loan is not None else 0,
    )
