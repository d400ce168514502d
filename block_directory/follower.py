"""A router's side: keeps an index and the list of workers as the directory tells them, and both when it tells nothing.

Life of a follower: it notes the end of the log, lists the workers, takes a snapshot of each and reads the log from the
noted place on. A missing number makes it take that worker's snapshot again, at most once in ``snapshot_pause_s``. When
the server stays silent or has lost its data, the follower is degraded or in its *grace*: nobody who was known is
forgotten until the workers had time to register again, since all leases vanishing at once says something about the
server and nothing about the workers.
"""

import asyncio
import logging
import random
from collections.abc import Callable

from block_directory.directory import REMEMBERED_LEASES, BlockDirectory, Cursor, LogEntry, LogPage, WorkersChanged
from block_directory.index import PrefixIndex
from block_directory.replica import Replica
from block_directory.settings import CURE, DirectorySettings
from cluster_core.blocks import BlocksRemoved, BlocksStored
from cluster_core.errors import PartUnavailable
from cluster_core.failpoints import copies
from cluster_core.identity import Incarnation, WorkerId
from cluster_core.workers import WorkerRecord

_logger = logging.getLogger(__name__)

_BREATH_HASHES = 2048
"""After so many hashes the event loop gets its turn."""
_GRACE_LEASES = 2
_PROOF_LEASES = 1.5
"""A life that is registered for so long has renewed its lease: it is not dead."""


class Follower:
    """Feeds one index. ``on_workers`` gets the whole list whenever it changed, on the event loop."""

    def __init__(
        self,
        directory: BlockDirectory,
        index: PrefixIndex,
        on_workers: Callable[[list[WorkerRecord]], None],
        settings: DirectorySettings,
        *,
        is_heard: Callable[[Incarnation], bool] = lambda _: False,
        randomness: random.Random | None = None,
    ) -> None:
        """Nothing happens before `start`. ``is_heard`` says whether a life of a worker itself speaks to us now."""
        self._directory = directory
        self._replica = Replica(index)
        self._on_workers = on_workers
        self._settings = settings
        self._is_heard = is_heard
        self._cursor: Cursor | None = None
        self._known: dict[WorkerId, WorkerRecord] = {}
        self._left: set[Incarnation] = set()
        self._latest: dict[WorkerId, Incarnation] = {}
        """The last life of each worker, be it gone or not."""
        self._replaced: dict[Incarnation, float] = {}
        """Lives whose successors were told of, and until when that is remembered."""
        self._named_again: dict[Incarnation, float] = {}
        """Which of them the server names all the same, and since when."""
        self._expected: dict[Incarnation, int] = {}
        self._behind: dict[Incarnation, float] = {}
        self._not_before: dict[Incarnation, float] = {}
        self._refresh_at = 0.0
        self._grace_until = 0.0
        self._all_gone = False
        self._random = randomness or random.Random()  # noqa: S311 - spreads retries, guards nothing
        self._task: asyncio.Task[None] | None = None
        self.degraded = True
        self.snapshots_taken = 0
        self.failures = 0

    async def start(self) -> None:
        """Begin in the background; the server need not be there."""
        self._task = asyncio.create_task(self._run(), name="directory follower")

    async def close(self) -> None:
        """Stop following."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    @property
    def behind(self) -> int:
        """How many workers' blocks are not known up to date."""
        return len(self._behind)

    async def _run(self) -> None:
        pause_s = self._settings.retry_min_s
        while True:
            try:
                await self._round()
                pause_s = self._settings.retry_min_s
            except PartUnavailable as error:
                self._note_failure(str(error))
                await asyncio.sleep(pause_s * self._random.uniform(0.5, 1.0))
                pause_s = min(2.0 * pause_s, self._settings.retry_max_s)
            except Exception:
                _logger.exception("the directory's follower failed; it goes on")
                self._note_failure("")
                await asyncio.sleep(self._settings.retry_max_s)

    def _note_failure(self, reason: str) -> None:
        if not self.degraded or not self.failures:
            _logger.warning("going on without the directory: %s%s", reason, CURE)
        self.degraded = True
        self.failures += 1
        self._begin_grace()
        self._left.clear()  # a change that was heard of and never looked up: the list may be another one afterwards
        self._refresh_at = 0.0

    async def _round(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._cursor is None:
            self._cursor = (await self._directory.tail(None, 0.0)).cursor
            self._refresh_at = now
        if now >= self._refresh_at:
            await self._refresh(self._cursor)
        await self._take_snapshots()
        if self.degraded:
            _logger.info("the directory answers")
            self.degraded = False
        page = await self._directory.tail(self._cursor, self._wait_s())
        await self._take_in(page)
        await asyncio.sleep(0)

    def _wait_s(self) -> float:
        now = asyncio.get_running_loop().time()
        due = min([self._refresh_at, *self._behind.values()])
        return min(self._settings.tail_wait_s, max(0.001, due - now))

    def _begin_grace(self) -> None:
        now = asyncio.get_running_loop().time()
        self._grace_until = now + _GRACE_LEASES * self._settings.lease_s

    async def _refresh(self, cursor: Cursor) -> None:
        """Take in the list of workers, and the numbers that their events have reached."""
        records = await self._directory.workers()
        if await self._directory.epoch() != cursor.epoch or (not records and self._known and not self._all_gone):
            self._begin_grace()
        self._all_gone = not records
        lives = {record.incarnation for record in records}
        self._named_again = {life: since for life, since in self._named_again.items() if life in lives}
        named = [self._who_is_meant(record) for record in records]
        listed = {record.worker_id: record for record in named if record is not None}
        sequences = await self._directory.sequences([(each.worker_id, each.incarnation) for each in records])
        self._expected = {each.incarnation: number for each, number in zip(records, sequences, strict=True)}
        now = asyncio.get_running_loop().time()
        if now < self._grace_until:
            for worker_id, record in self._known.items():
                if record.incarnation not in self._left:
                    listed.setdefault(worker_id, record)
        self._left.clear()
        self._follow(listed)
        self._refresh_at = now + self._settings.lease_s / 2

    def _who_is_meant(self, record: WorkerRecord) -> WorkerRecord | None:
        """Return whom a registration stands for: a server with old data may name a life that was replaced since.

        Then it is the successor, which will register again, unless it has left. A life whose registration outlasts a
        lease was not replaced: a server with old data named the other one. One that is heard is believed for as long
        as it is: it may have died in silence.
        """
        now = asyncio.get_running_loop().time()
        named_since = self._named_again.get(record.incarnation, now)
        proven = now - named_since > _PROOF_LEASES * self._settings.lease_s
        if proven or self._replaced.get(record.incarnation, 0.0) <= now:
            self._replaced.pop(record.incarnation, None)
            return record
        if self._is_heard(record.incarnation):
            return record
        self._named_again[record.incarnation] = named_since
        known = self._known.get(record.worker_id)
        return None if known is None or known.incarnation in self._left else known

    def _note_replaced(self, incarnation: Incarnation) -> None:
        now = asyncio.get_running_loop().time()
        self._replaced = {each: until for each, until in self._replaced.items() if until > now}
        self._replaced[incarnation] = now + REMEMBERED_LEASES * self._settings.lease_s

    def _follow(self, listed: dict[WorkerId, WorkerRecord]) -> None:
        lives = {record.incarnation for record in listed.values()}
        for record in self._known.values():
            if record.incarnation not in lives:
                self._replica.drop(record.incarnation)
                self._behind.pop(record.incarnation, None)
                self._not_before.pop(record.incarnation, None)
        for record in listed.values():
            before = self._latest.setdefault(record.worker_id, record.incarnation)
            if before != record.incarnation and record.incarnation not in self._replaced:
                self._note_replaced(before)
                self._latest[record.worker_id] = record.incarnation
            if not self._replica.follows(record.incarnation):
                self._replica.admit(record.worker_id, record.incarnation)
                self._fall_behind(record.incarnation)
        if listed != self._known:
            self._known = listed
            self._on_workers([listed[worker_id] for worker_id in sorted(listed)])

    def _fall_behind(self, incarnation: Incarnation) -> None:
        now = asyncio.get_running_loop().time()
        self._behind.setdefault(incarnation, max(now, self._not_before.get(incarnation, now)))

    async def _take_snapshots(self) -> None:
        if not self._behind:
            return
        now = asyncio.get_running_loop().time()
        for record in list(self._known.values()):
            incarnation = record.incarnation
            if self._behind.get(incarnation, now + 1.0) <= now:
                await self._take_snapshot(record.worker_id, incarnation)
                del self._behind[incarnation]
                self._not_before[incarnation] = now + self._settings.snapshot_pause_s

    async def _take_snapshot(self, worker_id: WorkerId, incarnation: Incarnation) -> None:
        """Without one, the worker is about to store it: its event will tell, or the next `_refresh`."""
        snapshot = await self._directory.snapshot(worker_id, incarnation)
        if snapshot is None:
            return
        self.snapshots_taken += 1
        self._replica.begin_restore(worker_id, incarnation)
        for at in range(0, len(snapshot.hashes), _BREATH_HASHES):
            self._replica.restore_some(worker_id, incarnation, snapshot.hashes[at : at + _BREATH_HASHES])
            await asyncio.sleep(0)
        self._replica.end_restore(incarnation, snapshot.sequence)

    async def _take_in(self, page: LogPage) -> None:
        if page.lost:
            self._begin_grace()
            self._refresh_at = 0.0
        taken = 0
        for entry in page.entries:
            for _ in range(await copies("redis.event")):
                taken += self._take_in_entry(entry)
            if taken >= _BREATH_HASHES:
                taken = 0
                await asyncio.sleep(0)
        self._cursor = page.cursor
        if page.at_end:
            for incarnation in self._replica.lagging(self._expected):
                self._fall_behind(incarnation)
            self._expected = {}

    def _take_in_entry(self, entry: LogEntry) -> int:
        if isinstance(entry.event, WorkersChanged):
            self._left.add(entry.incarnation)
            self._refresh_at = 0.0
        elif not self._replica.apply(entry):
            self._fall_behind(entry.incarnation)
        return len(entry.event.hashes) if isinstance(entry.event, BlocksStored | BlocksRemoved) else 1
