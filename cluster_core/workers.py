"""What the cluster knows of a worker: its registration, and the load that it reports."""

from dataclasses import dataclass

from cluster_core.identity import Incarnation, Role, WorkerId
from cluster_core.layout import KvLayout, ModelIdentity
from cluster_core.links import LinkReport


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
    """Holds on blocks without an owner, since the worker's start: each is a bug."""
    expired_leases: int = 0
    """Exports that nobody came for in time."""
    preemptions: int = 0
    answer_steps: int = 0
    """Steps that wrote an answer's next tokens, counted once for each answer of a step. Since the start, as are all of
    these: ``written_tokens / answer_steps`` is above 1 where guesses came true."""
    written_tokens: int = 0
    """Tokens written in those."""
    guessed_tokens: int = 0
    """Guesses of speculative decoding that were checked; what was not accepted of them was wasted."""
    accepted_guesses: int = 0
    draft_s: float = 0.0
    """Time that a draft model took."""
    draft_held_blocks: int = 0
    """Blocks of a draft model's own pool that requests hold now."""
    links: tuple[LinkReport, ...] = ()
    """What the worker knows of the ways from others to itself."""
