"""A worker's side: keeps its registration alive and tells of its blocks, whatever happens to the server.

Life of a publication: ``wake`` is called when the block pool has events; they are drained, merged, numbered and
appended. When that fails, or the directory's number is not ours, everything pending is moot: next comes a registration
and a snapshot with a higher number than any tried, and events are numbered on from there. Nothing raises into the
worker. While the server is away drained events are dropped, since the snapshot will contain what they tell.
"""

import asyncio
import logging
import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence

from block_directory.directory import BlockDirectory
from block_directory.settings import CURE, DirectorySettings
from cluster_core.blocks import BlockEvent, BlocksRemoved, BlocksStored, CacheCleared
from cluster_core.errors import PartUnavailable
from cluster_core.failpoints import reach
from cluster_core.identity import BlockHash
from cluster_core.workers import WorkerRecord

_logger = logging.getLogger(__name__)

EVENT_HASHES = 512
"""The most hashes that one published event carries."""
_CALL_EVENTS = 8
_SUCCEEDED_LEASES = 2
"""Whoever holds a place for so many leases renews its registration: it lives."""


class Publisher:
    """Publishes one worker's life. Sources are called on the event loop and must be quick."""

    def __init__(
        self,
        directory: BlockDirectory,
        record: WorkerRecord,
        events_source: Callable[[], list[BlockEvent]],
        hashes_source: Callable[[], list[BlockHash]],
        settings: DirectorySettings,
        *,
        randomness: random.Random | None = None,
    ) -> None:
        """``events_source`` drains the pool's events, ``hashes_source`` tells everything that it holds after them."""
        self._directory = directory
        self._record = record
        self._events_source = events_source
        self._hashes_source = hashes_source
        self._settings = settings
        self._sequence = 0
        self._entered_once = False
        self._in_step = False
        self._renew_at = 0.0
        self._woken = asyncio.Event()
        self._healthy = asyncio.Event()
        self._random = randomness or random.Random()  # noqa: S311 - spreads retries, guards nothing
        self._task: asyncio.Task[None] | None = None
        self.replaced = False
        """Whether another life has this one's place."""
        self.failures = 0
        self.on_replaced: Callable[[], None] = _go_on
        """Called when another life has had this one's place for so long that it must be alive: this one should end."""
        self._replaced_since: float | None = None

    @property
    def healthy(self) -> bool:
        """Whether the directory's last answer was good and it knows this worker."""
        return self._healthy.is_set()

    async def until_healthy(self) -> None:
        """Wait for `healthy`; the caller sets the deadline."""
        await self._healthy.wait()

    async def start(self) -> None:
        """Begin in the background; the server need not be there."""
        self._task = asyncio.create_task(self._run(), name=f"publisher of {self._record.worker_id}")

    def wake(self) -> None:
        """Say that there are events to drain."""
        self._woken.set()

    async def close(self) -> None:
        """Stop, and unregister if the server answers."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._task = None
        self._healthy.clear()
        if self._entered_once:
            try:
                await self._directory.unregister(self._record.worker_id, self._record.incarnation)
            except PartUnavailable as error:
                _logger.info("%s leaves without telling the directory: %s", self._record.worker_id, error)

    async def _run(self) -> None:
        pause_s = self._settings.retry_min_s
        while True:
            try:
                await self._step()
                pause_s = self._settings.retry_min_s
            except PartUnavailable as error:
                self._note_failure(str(error))
                await asyncio.sleep(pause_s * self._random.uniform(0.5, 1.0))
                pause_s = min(2.0 * pause_s, self._settings.retry_max_s)
            except Exception:
                _logger.exception("%s: the publisher failed; it goes on", self._record.worker_id)
                self._note_failure("")
                self._in_step = False
                await asyncio.sleep(self._settings.retry_max_s)

    def _note_failure(self, reason: str) -> None:
        if self.healthy or not self.failures:
            _logger.warning("%s is out of touch with the directory: %s%s", self._record.worker_id, reason, CURE)
        self.failures += 1
        self._healthy.clear()
        if self._events_source():
            self._in_step = False

    async def _step(self) -> None:
        loop = asyncio.get_running_loop()
        if not self._in_step and not await self._enter():
            await asyncio.sleep(self._settings.lease_s / 3)
            return
        if loop.time() >= self._renew_at:
            renewed = await self._directory.renew(
                self._record.worker_id, self._record.incarnation, self._settings.lease_s
            )
            if not renewed or not await self._is_known_up_to_date():
                await self._lose_step()
                return
            self._renew_at = loop.time() + self._settings.lease_s / 3
        if not await self._publish_pending():
            await self._lose_step()
            return
        self._healthy.set()
        try:
            async with asyncio.timeout_at(self._renew_at):
                await self._woken.wait()
                await asyncio.sleep(self._settings.gather_s)
        except TimeoutError:
            pass

    async def _is_known_up_to_date(self) -> bool:
        """Say whether the directory has our last number: a server that came back with old data has an older one."""
        (number,) = await self._directory.sequences([(self._record.worker_id, self._record.incarnation)])
        return number == self._sequence

    async def _lose_step(self) -> None:
        """Come back at a random moment: a server that has forgotten us has forgotten the others too."""
        self._in_step = False
        self._healthy.clear()
        await asyncio.sleep(self._random.uniform(0.0, self._settings.resync_spread_s))

    async def _enter(self) -> bool:
        """Register and tell everything. False when a newer life has taken the worker's place."""
        record = self._record
        entered = await self._directory.register(record, self._settings.lease_s, replace=not self._entered_once)
        self._note_place(mine=entered)
        if not entered:
            self._healthy.clear()
            self._events_source()
            return False
        self._entered_once = True
        self._renew_at = asyncio.get_running_loop().time() + self._settings.lease_s / 3
        self._events_source()
        hashes = self._hashes_source()
        self._sequence += 1
        await self._directory.store_snapshot(record.worker_id, record.incarnation, self._sequence, hashes)
        self._in_step = True
        return True

    def _note_place(self, *, mine: bool) -> None:
        """Note whether the worker's place is this life's, and since when it is another's."""
        now = asyncio.get_running_loop().time()
        self.replaced = not mine
        if mine:
            self._replaced_since = None
        elif self._replaced_since is None:
            self._replaced_since = now
        elif now - self._replaced_since > _SUCCEEDED_LEASES * self._settings.lease_s:
            self._replaced_since = math.inf
            self.on_replaced()

    async def _publish_pending(self) -> bool:
        await reach("p.publish")
        self._woken.clear()
        merged = list(merge_events(self._events_source()))
        for at in range(0, len(merged), _CALL_EVENTS):
            batch = merged[at : at + _CALL_EVENTS]
            first = self._sequence + 1
            self._sequence += len(batch)
            try:
                published = await self._directory.publish(
                    self._record.worker_id, self._record.incarnation, first, batch
                )
            except PartUnavailable:
                self._in_step = False
                raise
            if not published:
                return False
        return True


def _go_on() -> None:
    """Do nothing."""


def merge_events(events: Iterable[BlockEvent]) -> Iterator[BlockEvent]:
    """Tell the same in fewer events: neighbours of one kind are joined, and what a `CacheCleared` voids is left out.

    No event has more than `EVENT_HASHES` hashes.
    """
    told: list[BlockEvent] = []
    for event in events:
        if isinstance(event, CacheCleared):
            told.clear()
        told.append(event)
    run: list[BlockHash] = []
    kind: type[BlocksStored | BlocksRemoved] = BlocksStored
    for event in told:
        if isinstance(event, CacheCleared):
            yield event
        elif type(event) is kind:
            run.extend(event.hashes)
        else:
            yield from _cut(kind, run)
            run, kind = list(event.hashes), type(event)
    yield from _cut(kind, run)


def _cut(kind: type[BlocksStored | BlocksRemoved], hashes: Sequence[BlockHash]) -> Iterator[BlockEvent]:
    for at in range(0, len(hashes), EVENT_HASHES):
        yield kind(hashes=tuple(hashes[at : at + EVENT_HASHES]))
