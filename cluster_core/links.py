"""What workers tell one another to measure the way between them, and what one then knows of it."""

from dataclasses import dataclass
from typing import TypeAlias

from cluster_core.identity import Incarnation, WorkerId


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkReport:
    """A link, seen from the worker that would take blocks over it. Seconds, bytes a second; 0.0 means not measured."""

    peer: WorkerId
    """The worker at the other end."""
    incarnation: Incarnation
    """Its life that was measured."""
    transport: str
    lane: str = ""
    """What carries long messages: ``cma``, ``shared memory``, ``cuda ipc``, ``rdma``, ``tcp``, ``memory`` (within one
    process); empty where neither the transport nor the kernel tells."""
    expected_lane: str = ""
    """What should at least, given where the two workers run; empty where nothing can be said."""
    same_host: bool = False
    call_s: float = 0.0
    """A gRPC message there and back."""
    round_trip_s: float = 0.0
    """A short message of the transport there and back."""
    small_in_bytes_per_s: float = 0.0
    """Many messages of 4 KiB towards this worker."""
    large_in_bytes_per_s: float = 0.0
    """Messages of 1 MiB towards this worker."""
    small_out_bytes_per_s: float = 0.0
    """As ``small_in_bytes_per_s``, towards the other worker."""
    large_out_bytes_per_s: float = 0.0
    """As ``large_in_bytes_per_s``, towards the other worker."""
    copy_bytes_per_s: float = 0.0
    """How fast this machine copies 1 MiB, for comparison."""
    fixed_s: float = 0.0
    """What a hand-over over this link takes beside its bytes: as foreseen from the above, or as imports have shown."""
    bytes_per_s: float = 0.0
    """How fast a hand-over's blocks come in, exact ones: as foreseen from the above, or as imports have shown."""
    rounded_bytes_per_s: float = 0.0
    """The same of blocks that are rounded on their way: bytes of blocks, not of what travels, the rounding included.
    0.0 where no import since the last measurement took such."""
    imports: int = 0
    """How many imports have shown it."""
    blocks_in_flight: int = 0
    """Blocks that a hand-over over this link asks for at a time."""
    warning: str = ""
    """Why the link is slower than it should be, one line; empty for a good one."""
    cure: str = ""
    measured: int = 0
    """How often it was measured; the best figures stand."""
    settled: bool = True
    """Whether another measurement would tell nothing new: False for a slow one that may only have had a bad moment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkSite:
    """What decides by which way two workers can reach each other."""

    host: str
    """Equal on two workers that run on one machine."""
    cuda: bool
    """Blocks lie in a GPU's memory."""
    rdma: bool
    """The machine has an RDMA device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeHello:
    """Who takes part in a measurement."""

    worker_id: WorkerId
    incarnation: Incarnation
    meant: Incarnation
    """The life of the other worker that is meant."""
    transport: str
    transport_address: bytes
    site: LinkSite


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeBurst:
    """Messages to be moved: number i under tag ``tag + i``. The receiver's short answer has the tag ``tag + count``."""

    tag: int
    message_bytes: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeSend:
    """Send me these."""

    burst: ProbeBurst


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeReceive:
    """Be ready to receive these."""

    burst: ProbeBurst


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeReady:
    """The receives are posted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeTook:
    """They were sent; the receiver's answer came so many seconds after the first one was."""

    seconds: float


ProbeQuestion: TypeAlias = ProbeHello | ProbeSend | ProbeReceive
ProbeAnswer: TypeAlias = ProbeHello | ProbeReady | ProbeTook
