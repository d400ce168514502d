"""Why the last requests went where they went, and how it ended. Bounded; the oldest is forgotten first."""

from collections import OrderedDict
from dataclasses import dataclass, field

from cluster_core.handoff import FetchReport, HandoffReport
from cluster_core.identity import Attempt, RequestId
from router.balancer import Choice
from router.timeline import AttemptTimes, Timeline

RUNNING = "running"
FINISHED = "finished"


@dataclass(slots=True, kw_only=True)
class AttemptRecord:
    """One attempt: the decision, and what became of it."""

    attempt: Attempt
    choice: Choice
    times: AttemptTimes
    rung: str
    """How it came about: a word of `router.recovery`."""
    outcome: str = RUNNING
    handoff: HandoffReport | None = None
    fetch: FetchReport | None = None
    """What the worker that read the prompt fetched of it from another worker's cache."""
    kept_blocks: int = 0
    """Full blocks that the decode worker kept of a hand-over that failed in it."""
    link: str = ""
    """Where its blocks went from and to, and over what."""


@dataclass(slots=True)
class PlacementRecord:
    """A request's attempts, the first one first."""

    request_id: RequestId
    timeline: Timeline
    attempts: list[AttemptRecord] = field(default_factory=list)


class PlacementHistory:
    """The last ``kept`` requests by id."""

    def __init__(self, kept: int) -> None:
        self.late_tokens = 0
        """Tokens of all requests that were read from legs whose attempt had failed, or which others had replaced: they
        are dropped. Most such tokens never get here: a leg's call is cancelled, and what it carries ends with it."""
        self._kept = kept
        self._records: OrderedDict[RequestId, PlacementRecord] = OrderedDict()

    def begin(self, request_id: RequestId, timeline: Timeline) -> PlacementRecord:
        """Start a request's record. A record of an earlier request of the same id is replaced."""
        record = PlacementRecord(request_id, timeline)
        self._records.pop(request_id, None)
        self._records[request_id] = record
        while len(self._records) > self._kept:
            self._records.popitem(last=False)
        return record

    def find(self, request_id: RequestId) -> PlacementRecord | None:
        """Return the record, if it is still kept."""
        return self._records.get(request_id)

    def __len__(self) -> int:
        return len(self._records)
