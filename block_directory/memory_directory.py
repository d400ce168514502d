"""The directory without a server: for one process, and the measure of what the contract means."""

import asyncio
import secrets
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from block_directory.directory import (
    REMEMBERED_LEASES,
    Cursor,
    LogEntry,
    LogPage,
    Snapshot,
    SnapshotStored,
    WorkersChanged,
)
from block_directory.settings import DirectorySettings
from cluster_core.blocks import BlockEvent, BlocksRemoved, BlocksStored
from cluster_core.identity import BlockHash, Incarnation, WorkerId
from cluster_core.workers import WorkerRecord

_PAGE_ENTRIES = 512


@dataclass(slots=True)
class _Shelf:
    """One life's snapshot."""

    sequence: int
    hashes: dict[BlockHash, None] = field(default_factory=dict)


Saved: TypeAlias = tuple[
    dict[WorkerId, tuple[WorkerRecord, float]],
    dict[tuple[WorkerId, Incarnation], _Shelf],
    dict[tuple[WorkerId, Incarnation], float],
    list[tuple[int, LogEntry]],
]
"""All that a server keeps: registrations, snapshots, who has registered, the log."""


class MemoryDirectory:
    """`BlockDirectory` in plain objects, on one event loop."""

    def __init__(self, settings: DirectorySettings, clock: Callable[[], float] = time.monotonic) -> None:
        """Keep ``settings.event_log_entries`` events."""
        self._clock = clock
        self._records: dict[WorkerId, tuple[WorkerRecord, float]] = {}
        self._shelves: dict[tuple[WorkerId, Incarnation], _Shelf] = {}
        self._remembered_s = settings.lease_s * REMEMBERED_LEASES
        self._entered: dict[tuple[WorkerId, Incarnation], float] = {}
        """Lives that have registered, and until when that is remembered."""
        self._log: deque[tuple[int, LogEntry]] = deque(maxlen=settings.event_log_entries)
        self._position = 0
        self._epoch = secrets.token_hex(8)
        self._news = asyncio.Event()

    async def register(self, record: WorkerRecord, lease_s: float, *, replace: bool = True) -> bool:
        """See `WorkerRegistry.register`."""
        present, life = self._live(record.worker_id), (record.worker_id, record.incarnation)
        entered_before = self._entered.get(life, 0.0) > self._clock()
        if present is not None and present.incarnation != record.incarnation and (entered_before or not replace):
            return False
        self._remember(life)
        self._records[record.worker_id] = (record, self._clock() + lease_s)
        self._append(record.worker_id, record.incarnation, 0, WorkersChanged())
        return True

    async def renew(self, worker_id: WorkerId, incarnation: Incarnation, lease_s: float) -> bool:
        """See `WorkerRegistry.renew`."""
        present = self._live(worker_id)
        if present is None or present.incarnation != incarnation:
            return False
        self._remember((worker_id, incarnation))
        self._records[worker_id] = (present, self._clock() + lease_s)
        return True

    async def unregister(self, worker_id: WorkerId, incarnation: Incarnation) -> None:
        """See `WorkerRegistry.unregister`."""
        self._shelves.pop((worker_id, incarnation), None)
        present = self._live(worker_id)
        if present is not None and present.incarnation == incarnation:
            del self._records[worker_id]
            self._append(worker_id, incarnation, 0, WorkersChanged())

    async def workers(self) -> list[WorkerRecord]:
        """See `WorkerRegistry.workers`."""
        live = [self._live(worker_id) for worker_id in sorted(self._records)]
        return [record for record in live if record is not None]

    async def epoch(self) -> str:
        """See `WorkerRegistry.epoch`."""
        return self._epoch

    async def publish(
        self, worker_id: WorkerId, incarnation: Incarnation, first_sequence: int, events: Sequence[BlockEvent]
    ) -> bool:
        """See `BlockLog.publish`."""
        shelf = self._shelves.get((worker_id, incarnation))
        if shelf is None or shelf.sequence != first_sequence - 1:
            return False
        for sequence, event in enumerate(events, first_sequence):
            match event:
                case BlocksStored(hashes=hashes):
                    shelf.hashes.update(dict.fromkeys(hashes))
                case BlocksRemoved(hashes=hashes):
                    for block_hash in hashes:
                        shelf.hashes.pop(block_hash, None)
                case _:
                    shelf.hashes.clear()
            shelf.sequence = sequence
            self._append(worker_id, incarnation, sequence, event)
        return True

    async def store_snapshot(
        self, worker_id: WorkerId, incarnation: Incarnation, sequence: int, hashes: Sequence[BlockHash]
    ) -> None:
        """See `BlockLog.store_snapshot`."""
        self._shelves[worker_id, incarnation] = _Shelf(sequence, dict.fromkeys(hashes))
        self._append(worker_id, incarnation, sequence, SnapshotStored())

    async def snapshot(self, worker_id: WorkerId, incarnation: Incarnation) -> Snapshot | None:
        """See `BlockLog.snapshot`."""
        shelf = self._shelves.get((worker_id, incarnation))
        return None if shelf is None else Snapshot(sequence=shelf.sequence, hashes=tuple(shelf.hashes))

    async def sequences(self, lives: Sequence[tuple[WorkerId, Incarnation]]) -> list[int]:
        """See `BlockLog.sequences`."""
        shelves = [self._shelves.get(life) for life in lives]
        return [0 if shelf is None else shelf.sequence for shelf in shelves]

    async def tail(self, cursor: Cursor | None, wait_s: float) -> LogPage:
        """See `BlockLog.tail`."""
        if cursor is None:
            return LogPage(entries=(), cursor=self._cursor(self._position))
        if cursor.epoch != self._epoch:
            return LogPage(entries=(), cursor=self._cursor(0), lost=True, at_end=False)
        after = int(cursor.position)
        if after >= self._position and wait_s > 0.0:
            self._news.clear()
            try:
                async with asyncio.timeout(wait_s):
                    await self._news.wait()
            except TimeoutError:
                pass
            if cursor.epoch != self._epoch:
                return LogPage(entries=(), cursor=self._cursor(0), lost=True, at_end=False)
        found = [(position, entry) for position, entry in self._log if position > after][:_PAGE_ENTRIES]
        last = found[-1][0] if found else self._position
        entries = tuple(entry for _, entry in found)
        return LogPage(entries=entries, cursor=self._cursor(last), at_end=len(found) < _PAGE_ENTRIES)

    async def close(self) -> None:
        """Nothing is held."""

    def lose_everything(self) -> None:
        """Do what a server does that starts again empty: for tests of what comes after."""
        self._records.clear()
        self._shelves.clear()
        self._entered.clear()
        self._log.clear()
        self._position = 0
        self._epoch = secrets.token_hex(8)
        self._news.set()

    def saved(self) -> Saved:
        """Return what a server writes to its disk."""
        shelves = {life: _Shelf(shelf.sequence, dict(shelf.hashes)) for life, shelf in self._shelves.items()}
        return dict(self._records), shelves, dict(self._entered), list(self._log)

    def go_back_to(self, saved: Saved) -> None:
        """Do what a server does that starts again from an old file: newer data is lost, new entries have new places.

        It has what `saved` returned, which is the server's own from then on.
        """
        self._records, self._shelves, self._entered, log = saved
        self._log.clear()
        self._log.extend(log)
        self._news.set()

    def _remember(self, life: tuple[WorkerId, Incarnation]) -> None:
        now = self._clock()
        self._entered = {each: until for each, until in self._entered.items() if until > now}
        self._entered[life] = now + self._remembered_s

    def _live(self, worker_id: WorkerId) -> WorkerRecord | None:
        record, until = self._records.get(worker_id, (None, 0.0))
        return record if self._clock() < until else None

    def _cursor(self, position: int) -> Cursor:
        return Cursor(epoch=self._epoch, position=str(position))

    def _append(
        self,
        worker_id: WorkerId,
        incarnation: Incarnation,
        sequence: int,
        event: BlockEvent | SnapshotStored | WorkersChanged,
    ) -> None:
        self._position += 1
        entry = LogEntry(worker_id=worker_id, incarnation=incarnation, sequence=sequence, event=event)
        self._log.append((self._position, entry))
        self._news.set()
