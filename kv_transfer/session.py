"""The hand-over as two state machines without I/O: what each side may say when, and what it must do then.

Theory of operation
-------------------
An exporter has computed blocks; an importer wants them in its own pool. They talk by messages over a stream (the
control), and the bytes of the blocks travel by a transport. Neither machine knows of streams, transports, pools or
clocks. A driver (`kv_transfer.exporter`, `kv_transfer.importer`) feeds it **events**: the other side's messages, and
what happened here (`BlockLanded`, `BlocksReady`, ...). The machine answers with **actions** that the driver carries
out in order. This file has the words; `kv_transfer.import_session` and `kv_transfer.export_session` have a machine
each.

Each machine's ``TABLE`` is its whole protocol: (state, event) → the method that takes it. What is not in the table
raises `TransferFailed`. A message that may arrive late, because both sides end at different times, stands in the
table and is dropped.

*Importer.* It opens the export and pulls at once what it lacks, in order and at most ``blocks_in_flight`` blocks at a
time, most of them before they are computed: so nothing is said between the moment when a block is sealed and the one
when its bytes move. A block is valid when its reference has come and its bytes have landed, in any order, and the
digest of the bytes here is the one that was sealed there: it covers content, position and hash, so a block that was
reused, torn, shifted or swapped while it travelled cannot pass. A sealed reference is refused at once when its
position, its hash, its token count or its digest cannot be right; a missing digest is wrong. When the exporter has
finished and every position is valid or was kept, the importer accepts: only then may anybody read the blocks. A single
block that is wrong rejects the hand-over.

*Exporter.* Its prefill and its importer come and go independently, hence four live states. Blocks that are sealed
while nobody listens are named when somebody comes. Blocks that were pulled are sent as soon as they are sealed. The
driver looks at each block's generation before and after: another one ends the export. An importer that leaves does not
end it: it, or another, may come back until the lease is over. Every end gives the lease back, once.

*Fetch.* The same two machines move blocks of a cache to any worker that wants them. The lender's is one whose prefill
ends as soon as the cache was looked up; the borrower's pulls what was sealed and nothing before, since what the lender
lacks will never come, and it is content with what there is: the first blocks of those wanted, without a gap.

::

    importer   OPENING ─▶ PULLING ─▶ COMPLETING ─▶ IMPORTED      (or ─▶ REFUSED)
                       prefill runs  prefill done

    exporter        nobody listens       an importer listens
    prefill runs      COMPUTING   ◀───▶   FEEDING
    prefill done      WAITING     ◀───▶   SERVING ─▶ ACCEPTED    (or ─▶ ENDED)
"""

from dataclasses import dataclass
from typing import TypeAlias

from cluster_core.blocks import BlockReference
from cluster_core.errors import LegFailed
from cluster_core.handoff import (
    AcceptBlocks,
    ExporterMessage,
    ImporterMessage,
    OpenExport,
    PullBlocks,
    RejectBlocks,
)

# Events that are not messages


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockLanded:
    """Importer: the bytes of the block at ``position`` are here, and this is their digest."""

    position: int
    digest: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class BlocksFilled:
    """Exporter: the content of these blocks is final; their digests, empty here, come with `BlocksReady`."""

    blocks: tuple[BlockReference, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlocksReady:
    """Exporter: these blocks are sealed and held for an importer."""

    blocks: tuple[BlockReference, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillFinished:
    """Exporter: no more blocks will come."""

    first_token_id: int
    fork_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillFailed:
    """Exporter: the blocks will never be complete."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ImporterLeft:
    """Exporter: the importer's stream ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseExpired:
    """Exporter: nobody came in time."""


# Actions


@dataclass(frozen=True, slots=True, kw_only=True)
class PostReceives:
    """Importer: post a receive with tag ``tag + i`` into the target of ``positions[i]``."""

    tag: int
    positions: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Say:
    """Importer: send this message."""

    message: ImporterMessage


@dataclass(frozen=True, slots=True, kw_only=True)
class Complete:
    """Importer: the blocks are valid and may be read. The answer need not wait for what is said after this."""

    first_token_id: int
    fork_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class GiveUp:
    """Importer: the hand-over failed; raise ``error``."""

    error: LegFailed


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Exporter: send this message."""

    message: ExporterMessage


@dataclass(frozen=True, slots=True, kw_only=True)
class SendBlocks:
    """Exporter: send each numbered block with tag ``tag + number``, while it is what was sealed."""

    tag: int
    numbered: tuple[tuple[int, BlockReference], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseLease:
    """Exporter: let the blocks go."""


ImporterEvent: TypeAlias = ExporterMessage | BlockLanded
ImporterAction: TypeAlias = PostReceives | Say | Complete | GiveUp
ExporterEvent: TypeAlias = (
    OpenExport
    | PullBlocks
    | AcceptBlocks
    | RejectBlocks
    | BlocksFilled
    | BlocksReady
    | PrefillFinished
    | PrefillFailed
    | ImporterLeft
    | LeaseExpired
)
"""Not `OpenFetch`: the driver makes an export of it."""
ExporterAction: TypeAlias = Answer | SendBlocks | ReleaseLease
