"""The rule by which a log of numbered events becomes an index: pure, so that it can be tried in every order.

A life is *in step* when every event up to a number is in the index, else *behind* until a snapshot arrives. Events of a
life that is behind are passed over: its snapshot will contain them or they come after it.
"""

from collections.abc import Mapping
from typing import assert_never

from block_directory.directory import LogEntry, Snapshot, SnapshotStored, WorkersChanged
from block_directory.index import PrefixIndex
from cluster_core.blocks import BlocksRemoved, BlocksStored, CacheCleared
from cluster_core.identity import BlockHash, Incarnation, WorkerId


class Replica:
    """An index and, for each life that it follows, the number of the last event in it."""

    def __init__(self, index: PrefixIndex) -> None:
        """Feed ``index``."""
        self._index = index
        self._last: dict[Incarnation, int | None] = {}

    def admit(self, worker_id: WorkerId, incarnation: Incarnation) -> None:
        """Follow a life from now on; it is behind until its first snapshot."""
        if incarnation not in self._last:
            self._last[incarnation] = None
            self._index.begin(worker_id, incarnation)

    def drop(self, incarnation: Incarnation) -> None:
        """Follow a life no longer, and forget its blocks."""
        self._last.pop(incarnation, None)
        self._index.drop(incarnation)

    def follows(self, incarnation: Incarnation) -> bool:
        """Tell whether a life was admitted and not dropped."""
        return incarnation in self._last

    def apply(self, entry: LogEntry) -> bool:
        """Take in an entry. Returns False when a snapshot of the entry's life is needed (once: then it is behind)."""
        last = self._last.get(entry.incarnation)
        match entry.event:
            case WorkersChanged():
                return True
            case SnapshotStored():
                if entry.incarnation not in self._last or (last is not None and entry.sequence <= last):
                    return True
                self._last[entry.incarnation] = None
                return False
            case BlocksStored() | BlocksRemoved() | CacheCleared():
                if last is None or entry.sequence <= last:
                    return True
                if entry.sequence != last + 1:
                    self._last[entry.incarnation] = None
                    return False
                self._last[entry.incarnation] = entry.sequence
                self._change(entry)
                return True
            case never:
                assert_never(never)

    def lagging(self, sequences: Mapping[Incarnation, int]) -> list[Incarnation]:
        """Given the directory's last numbers, return the followed lives that have missed something."""
        return [
            incarnation
            for incarnation, sequence in sequences.items()
            if sequence and incarnation in self._last and (self._last[incarnation] or 0) < sequence
        ]

    def begin_restore(self, worker_id: WorkerId, incarnation: Incarnation) -> None:
        """Empty a life, to be filled from a snapshot with `restore_some` and `end_restore`."""
        if incarnation in self._last:
            self._last[incarnation] = None
            self._index.cleared(worker_id, incarnation)

    def restore_some(self, worker_id: WorkerId, incarnation: Incarnation, hashes: tuple[BlockHash, ...]) -> None:
        """Take in a slice of a snapshot."""
        if incarnation in self._last:
            self._index.stored(worker_id, incarnation, hashes)

    def end_restore(self, incarnation: Incarnation, sequence: int) -> None:
        """Be in step from the snapshot's number on."""
        if incarnation in self._last:
            self._last[incarnation] = sequence

    def restore(self, worker_id: WorkerId, incarnation: Incarnation, snapshot: Snapshot) -> None:
        """Replace what is known of a life by a snapshot, in one go."""
        self.begin_restore(worker_id, incarnation)
        self.restore_some(worker_id, incarnation, snapshot.hashes)
        self.end_restore(incarnation, snapshot.sequence)

    def _change(self, entry: LogEntry) -> None:
        worker_id, incarnation = entry.worker_id, entry.incarnation
        match entry.event:
            case BlocksStored(hashes=hashes):
                self._index.stored(worker_id, incarnation, hashes)
            case BlocksRemoved(hashes=hashes):
                self._index.removed(worker_id, incarnation, hashes)
            case CacheCleared():
                self._index.cleared(worker_id, incarnation)
