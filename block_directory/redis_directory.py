"""The directory in Redis or Valkey, from version 6.2 on: no scripts, plain transactions.

Keys, all under ``baton:{<cluster>}:`` (the braces keep a cluster's keys in one slot)::

    workers                      set      ids that have registered
    worker:<id>                  string   the registration as JSON; ends with its lease
    sequence:<id>:<life>         string   number of the life's last event
    blocks:<id>:<life>           set      the hashes that the life holds after that event
    entered:<id>:<life>          string   the life has registered before
    events                       stream   every life's events, capped
    epoch                        string   drawn once by whoever comes first; another one means lost data

A life's own keys outlive its lease a while and then end by themselves. An event, its effect on ``blocks`` and its
number change in one transaction that watches the number, so a transaction that arrives late changes nothing. A snapshot
is read in slices: the number first, so what the slices catch of later events those events repeat.
"""

import secrets
from collections.abc import Awaitable, Sequence
from typing import Any, cast

import redis.asyncio
from redis.asyncio.client import Pipeline
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import WatchError

from block_directory.directory import (
    REMEMBERED_LEASES,
    Cursor,
    LogEntry,
    LogPage,
    Snapshot,
    SnapshotStored,
    WorkersChanged,
)
from block_directory.log_entries import entry_from_fields, entry_to_fields, pack_hashes
from block_directory.records import incarnation_text, record_from_json, record_to_json
from block_directory.redis_calls import bounded, within
from block_directory.settings import DirectorySettings
from cluster_core.blocks import BlockEvent, BlocksRemoved, BlocksStored
from cluster_core.failpoints import reach
from cluster_core.hash_chain import HASH_BYTES
from cluster_core.identity import BlockHash, Incarnation, WorkerId
from cluster_core.workers import WorkerRecord

_PAGE_ENTRIES = 512
_SLICE_HASHES = 1024


class RedisDirectory:
    """`BlockDirectory` over one server. ``ignored_values`` counts what could not be read."""

    def __init__(self, url: str, settings: DirectorySettings) -> None:
        """Connect lazily to ``url``: the server need not be there yet."""
        self._settings = settings
        self.call_timeout_s = settings.call_timeout_s
        self._client = redis.asyncio.Redis.from_url(
            url,
            socket_timeout=settings.call_timeout_s + settings.tail_wait_s,
            socket_connect_timeout=settings.call_timeout_s,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
            decode_responses=False,
        )
        self._prefix = f"baton:{{{settings.cluster}}}:"
        self._keep_ms = round(settings.lease_s * REMEMBERED_LEASES * 1000)
        self.ignored_values = 0

    @bounded
    async def register(self, record: WorkerRecord, lease_s: float, *, replace: bool = True) -> bool:
        """See `WorkerRegistry.register`."""
        while (entered := await self._try_register(record, lease_s, replace=replace)) is None:
            pass
        return entered

    async def _try_register(self, record: WorkerRecord, lease_s: float, *, replace: bool) -> bool | None:
        """Return None when somebody wrote meanwhile."""
        key = self._worker_key(record.worker_id)
        entered_key = self._life_key("entered", record.worker_id, record.incarnation)
        async with self._transaction() as pipe:
            await pipe.watch(key, entered_key)
            value, entered = await _reply(pipe.mget(key, entered_key))
            present = self._read_record(record.worker_id, value)
            another = present is not None and present.incarnation != record.incarnation
            if another and (entered is not None or not replace):
                return False
            _begin(pipe)
            pipe.set(self._prefix + "epoch", secrets.token_hex(8), nx=True)
            pipe.sadd(self._prefix + "workers", record.worker_id)
            pipe.set(key, record_to_json(record), px=_milliseconds(lease_s))
            pipe.set(entered_key, b"1", px=self._keep_ms)
            self._append(pipe, record.worker_id, record.incarnation, 0, WorkersChanged())
            return True if await _executed(pipe) else None

    @bounded
    async def renew(self, worker_id: WorkerId, incarnation: Incarnation, lease_s: float) -> bool:
        """See `WorkerRegistry.renew`."""
        key = self._worker_key(worker_id)
        async with self._transaction() as pipe:
            await pipe.watch(key)
            present = self._read_record(worker_id, await _reply(pipe.get(key)))
            if present is None or present.incarnation != incarnation:
                return False
            _begin(pipe)
            pipe.pexpire(key, _milliseconds(lease_s))
            pipe.sadd(self._prefix + "workers", worker_id)
            pipe.pexpire(self._life_key("sequence", worker_id, incarnation), self._keep_ms)
            pipe.pexpire(self._life_key("blocks", worker_id, incarnation), self._keep_ms)
            pipe.pexpire(self._life_key("entered", worker_id, incarnation), self._keep_ms)
            return await _executed(pipe)

    @bounded
    async def unregister(self, worker_id: WorkerId, incarnation: Incarnation) -> None:
        """See `WorkerRegistry.unregister`."""
        key = self._worker_key(worker_id)
        async with self._transaction() as pipe:
            await pipe.watch(key)
            present = self._read_record(worker_id, await _reply(pipe.get(key)))
            _begin(pipe)
            pipe.unlink(self._life_key("sequence", worker_id, incarnation))
            pipe.unlink(self._life_key("blocks", worker_id, incarnation))
            if present is not None and present.incarnation == incarnation:
                pipe.delete(key)
                pipe.srem(self._prefix + "workers", worker_id)
                self._append(pipe, worker_id, incarnation, 0, WorkersChanged())
            await _executed(pipe)

    @bounded
    async def workers(self) -> list[WorkerRecord]:
        """See `WorkerRegistry.workers`."""
        await reach("redis.lookup")
        names = sorted(await _reply(self._client.smembers(self._prefix + "workers")))
        if not names:
            return []
        worker_ids = [WorkerId(name.decode("utf-8", "replace")) for name in names]
        values = await _reply(self._client.mget([self._worker_key(each) for each in worker_ids]))
        records = [self._read_record(*pair) for pair in zip(worker_ids, values, strict=True)]
        for name, value in zip(names, values, strict=True):
            if value is None:
                await self._forget_name(name)
        return [record for record in records if record is not None]

    @bounded
    async def epoch(self) -> str:
        """See `WorkerRegistry.epoch`."""
        return await self._epoch()

    @bounded
    async def publish(
        self, worker_id: WorkerId, incarnation: Incarnation, first_sequence: int, events: Sequence[BlockEvent]
    ) -> bool:
        """See `BlockLog.publish`."""
        await reach("redis.write")
        sequence_key = self._life_key("sequence", worker_id, incarnation)
        blocks_key = self._life_key("blocks", worker_id, incarnation)
        async with self._transaction() as pipe:
            await pipe.watch(sequence_key)
            if await _reply(pipe.get(sequence_key)) != b"%d" % (first_sequence - 1):
                return False
            _begin(pipe)
            for sequence, event in enumerate(events, first_sequence):
                match event:
                    case BlocksStored(hashes=hashes) if hashes:
                        pipe.sadd(blocks_key, *hashes)
                    case BlocksRemoved(hashes=hashes) if hashes:
                        pipe.srem(blocks_key, *hashes)
                    case BlocksStored() | BlocksRemoved():
                        pass
                    case _:
                        pipe.unlink(blocks_key)
                self._append(pipe, worker_id, incarnation, sequence, event)
            pipe.set(sequence_key, first_sequence + len(events) - 1, px=self._keep_ms)
            pipe.pexpire(blocks_key, self._keep_ms)
            return await _executed(pipe)

    async def store_snapshot(
        self, worker_id: WorkerId, incarnation: Incarnation, sequence: int, hashes: Sequence[BlockHash]
    ) -> None:
        """See `BlockLog.store_snapshot`. While the slices are written there is no number, hence no snapshot."""
        pack_hashes(hashes)
        await self._empty_life(worker_id, incarnation)
        for at in range(0, len(hashes), _SLICE_HASHES):
            await self._add_to_life(worker_id, incarnation, hashes[at : at + _SLICE_HASHES])
        await self._complete_life(worker_id, incarnation, sequence)

    async def snapshot(self, worker_id: WorkerId, incarnation: Incarnation) -> Snapshot | None:
        """See `BlockLog.snapshot`."""
        life = (worker_id, incarnation)
        (sequence,) = await self.sequences([life])
        if not sequence:
            return None
        hashes: dict[BlockHash, None] = {}
        at, found = await self._scan_life(worker_id, incarnation, 0)
        hashes.update(dict.fromkeys(found))
        while at:
            at, found = await self._scan_life(worker_id, incarnation, at)
            hashes.update(dict.fromkeys(found))
        (after,) = await self.sequences([life])
        return Snapshot(sequence=sequence, hashes=tuple(hashes)) if after >= sequence else None

    @bounded
    async def sequences(self, lives: Sequence[tuple[WorkerId, Incarnation]]) -> list[int]:
        """See `BlockLog.sequences`."""
        if not lives:
            return []
        values = await _reply(self._client.mget([self._life_key("sequence", *life) for life in lives]))
        return [self._read_sequence(value) for value in values]

    async def tail(self, cursor: Cursor | None, wait_s: float) -> LogPage:
        """See `BlockLog.tail`. Waits at most the setting ``tail_wait_s``, however long ``wait_s`` is."""
        wait_s = min(wait_s, self._settings.tail_wait_s)
        return await within(self.call_timeout_s + wait_s, self._read_log(cursor, round(wait_s * 1000)))

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _read_log(self, cursor: Cursor | None, wait_ms: int) -> LogPage:
        events_key = self._prefix + "events"
        epoch = await self._epoch()
        if cursor is None:
            newest = await _reply(self._client.xrevrange(events_key, count=1))
            return LogPage(entries=(), cursor=Cursor(epoch=epoch, position=_position(newest)))
        if epoch != cursor.epoch:
            return LogPage(entries=(), cursor=Cursor(epoch=epoch, position="0-0"), lost=True, at_end=False)
        reply = await _reply(
            self._client.xread({events_key: cursor.position}, count=_PAGE_ENTRIES, block=wait_ms or None)
        )
        found = reply[0][1] if reply else []
        entries = [entry for _, fields in found if (entry := self._read_entry(fields)) is not None]
        position = _position(found[-1:]) if found else cursor.position
        return LogPage(
            entries=tuple(entries),
            cursor=Cursor(epoch=epoch, position=position),
            at_end=len(found) < _PAGE_ENTRIES,
        )

    @bounded
    async def _empty_life(self, worker_id: WorkerId, incarnation: Incarnation) -> None:
        async with self._transaction() as pipe:
            pipe.unlink(self._life_key("sequence", worker_id, incarnation))
            pipe.unlink(self._life_key("blocks", worker_id, incarnation))
            await pipe.execute()

    @bounded
    async def _add_to_life(self, worker_id: WorkerId, incarnation: Incarnation, hashes: Sequence[BlockHash]) -> None:
        blocks_key = self._life_key("blocks", worker_id, incarnation)
        async with self._transaction() as pipe:
            pipe.sadd(blocks_key, *hashes)
            pipe.pexpire(blocks_key, self._keep_ms)
            await pipe.execute()

    @bounded
    async def _complete_life(self, worker_id: WorkerId, incarnation: Incarnation, sequence: int) -> None:
        async with self._transaction() as pipe:
            pipe.set(self._life_key("sequence", worker_id, incarnation), sequence, px=self._keep_ms)
            self._append(pipe, worker_id, incarnation, sequence, SnapshotStored())
            await pipe.execute()

    @bounded
    async def _scan_life(
        self, worker_id: WorkerId, incarnation: Incarnation, at: int
    ) -> tuple[int, tuple[BlockHash, ...]]:
        """Return where to go on, 0 at the end, and some of a life's hashes."""
        reply = await _reply(
            self._client.sscan(self._life_key("blocks", worker_id, incarnation), at, count=_SLICE_HASHES)
        )
        whole = [member for member in reply[1] if len(member) == HASH_BYTES]
        self.ignored_values += len(reply[1]) - len(whole)
        return int(reply[0]), tuple(BlockHash(member) for member in whole)

    def _transaction(self) -> Pipeline:
        return self._client.pipeline(transaction=True)

    def _worker_key(self, worker_id: WorkerId) -> str:
        return f"{self._prefix}worker:{worker_id}"

    def _life_key(self, kind: str, worker_id: WorkerId, incarnation: Incarnation) -> str:
        return f"{self._prefix}{kind}:{worker_id}:{incarnation_text(incarnation)}"

    async def _epoch(self) -> str:
        value = await _reply(self._client.get(self._prefix + "epoch"))
        return "" if value is None else bytes(value).decode("utf-8", "replace")

    async def _forget_name(self, name: bytes) -> None:
        """Drop a name without a registration, unless it registers at this moment."""
        async with self._transaction() as pipe:
            key = self._worker_key(WorkerId(name.decode("utf-8", "replace")))
            await pipe.watch(key)
            if not await _reply(pipe.exists(key)):
                _begin(pipe)
                pipe.srem(self._prefix + "workers", name)
                await _executed(pipe)

    def _append(
        self,
        pipe: Pipeline,
        worker_id: WorkerId,
        incarnation: Incarnation,
        sequence: int,
        event: BlockEvent | SnapshotStored | WorkersChanged,
    ) -> None:
        entry = LogEntry(worker_id=worker_id, incarnation=incarnation, sequence=sequence, event=event)
        fields = cast("dict[Any, Any]", entry_to_fields(entry))
        pipe.xadd(self._prefix + "events", fields, maxlen=self._settings.event_log_entries, approximate=True)

    def _read_record(self, worker_id: WorkerId, value: bytes | None) -> WorkerRecord | None:
        if value is None:
            return None
        try:
            record = record_from_json(value)
        except ValueError:
            record = None
        if record is None or record.worker_id != worker_id:
            self.ignored_values += 1
            return None
        return record

    def _read_entry(self, fields: dict[bytes, bytes]) -> LogEntry | None:
        try:
            return entry_from_fields(fields)
        except ValueError:
            self.ignored_values += 1
            return None

    def _read_sequence(self, value: bytes | None) -> int:
        if value is None:
            return 0
        if not value.isdigit() or len(value) > 16:
            self.ignored_values += 1
            return 0
        return int(value)


def _milliseconds(lease_s: float) -> int:
    return max(1, round(lease_s * 1000))


def _position(entries: Sequence[tuple[bytes, Any]]) -> str:
    return entries[0][0].decode() if entries else "0-0"


async def _reply(pending: Awaitable[Any] | Any) -> Any:
    """Await a command of the client, whose stubs mix the types of its sync and async halves."""
    return await pending


def _begin(pipe: Pipeline) -> None:
    """End the reading half of a watched transaction: commands are queued from here on."""
    pipe.multi()  # type: ignore[no-untyped-call]  # the client has no annotation there


async def _executed(pipe: Pipeline) -> bool:
    """Run a watched transaction; False when what it watched has changed."""
    try:
        await pipe.execute()
    except WatchError:
        return False
    return True
