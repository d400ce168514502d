"""Whether a life of a worker that is registered somewhere still speaks."""

from typing import Any

import grpc
from grpc.aio import EOF as END_OF_STREAM  # type: ignore[attr-defined]  # missing in the stubs

from cluster_core.workers import WorkerRecord
from cluster_rpc.channels import open_channel
from cluster_rpc.limits import INTERNAL
from cluster_rpc.v1 import worker_pb2, worker_pb2_grpc

LISTEN_S = 1.0
"""How long it may take to answer: a process that is stopped accepts connections, since the kernel does, and is mute."""
_NO_SECOND_STATUS_S = 60.0


async def speaks(record: WorkerRecord, listen_s: float = LISTEN_S) -> bool:
    """Say whether this very life of a worker answers `Watch` at its address, and goes on: one that drains is leaving.

    A dead process's port refuses at once; what has taken the port meanwhile is another life, or no worker at all.
    """
    channel = open_channel(record.address, INTERNAL)
    stub: Any = worker_pb2_grpc.WorkerServiceStub(channel)  # type: ignore[no-untyped-call]  # generated code
    call = stub.Watch(worker_pb2.WatchRequest(period_s=_NO_SECOND_STATUS_S), timeout=listen_s)
    try:
        status = await call.read()
    except grpc.aio.AioRpcError:
        return False
    finally:
        call.cancel()
        await channel.close(None)
    if status is END_OF_STREAM:
        return False
    return bool(status.incarnation == record.incarnation and not status.draining)
