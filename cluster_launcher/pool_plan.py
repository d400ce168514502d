"""From the pools that run and the pools that are wanted to what must start and what must go. Pure."""

from collections.abc import Collection
from dataclasses import dataclass

from cluster_core.identity import Role, WorkerId


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolChange:
    """What brings a pool to its wanted size. One of the two is always empty."""

    start: tuple[WorkerId, ...]
    """In ascending order."""
    stop: tuple[WorkerId, ...]
    """Those that serve nobody first, then the newest first."""


def worker_name(role: Role, number: int) -> WorkerId:
    """Return a worker's name: ``prefill-0``."""
    return WorkerId(f"{role.value}-{number}")


def worker_number(worker_id: WorkerId) -> int:
    """Return the number in a worker's name."""
    return int(worker_id.rpartition("-")[2])


def plan_pool(role: Role, running: Collection[WorkerId], wanted: int, unwell: Collection[WorkerId] = ()) -> PoolChange:
    """Fill the lowest free numbers; take away ``unwell`` workers, then the newest: they have the least cached."""
    if wanted >= len(running):
        free = (worker_name(role, number) for number in range(wanted + len(running)))
        missing = wanted - len(running)
        return PoolChange(start=tuple([name for name in free if name not in running][:missing]), stop=())
    leaving_first = sorted(running, key=lambda name: (name in unwell, worker_number(name)), reverse=True)
    return PoolChange(start=(), stop=tuple(leaving_first[: len(running) - wanted]))
