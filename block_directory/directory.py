"""What a block directory promises, whichever server stands behind it.

Life of an event: a worker seals a block; its publisher gives the event the next number of the worker's life and appends
it to the one log of the cluster, changing the worker's snapshot in the same transaction; followers read the log in
order. A follower that finds a number missing reads the snapshot, whose number tells which events it contains, and goes
on with the first event after it. Numbers never start again within one incarnation.

Everything here is advisory: a lost or wrong entry costs a cache hit, never an answer.

Every method raises `cluster_core.errors.PartUnavailable` when the server does not answer in time. A call that failed so
may still have been carried out; calls can be repeated.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from cluster_core.blocks import BlockEvent
from cluster_core.identity import BlockHash, Incarnation, WorkerId
from cluster_core.workers import WorkerRecord

REMEMBERED_LEASES = 6
"""For so many leases after it was last heard of, the directory keeps what it knows of a life."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Every hash that a worker holds after its event ``sequence``; perhaps already some of what later events tell."""

    sequence: int
    hashes: tuple[BlockHash, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotStored:
    """The worker has replaced its snapshot: what was known of it before is void."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkersChanged:
    """The worker has registered or left. Has no number of its own: its entry's sequence is 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEntry:
    """One entry of the cluster's event log."""

    worker_id: WorkerId
    incarnation: Incarnation
    sequence: int
    event: BlockEvent | SnapshotStored | WorkersChanged


@dataclass(frozen=True, slots=True, kw_only=True)
class Cursor:
    """A place in the log of one life of the server's data."""

    epoch: str
    position: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LogPage:
    """The entries after a cursor, oldest first, and the cursor after them."""

    entries: tuple[LogEntry, ...]
    cursor: Cursor
    lost: bool = False
    """The server has lost its data since: there are no entries, and the cursor is at the new log's start."""
    at_end: bool = True
    """The log held nothing more when it was read."""


class WorkerRegistry(Protocol):
    """Which workers there are. A registration ends with its lease."""

    async def register(self, record: WorkerRecord, lease_s: float, *, replace: bool = True) -> bool:
        """Enter the worker. With ``replace`` false another live incarnation of the same id stays: returns False.

        So it does in any case when this incarnation was entered before, which is remembered for `REMEMBERED_LEASES` of
        the settings' leases: a life takes another's place once, when it begins, and never that of its successor.
        """

    async def renew(self, worker_id: WorkerId, incarnation: Incarnation, lease_s: float) -> bool:
        """Start the lease anew. Returns False when this incarnation is not registered (any more)."""

    async def unregister(self, worker_id: WorkerId, incarnation: Incarnation) -> None:
        """Remove registration and snapshot of this incarnation; does nothing to another one."""

    async def workers(self) -> list[WorkerRecord]:
        """Return the registered workers, ordered by their ids."""

    async def epoch(self) -> str:
        """Return the name of this life of the server's data: another one means that everything was lost."""


class BlockLog(Protocol):
    """Which blocks the workers hold."""

    async def publish(
        self, worker_id: WorkerId, incarnation: Incarnation, first_sequence: int, events: Sequence[BlockEvent]
    ) -> bool:
        """Append events numbered from ``first_sequence``, all or nothing.

        Returns False when the directory's last number is another one than ``first_sequence - 1``: store a snapshot.
        """

    async def store_snapshot(
        self, worker_id: WorkerId, incarnation: Incarnation, sequence: int, hashes: Sequence[BlockHash]
    ) -> None:
        """Replace the snapshot and tell followers. ``sequence`` is one more than any number ever tried before."""

    async def snapshot(self, worker_id: WorkerId, incarnation: Incarnation) -> Snapshot | None:
        """Return the snapshot; None when there is none, or when it is just being replaced."""

    async def sequences(self, lives: Sequence[tuple[WorkerId, Incarnation]]) -> list[int]:
        """Return the last number of each life, 0 for a life that has no snapshot."""

    async def tail(self, cursor: Cursor | None, wait_s: float) -> LogPage:
        """Return the entries after ``cursor``, waiting up to ``wait_s`` for one. None: no entries, the log's end."""


class BlockDirectory(WorkerRegistry, BlockLog, Protocol):
    """Both, over one server."""

    async def close(self) -> None:
        """Give connections back."""
