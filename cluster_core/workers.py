"""What the cluster knows of a worker: its registration, and the load that it reports."""

from dataclasses import dataclass

from cluster_core.identity import Incarnation, Role, WorkerId
from cluster_core.layout import KvLayout, ModelIdentity


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRecord:
    """A worker's registration in the directory. Constant for one incarnation."""

    worker_id: WorkerId
    incarnation: Incarnation
    role: Role
    address: str
    """``host:port`` of the worker's gRPC server."""
    transport: str
    """Name of the transport that moves its blocks: ``ucx`` or ``loopback``."""
    model: ModelIdentity
    layout: KvLayout
    total_blocks: int
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLoad:
    """A worker's latest status. Times are learned online; 0.0 means not yet measured."""

    waiting_requests: int = 0
    running_requests: int = 0
    queued_prefill_tokens: int = 0
    total_blocks: int = 0
    held_blocks: int = 0
    cached_blocks: int = 0
    engine_steps: int = 0
    prefill_s_per_token: float = 0.0
    decode_step_s: float = 0.0
    transfer_bytes_per_s: float = 0.0
    transfer_fixed_s: float = 0.0
    draining: bool = False
    orphaned_holds: int = 0
    preemptions: int = 0
