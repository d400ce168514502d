"""The directory without a server: for one process, and the measure of what the contract means."""

import asyncio
import secrets
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from block_directory.directory import Cursor, LogEntry, LogPage, Snapshot, SnapshotStored, WorkersChanged
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


class MemoryDirectory:
    """`BlockDirectory` in plain objects, on one event loop."""

    def __init__(self, settings: DirectorySettings, clock: Callable[[], float] = time.monotonic) -> None:
        """Keep ``settings.event_log_entries`` events."""
        self._clock = clock
        self._records: dict[WorkerId, tuple[WorkerRecord, float]] = {}
        self._shelves: dict[tuple[WorkerId, Incarnation], _Shelf] = {}
        self._log: deque[tuple[int, LogEntry]] = deque(maxlen=settings.event_log_entries)
        self._position = 0
        self._epoch = secrets.token_hex(8)
        self._news = asyncio.Event()

    async def register(self, record: WorkerRecord, lease_s: float, *, replace: bool = True) -> bool:
        """See `WorkerRegistry.register`."""
        present = self._live(record.worker_id)
        if present is not None and present.incarnation != record.incarnation and not replace:
            return False
        self._records[record.worker_id] = (record, self._clock() + lease_s)
        self._append(record.worker_id, record.incarnation, 0, WorkersChanged())
        return True

    async def renew(self, worker_id: WorkerId, incarnation: Incarnation, lease_s: float) -> bool:
        """See `WorkerRegistry.renew`."""
        present = self._live(worker_id)
        if present is None or present.incarnation != incarnation:
            return False
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
        self._log.clear()
        self._position = 0
        self._epoch = secrets.token_hex(8)
        self._news.set()

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
