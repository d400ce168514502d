"""The calls that the router makes to one life of a worker."""

from typing import Any

from cluster_core.workers import WorkerRecord
from cluster_rpc.channels import ChannelPool
from cluster_rpc.v1 import link_pb2_grpc, worker_pb2_grpc


class WorkerConnection:
    """The worker's calls, made ready once, so that a request costs no set-up."""

    def __init__(self, channels: ChannelPool, record: WorkerRecord) -> None:
        self.worker_id = record.worker_id
        channel = channels.get(record.address)
        worker: Any = worker_pb2_grpc.WorkerServiceStub(channel)  # type: ignore[no-untyped-call]  # generated code
        prefill: Any = worker_pb2_grpc.PrefillServiceStub(channel)  # type: ignore[no-untyped-call]  # generated code
        decode: Any = worker_pb2_grpc.DecodeServiceStub(channel)  # type: ignore[no-untyped-call]  # generated code
        link: Any = link_pb2_grpc.LinkServiceStub(channel)  # type: ignore[no-untyped-call]  # generated code
        self.calibrate = link.CalibrateLink
        self.watch = worker.Watch
        self.drain = worker.DrainWorker
        self.prefill = prefill.Prefill
        self.decode = decode.Decode
        self.end_choice = decode.EndChoice
