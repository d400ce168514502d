"""What the router gave each worker and the worker's last report cannot know yet.

A report is up to a watch period old; a burst of requests within one period would otherwise all go to the worker that
looked idle in it. An assignment counts until the first report that was surely made after the request arrived. What
ends before the next report is taken off again.
"""

from collections.abc import Callable
from dataclasses import dataclass

from cluster_core.identity import Attempt, RequestId, WorkerId
from router.cost_model import NOTHING_ASSIGNED, Assigned

ARRIVAL_S = 0.05
"""A report that comes so long after an assignment was made knows of it."""


@dataclass(slots=True)
class _Entry:
    prefill_tokens: int
    streams: int
    blocks: int
    assigned_at: float
    reported: bool = False


@dataclass(slots=True)
class _Sums:
    prefill_tokens: int = 0
    streams: int = 0
    blocks: int = 0

    def add(self, entry: _Entry, sign: int) -> None:
        self.prefill_tokens += sign * entry.prefill_tokens
        self.streams += sign * entry.streams
        self.blocks += sign * entry.blocks


class Ledger:
    """Assignments by worker. All calls come from the event loop."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._entries: dict[WorkerId, dict[tuple[RequestId, Attempt], _Entry]] = {}
        self._sums: dict[WorkerId, _Sums] = {}

    def assign(self, worker: WorkerId, key: tuple[RequestId, Attempt], given: Assigned) -> None:
        """Note that ``worker`` is about to get this much work."""
        entry = _Entry(given.prefill_tokens, given.streams, given.blocks, self._clock())
        self._entries.setdefault(worker, {})[key] = entry
        self._sums.setdefault(worker, _Sums()).add(entry, 1)

    def prefilled(self, worker: WorkerId, key: tuple[RequestId, Attempt]) -> None:
        """Note that the prompt has been read: its tokens are no longer waited for."""
        entry = self._entries.get(worker, {}).get(key)
        if entry is not None and entry.prefill_tokens:
            self._sums[worker].prefill_tokens -= entry.prefill_tokens
            entry.prefill_tokens = 0

    def end(self, worker: WorkerId, key: tuple[RequestId, Attempt]) -> None:
        """Note that the worker has nothing more to do for this attempt. Unknown keys are ignored."""
        entry = self._entries.get(worker, {}).pop(key, None)
        if entry is not None:
            self._sums[worker].add(entry, -1)

    def reported(self, worker: WorkerId) -> None:
        """Take a report in: it covers what arrived before it and what ended before it."""
        entries = self._entries.get(worker)
        if entries is None:
            return
        covered_until = self._clock() - ARRIVAL_S
        sums = _Sums()
        for entry in entries.values():
            entry.reported = entry.reported or entry.assigned_at <= covered_until
            if not entry.reported:
                sums.add(entry, 1)
        self._sums[worker] = sums

    def assigned(self, worker: WorkerId) -> Assigned:
        """Return what must be added to the worker's last report; parts may be negative."""
        sums = self._sums.get(worker)
        if sums is None:
            return NOTHING_ASSIGNED
        return Assigned(prefill_tokens=sums.prefill_tokens, streams=sums.streams, blocks=sums.blocks)

    def forget(self, worker: WorkerId) -> None:
        """Drop everything about a worker's life that is over."""
        self._entries.pop(worker, None)
        self._sums.pop(worker, None)

    def __len__(self) -> int:
        return sum(len(entries) for entries in self._entries.values())
