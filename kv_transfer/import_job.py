"""What an importer is asked to do, and what comes of it."""

from dataclasses import dataclass, field
from typing import Protocol

from cluster_core.handoff import ExporterMessage, HandoffReport, ImporterMessage
from cluster_core.identity import Attempt, BlockHash, Incarnation, RequestId, WorkerId


class HandoffChannel(Protocol):
    """The stream to the exporter."""

    async def send(self, message: ImporterMessage) -> None:
        """Send; raises `WorkerLost` when the stream has ended, or another `BatonError` that ended it."""
        ...

    async def receive(self) -> ExporterMessage:
        """Return the next message.

        Raises `WorkerLost` at the stream's end, and another `BatonError` for what ended it or cannot be a message.
        """
        ...


@dataclass(slots=True)
class Remains:
    """What a hand-over that failed or was cancelled has left; the importer fills it in before it raises."""

    verified: frozenset[int] = frozenset()
    """Positions whose targets hold what their exporter sealed. None where anything that it sent was wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportJob:
    """What to fetch, from whom, and into which own blocks."""

    request_id: RequestId
    attempt: Attempt
    exporter: WorkerId
    exporter_incarnation: Incarnation
    targets: tuple[int, ...]
    """Own block index for each position of the whole prompt."""
    kept: frozenset[int]
    """Positions whose target holds the right content already."""
    hashes: tuple[BlockHash, ...]
    """Expected hashes of the full blocks."""
    first: int = 0
    """Positions below it are neither wanted nor kept: they lie before every layer's window, or a fetch has them."""
    lent: bool = False
    """A fetch: the exporter has no export of the request, and lends what its cache holds of the hashes from there on.
    It need not be all of it."""
    binding: int = 0
    """See `OpenExport`."""
    remains: Remains = field(default_factory=Remains)


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """The targets hold the prompt's KV."""

    first_token_id: int
    report: HandoffReport
    fork_token_ids: tuple[int, ...] = ()
    """The first tokens of the other choices, where the request has several."""
    rounded: bool = False
    """The KV is not exactly what was sealed (see `kv_transfer.wire`): no other request may find it."""
