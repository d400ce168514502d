"""The rows and the columns of the grid: where in its life a request is stopped, and what happens to it there."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from cluster_core.errors import BatonError, Cancelled, DeadlineExceeded, PartUnavailable
from cluster_rpc.client import BatonClient
from tests.failure_grid.asked import Reading
from tests.failure_grid.cutting_proxy import CuttingProxy
from tests.failure_grid.grid_cluster import ROUTER, GridCluster

ANSWER_S = 20.0
DEADLINE_S = 1.0
"""Of a request whose time is to pass at a stage, which must be reached by then."""
FREE_S = 1.0
FREE_AFTER_CRASH_S = 12.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Where a request is stopped."""

    role: str
    """Whose processes are armed."""
    failpoint: str


STAGES: Mapping[str, Stage] = {
    "admitted": Stage(role="router", failpoint="router.admit"),
    "placed": Stage(role="router", failpoint="router.dispatch"),
    "prefill queued": Stage(role="prefill", failpoint="p.queue"),
    "first chunk": Stage(role="prefill", failpoint="p.chunk.1"),
    "middle chunk": Stage(role="prefill", failpoint="p.chunk.4"),
    "reserved": Stage(role="decode", failpoint="d.reserve"),
    "hand-over opened": Stage(role="decode", failpoint="xfer.connect"),
    "bytes under way": Stage(role="prefill", failpoint="xfer.chunk.1"),
    "landed, not verified": Stage(role="decode", failpoint="xfer.landed.4"),
    "accepted": Stage(role="decode", failpoint="d.first_step"),
    "middle decode step": Stage(role="decode", failpoint="d.step.8"),
    "last token": Stage(role="router", failpoint="router.fin"),
}
"""In the order in which a request comes there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Victim:
    """A request that is stopped, and all that a fault can strike."""

    cluster: GridCluster
    client: BatonClient
    """The operator's, which no fault strikes."""
    proxy: CuttingProxy
    """What the request's client is connected through."""
    reading: Reading
    prefill: str
    """The worker that reads it; the first one where it has none yet."""
    decode: str
    """As above, that writes it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What happens to a stopped request."""

    strike: Callable[[Victim], Awaitable[None]]
    ends_with: type[BatonError] | None
    """What its client hears; None: nothing, its answer is complete."""
    others_end_with: type[BatonError] | None = None
    """What the clients of requests beside it hear."""
    timeout_s: float = ANSWER_S
    """The time that its client gives it."""
    free_within_s: float = FREE_S
    """How soon nothing may be held any more."""


async def _cancel(victim: Victim) -> None:
    assert await victim.client.cancel(victim.reading.asked.request_id), "the router does not know the request"


async def _disconnect(victim: Victim) -> None:
    assert victim.proxy.cut(), "there was no connection"


async def _let_time_pass(victim: Victim) -> None:
    await asyncio.wait({victim.reading.task}, timeout=ANSWER_S)


async def _kill_prefill(victim: Victim) -> None:
    victim.cluster.processes[victim.prefill].kill()


async def _kill_decode(victim: Victim) -> None:
    victim.cluster.processes[victim.decode].kill()


async def _kill_router(victim: Victim) -> None:
    victim.cluster.processes[ROUTER].kill()


FAULTS: Mapping[str, Fault] = {
    "cancel": Fault(strike=_cancel, ends_with=Cancelled),
    "disconnect": Fault(strike=_disconnect, ends_with=PartUnavailable),
    "deadline": Fault(strike=_let_time_pass, ends_with=DeadlineExceeded, timeout_s=DEADLINE_S),
    "kill prefill": Fault(strike=_kill_prefill, ends_with=None, free_within_s=FREE_AFTER_CRASH_S),
    "kill decode": Fault(strike=_kill_decode, ends_with=None, free_within_s=FREE_AFTER_CRASH_S),
    "kill router": Fault(
        strike=_kill_router,
        ends_with=PartUnavailable,
        others_end_with=PartUnavailable,
        free_within_s=FREE_AFTER_CRASH_S,
    ),
}
