"""What importer and exporter say to each other during a hand-over, and what is reported of it.

``proto/cluster_rpc/v1/handoff.proto`` is the same on the wire; ``cluster_rpc.handoff_messages`` translates.
"""

from dataclasses import dataclass

from cluster_core.blocks import BlockReference
from cluster_core.identity import Attempt, Incarnation, RequestId, WorkerId


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


ImporterMessage = OpenExport | PullBlocks | AcceptBlocks | RejectBlocks


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOpened:
    """The exporter knows the request and has promised its blocks."""

    lease_s: float
    exporter_transport_address: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class BlocksSealed:
    """These blocks can be pulled. Sent as chunks finish, positions ascending."""

    blocks: tuple[BlockReference, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlocksSent:
    """Blocks of a pull, as they are after the bytes were read: a generation that changed meanwhile voids the block."""

    tag: int
    blocks: tuple[BlockReference, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportFinished:
    """The prefill is complete: every block has been named, the last one perhaps not full."""

    first_token_id: int
    fork_token_ids: tuple[int, ...] = ()
    """The first tokens of the other choices, where the request has several."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportFailed:
    """The exporter will not go on."""

    reason: str


ExporterMessage = ExportOpened | BlocksSealed | BlocksSent | ExportFinished | ExportFailed


@dataclass(frozen=True, slots=True, kw_only=True)
class HandoffReport:
    """What a hand-over moved and took."""

    moved_blocks: int
    kept_blocks: int
    """Blocks that the importer already had."""
    moved_bytes: int
    messages: int
    transfer_s: float
    """How long blocks were under way: sealed, and not yet checked here."""
    exposed_s: float
    """The part of it after the exporter had finished its prefill."""
    transport: str
