"""What importer and exporter say to each other during a hand-over, and what is reported of it.

``proto/cluster_rpc/v1/handoff.proto`` is the same on the wire; ``cluster_rpc.handoff_messages`` translates.
"""

from dataclasses import dataclass, replace

from cluster_core.blocks import BlockReference
from cluster_core.identity import Attempt, BlockHash, Incarnation, RequestId, WorkerId

EXACT = "exact"
"""The wire format of blocks that arrive bit by bit as they were sealed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WireOffer:
    """How an importer would take blocks made smaller by rounding, and what that saves it."""

    format: str
    gain_s_per_byte: float
    """For each byte of an exact block: less to wait for, less the time that expanding takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenExport:
    """Names the export; may arrive before the prefill does."""

    request_id: RequestId
    attempt: Attempt
    exporter_incarnation: Incarnation
    importer: WorkerId
    importer_incarnation: Incarnation
    importer_transport_address: bytes
    layout: str
    """`KvLayout.describe` of the importer; the exporter refuses another one than its own."""
    binding: int = 0
    """How many decode workers were given the attempt before this one: the highest that comes is served."""
    wire: WireOffer | None = None
    """None: blocks are to come as they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenFetch:
    """Asks a worker to lend blocks of its cache: a run of one hash chain, as much of it as is there."""

    opening: OpenExport
    """Who asks, and for which request; the lender need not know it."""
    first: int
    """The position of the first block in its sequence."""
    hashes: tuple[BlockHash, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PullBlocks:
    """Ask for blocks: the one at ``positions[i]`` is to be sent with tag ``tag + i`` as soon as it is sealed."""

    tag: int
    positions: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptBlocks:
    """Every block is checked; the exporter may let them go."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectBlocks:
    """Blocks that did not pass their checks."""

    reason: str
    positions: tuple[int, ...]


Opening = OpenExport | OpenFetch
"""How an importer begins."""
ImporterMessage = Opening | PullBlocks | AcceptBlocks | RejectBlocks


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOpened:
    """The exporter knows the request and has promised its blocks."""

    lease_s: float
    exporter_transport_address: bytes
    wire_format: str = ""
    """The format that was offered, if blocks come packed in it."""
    waited_s: float = 0.0
    """From the coming of the importer's opening to this answer. Later messages count from the answer: two workers'
    clocks do not agree on moments."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportFinished:
    """The prefill is complete: every block has been named, the last one perhaps not full."""

    first_token_id: int
    fork_token_ids: tuple[int, ...] = ()
    """The first tokens of the other choices, where the request has several."""
    ended_s: float = 0.0
    """From `ExportOpened` to the end of the prefill's last step; negative: it was before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlocksSealed:
    """These blocks can be pulled. Sent as chunks finish, positions ascending."""

    blocks: tuple[BlockReference, ...]
    finished: ExportFinished | None = None
    """With the last blocks, on the wire: what is said next, in the same message."""
    filled_s: float = 0.0
    """From `ExportOpened` to the moment when the last of these blocks was filled; negative: it was before."""
    pulled_s: float | None = None
    """From `ExportOpened` to the moment when the first `PullBlocks` was heard; None: none has been."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportFailed:
    """The exporter will not go on."""

    reason: str


ExporterMessage = ExportOpened | BlocksSealed | ExportFinished | ExportFailed


def in_turn(message: ExporterMessage) -> tuple[ExporterMessage, ...]:
    """Return what a message says, one thing after the other."""
    if isinstance(message, BlocksSealed) and message.finished is not None:
        return replace(message, finished=None), message.finished
    return (message,)


SURE_SHARE = 0.25
"""A rate is told where its time is off by so much of it at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HandoffReport:
    """What a hand-over moved and took. Its times are made of two workers' clocks (see `kv_transfer.import_times`)."""

    moved_blocks: int
    kept_blocks: int
    """Blocks that the importer already had."""
    moved_bytes: int
    messages: int
    """Lots in which the blocks came."""
    transfer_s: float
    """How long some were under way: filled there and asked for, and not yet checked here."""
    exposed_s: float
    """From the end of the prefill's last step there until all blocks could be read here, whatever it was spent on."""
    transport: str
    exact_bytes: int
    """Bytes of the moved blocks where they lie: more than ``moved_bytes`` where they were rounded on their way."""
    wire_format: str = EXACT
    """How they came: `EXACT`, or the format that they were rounded to."""
    overlapped_s: float = 0.0
    """The part of ``transfer_s`` before the end of the prefill's last step: what the prefill hid."""
    unsure_s: float = 0.0
    """How far ``transfer_s`` may be off."""

    @property
    def rated_s(self) -> float:
        """The time that a rate may be told of: ``transfer_s``, but 0 where that may be off by more than a quarter."""
        return self.transfer_s if self.unsure_s <= SURE_SHARE * self.transfer_s else 0.0

    @property
    def bytes_per_s(self) -> float:
        """How fast the bytes came while blocks were under way; 0 where nothing moved, or too quickly to tell."""
        return self.moved_bytes / self.rated_s if self.rated_s > 0 else 0.0

    @property
    def wire_share(self) -> float:
        """Bytes that travelled for each byte of the blocks; 1 where nothing moved."""
        return self.moved_bytes / self.exact_bytes if self.exact_bytes else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchSource:
    """A worker whose cache is believed to hold the beginning of a prompt, to be fetched where it is read."""

    worker_id: WorkerId
    incarnation: Incarnation
    address: str
    blocks: int
    """How many leading blocks of the prompt it should have."""
    patience_s: float
    """How long the fetch may take: as long as computing instead would, so that a bad guess costs at most twice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchJob:
    """Which blocks to fetch, for whom, from whom, and into which own blocks."""

    request_id: RequestId
    attempt: Attempt
    source: FetchSource
    first: int
    """The position of the first block that is wanted."""
    targets: tuple[int, ...]
    """Own block index for the block at ``first`` and for each after it."""
    hashes: tuple[BlockHash, ...]
    """Of the whole chain, from position 0 to the last block that is wanted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchReport:
    """What came of a fetch. One that brought less than was asked for has failed nobody: the rest is computed."""

    lender: WorkerId
    asked_blocks: int
    moved_blocks: int
    """Those of them that came, from the first on without a gap, and passed every check."""
    moved_bytes: int
    transfer_s: float
    """How long blocks were under way."""
    elapsed_s: float
    """From the decision to fetch until the end."""
    failure: str = ""
    """Why it ended early; empty when the lender gave what it had."""
