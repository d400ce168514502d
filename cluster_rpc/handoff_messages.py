"""The hand-over's messages, between `cluster_core.handoff` and ``handoff.proto``.

``..._from_proto`` trusts nothing: sizes, counts and uniqueness are checked, and `InvalidField` names what is wrong.
Whether a position or an index exists is for `kv_transfer` to say, which knows the pool.
"""

from collections.abc import Sequence
from typing import assert_never

from cluster_core.blocks import BlockReference
from cluster_core.handoff import (
    AcceptBlocks,
    BlocksSealed,
    ExporterMessage,
    ExportFailed,
    ExportFinished,
    ExportOpened,
    ImporterMessage,
    OpenExport,
    OpenFetch,
    PullBlocks,
    RejectBlocks,
    WireOffer,
)
from cluster_core.hash_chain import HASH_BYTES
from cluster_core.identity import BlockHash
from cluster_rpc import field_checks as check
from cluster_rpc.errors import clip
from cluster_rpc.v1 import handoff_pb2 as pb

MAX_ADDRESS_BYTES = 64 * 1024
MAX_LAYOUT_BYTES = 512
MAX_LEASE_S = 3600.0
MAX_FORMAT_BYTES = 32


def importer_to_proto(message: ImporterMessage) -> pb.ImporterMessage:
    """Put an importer's message on the wire."""
    match message:
        case OpenExport():
            return pb.ImporterMessage(open=_open_to_proto(message))
        case OpenFetch():
            opening = _open_to_proto(message.opening)
            fetch = pb.OpenFetch(opening=opening, first_position=message.first, hashes=message.hashes)
            return pb.ImporterMessage(fetch=fetch)
        case PullBlocks():
            return pb.ImporterMessage(pull=pb.PullBlocks(tag=message.tag, positions=message.positions))
        case AcceptBlocks():
            return pb.ImporterMessage(accept=pb.AcceptBlocks())
        case RejectBlocks():
            return pb.ImporterMessage(reject=pb.RejectBlocks(reason=clip(message.reason), positions=message.positions))
        case _:
            assert_never(message)


def importer_from_proto(message: pb.ImporterMessage) -> ImporterMessage:
    """Read an importer's message. Raises `InvalidField`."""
    match message.WhichOneof("message"):
        case "open":
            return _open(message.open)
        case "fetch":
            return _fetch(message.fetch)
        case "pull":
            wanted = check.positions(message.pull.positions, "pull.positions")
            return PullBlocks(tag=_tag(message.pull.tag, len(wanted), "pull.tag"), positions=wanted)
        case "accept":
            return AcceptBlocks()
        case "reject":
            check.at_most(len(message.reject.reason), check.MAX_REASON_BYTES, "reject.reason")
            refused = check.positions(message.reject.positions, "reject.positions")
            return RejectBlocks(reason=message.reject.reason, positions=refused)
        case _:
            return check.refuse("message", "must be one of open, fetch, pull, accept, reject")


def exporter_to_proto(message: ExporterMessage) -> pb.ExporterMessage:
    """Put an exporter's message on the wire."""
    match message:
        case ExportOpened():
            opened = pb.ExportOpened(
                lease_s=message.lease_s,
                exporter_transport_address=message.exporter_transport_address,
                wire_format=message.wire_format,
                waited_s=message.waited_s,
            )
            return pb.ExporterMessage(opened=opened)
        case BlocksSealed():
            finished = None if message.finished is None else _finished_to_proto(message.finished)
            blocks = map(_reference_to_proto, message.blocks)
            sealed = pb.BlocksSealed(
                blocks=blocks, finished=finished, filled_s=message.filled_s, pulled_s=message.pulled_s
            )
            return pb.ExporterMessage(sealed=sealed)
        case ExportFinished():
            return pb.ExporterMessage(finished=_finished_to_proto(message))
        case ExportFailed():
            return pb.ExporterMessage(failed=pb.ExportFailed(reason=clip(message.reason)))
        case _:
            assert_never(message)


def exporter_from_proto(message: pb.ExporterMessage) -> ExporterMessage:
    """Read an exporter's message. Raises `InvalidField`."""
    match message.WhichOneof("message"):
        case "opened":
            return _opened(message.opened)
        case "sealed":
            sealed = message.sealed
            finished = _finished(sealed.finished, "sealed.finished") if sealed.HasField("finished") else None
            pulled_s = check.signed_seconds(sealed.pulled_s, "sealed.pulled_s") if sealed.HasField("pulled_s") else None
            return BlocksSealed(
                blocks=_references(sealed.blocks, "sealed.blocks"),
                finished=finished,
                filled_s=check.signed_seconds(sealed.filled_s, "sealed.filled_s"),
                pulled_s=pulled_s,
            )
        case "finished":
            return _finished(message.finished, "finished")
        case "failed":
            check.at_most(len(message.failed.reason), check.MAX_REASON_BYTES, "failed.reason")
            return ExportFailed(reason=message.failed.reason)
        case _:
            return check.refuse("message", "must be one of opened, sealed, finished, failed")


def _finished_to_proto(message: ExportFinished) -> pb.ExportFinished:
    return pb.ExportFinished(
        first_token_id=message.first_token_id, fork_token_ids=message.fork_token_ids, ended_s=message.ended_s
    )


def _finished(message: pb.ExportFinished, field: str) -> ExportFinished:
    check.at_most(len(message.fork_token_ids), check.MAX_CHOICES, f"{field}.fork_token_ids")
    return ExportFinished(
        first_token_id=message.first_token_id,
        fork_token_ids=tuple(message.fork_token_ids),
        ended_s=check.signed_seconds(message.ended_s, f"{field}.ended_s"),
    )


def _open(message: pb.OpenExport) -> OpenExport:
    check.at_most(message.binding, check.MAX_BINDINGS, "open.binding")
    check.at_most(len(message.importer_transport_address), MAX_ADDRESS_BYTES, "open.importer_transport_address")
    check.at_most(len(message.layout), MAX_LAYOUT_BYTES, "open.layout")
    return OpenExport(
        request_id=check.order_id(message.request_id, "open.request_id"),
        attempt=check.attempt(message.attempt),
        exporter_incarnation=check.incarnation(message.exporter_incarnation, "open.exporter_incarnation"),
        importer=check.worker_id(message.importer, "open.importer"),
        importer_incarnation=check.incarnation(message.importer_incarnation, "open.importer_incarnation"),
        importer_transport_address=message.importer_transport_address,
        layout=message.layout,
        binding=message.binding,
        wire=_wire(message.wire) if message.HasField("wire") else None,
    )


def _wire_to_proto(offer: WireOffer) -> pb.WireOffer:
    return pb.WireOffer(format=offer.format, gain_s_per_byte=offer.gain_s_per_byte)


def _wire(offer: pb.WireOffer) -> WireOffer:
    check.at_most(len(offer.format), MAX_FORMAT_BYTES, "open.wire.format")
    return WireOffer(
        format=offer.format, gain_s_per_byte=check.seconds(offer.gain_s_per_byte, "open.wire.gain_s_per_byte")
    )


def _open_to_proto(message: OpenExport) -> pb.OpenExport:
    return pb.OpenExport(
        request_id=message.request_id,
        attempt=message.attempt,
        exporter_incarnation=message.exporter_incarnation,
        importer=message.importer,
        importer_incarnation=message.importer_incarnation,
        importer_transport_address=message.importer_transport_address,
        layout=message.layout,
        binding=message.binding,
        wire=None if message.wire is None else _wire_to_proto(message.wire),
    )


def _fetch(message: pb.OpenFetch) -> OpenFetch:
    check.at_most(message.first_position + len(message.hashes), check.MAX_BLOCKS, "fetch.hashes")
    check.require(len(message.hashes) > 0, "fetch.hashes", "must not be empty")
    return OpenFetch(
        opening=_open(message.opening),
        first=message.first_position,
        hashes=tuple(BlockHash(check.exact_bytes(each, HASH_BYTES, "fetch.hashes")) for each in message.hashes),
    )


def _opened(message: pb.ExportOpened) -> ExportOpened:
    check.at_most(len(message.exporter_transport_address), MAX_ADDRESS_BYTES, "opened.exporter_transport_address")
    lease_s = check.seconds(message.lease_s, "opened.lease_s")
    if not 0 < lease_s <= MAX_LEASE_S:
        check.refuse("opened.lease_s", f"must be above 0 and at most {MAX_LEASE_S:.0f} seconds")
    check.at_most(len(message.wire_format), MAX_FORMAT_BYTES, "opened.wire_format")
    return ExportOpened(
        lease_s=lease_s,
        exporter_transport_address=message.exporter_transport_address,
        wire_format=message.wire_format,
        waited_s=check.signed_seconds(check.seconds(message.waited_s, "opened.waited_s"), "opened.waited_s"),
    )


def _tag(tag: int, count: int, field: str) -> int:
    """Check that ``tag`` to ``tag + count - 1`` are 64-bit numbers: each block has its own tag."""
    if tag + count > 1 << 64:
        check.refuse(field, "must leave room for one 64-bit tag a block")
    return tag


def _reference_to_proto(block: BlockReference) -> pb.BlockReference:
    return pb.BlockReference(
        position=block.position,
        index=block.index,
        generation=block.generation,
        hash=block.hash or b"",
        digest=block.digest,
        tokens=block.tokens,
    )


def _references(blocks: Sequence[pb.BlockReference], field: str) -> tuple[BlockReference, ...]:
    check.at_most(len(blocks), check.MAX_BLOCKS, field)
    check.positions([block.position for block in blocks], f"{field}.position")
    return tuple(_reference(block, f"{field}[{place}]") for place, block in enumerate(blocks))


def _reference(block: pb.BlockReference, field: str) -> BlockReference:
    block_hash = check.exact_bytes(block.hash, HASH_BYTES, f"{field}.hash") if block.hash else None
    if not 0 < block.tokens <= check.MAX_TOKENS:
        check.refuse(f"{field}.tokens", f"must be 1 to {check.MAX_TOKENS}")
    return BlockReference(
        position=block.position,
        index=block.index,
        generation=block.generation,
        hash=BlockHash(block_hash) if block_hash else None,
        digest=check.exact_bytes(block.digest, check.DIGEST_BYTES, f"{field}.digest"),
        tokens=block.tokens,
    )
