"""A directory whose server can fall silent, lose answers, tell twice and out of order, lose everything, and go back."""

from collections.abc import Sequence

from block_directory.directory import Cursor, LogPage, Snapshot
from block_directory.memory_directory import MemoryDirectory
from cluster_core.blocks import BlockEvent
from cluster_core.errors import PartUnavailable
from cluster_core.identity import BlockHash, Incarnation, WorkerId
from cluster_core.workers import WorkerRecord


class FaultyDirectory(MemoryDirectory):
    """Each flag is one fault, on until it is switched off."""

    silent = False
    """No call is carried out."""
    deaf_after = False
    """Calls that write are carried out, but their answers are lost."""
    doubled = False
    """Followers are told every entry twice."""
    shuffled = False
    """Followers are told each page's entries the last first."""
    without_snapshots = False
    """Snapshots cannot be read or stored; the rest works."""

    cut_off: WorkerId | None = None
    """This worker's own calls are not carried out."""

    def heal(self) -> None:
        """End every fault."""
        self.cut_off = None
        self.silent = self.deaf_after = self.doubled = self.shuffled = self.without_snapshots = False

    async def register(self, record: WorkerRecord, lease_s: float, *, replace: bool = True) -> bool:
        self._refuse_if(self.silent or record.worker_id == self.cut_off)
        done = await super().register(record, lease_s, replace=replace)
        self._refuse_if(self.deaf_after)
        return done

    async def renew(self, worker_id: WorkerId, incarnation: Incarnation, lease_s: float) -> bool:
        self._refuse_if(self.silent or worker_id == self.cut_off)
        done = await super().renew(worker_id, incarnation, lease_s)
        self._refuse_if(self.deaf_after)
        return done

    async def unregister(self, worker_id: WorkerId, incarnation: Incarnation) -> None:
        self._refuse_if(self.silent or worker_id == self.cut_off)
        await super().unregister(worker_id, incarnation)
        self._refuse_if(self.deaf_after)

    async def workers(self) -> list[WorkerRecord]:
        self._refuse_if(self.silent)
        return await super().workers()

    async def epoch(self) -> str:
        self._refuse_if(self.silent)
        return await super().epoch()

    async def publish(
        self, worker_id: WorkerId, incarnation: Incarnation, first_sequence: int, events: Sequence[BlockEvent]
    ) -> bool:
        self._refuse_if(self.silent or worker_id == self.cut_off)
        done = await super().publish(worker_id, incarnation, first_sequence, events)
        self._refuse_if(self.deaf_after)
        return done

    async def store_snapshot(
        self, worker_id: WorkerId, incarnation: Incarnation, sequence: int, hashes: Sequence[BlockHash]
    ) -> None:
        self._refuse_if(self.silent or self.without_snapshots or worker_id == self.cut_off)
        await super().store_snapshot(worker_id, incarnation, sequence, hashes)
        self._refuse_if(self.deaf_after)

    async def snapshot(self, worker_id: WorkerId, incarnation: Incarnation) -> Snapshot | None:
        self._refuse_if(self.silent or self.without_snapshots)
        return await super().snapshot(worker_id, incarnation)

    async def sequences(self, lives: Sequence[tuple[WorkerId, Incarnation]]) -> list[int]:
        self._refuse_if(self.silent)
        return await super().sequences(lives)

    async def tail(self, cursor: Cursor | None, wait_s: float) -> LogPage:
        self._refuse_if(self.silent)
        page = await super().tail(cursor, wait_s)
        self._refuse_if(self.silent)
        entries = page.entries
        if self.doubled:
            entries = tuple(entry for entry in entries for _ in range(2))
        if self.shuffled:
            entries = entries[::-1]
        return LogPage(entries=entries, cursor=page.cursor, lost=page.lost, at_end=page.at_end)

    def _refuse_if(self, fault: bool) -> None:
        if fault:
            message = "the server does not answer"
            raise PartUnavailable(message)
