"""A `LogEntry` as the flat fields of a stream entry. What another process wrote is read with suspicion."""

import re
from collections.abc import Mapping, Sequence
from typing import assert_never

from block_directory.directory import LogEntry, SnapshotStored, WorkersChanged
from block_directory.records import incarnation_from, incarnation_text, worker_id_from
from cluster_core.blocks import BlockEvent, BlocksRemoved, BlocksStored, CacheCleared
from cluster_core.hash_chain import HASH_BYTES
from cluster_core.identity import BlockHash

_SEQUENCE = re.compile(rb"[0-9]{1,16}")
_PLAIN_KINDS: dict[bytes, CacheCleared | SnapshotStored | WorkersChanged] = {
    b"cleared": CacheCleared(),
    b"snapshot": SnapshotStored(),
    b"workers": WorkersChanged(),
}


def entry_to_fields(entry: LogEntry) -> dict[bytes, bytes]:
    """Write an entry."""
    kind, hashes = _kind_and_hashes(entry.event)
    return {
        b"worker": entry.worker_id.encode(),
        b"life": incarnation_text(entry.incarnation).encode(),
        b"sequence": b"%d" % entry.sequence,
        b"kind": kind,
        b"hashes": pack_hashes(hashes),
    }


def entry_from_fields(fields: Mapping[bytes, bytes]) -> LogEntry:
    """Read an entry. Raises ValueError for anything that `entry_to_fields` would not have written."""
    try:
        kind, sequence, packed = fields[b"kind"], fields[b"sequence"], fields[b"hashes"]
        worker_id = worker_id_from(fields[b"worker"].decode("ascii"))
        incarnation = incarnation_from(fields[b"life"].decode("ascii"))
    except KeyError as error:
        message = f"an entry without {error}"
        raise ValueError(message) from error
    if not _SEQUENCE.fullmatch(sequence):
        message = f"sequence: {sequence[:40]!r}"
        raise ValueError(message)
    event: BlockEvent | SnapshotStored | WorkersChanged
    match kind:
        case b"stored":
            event = BlocksStored(hashes=unpack_hashes(packed))
        case b"removed":
            event = BlocksRemoved(hashes=unpack_hashes(packed))
        case _ if kind in _PLAIN_KINDS:
            event = _PLAIN_KINDS[kind]
        case _:
            message = f"kind: {kind[:40]!r}"
            raise ValueError(message)
    return LogEntry(worker_id=worker_id, incarnation=incarnation, sequence=int(sequence), event=event)


def pack_hashes(hashes: Sequence[BlockHash]) -> bytes:
    """Write hashes one after another. Raises ValueError when one has the wrong length."""
    if any(len(each) != HASH_BYTES for each in hashes):
        message = f"a block hash has {HASH_BYTES} bytes"
        raise ValueError(message)
    return b"".join(hashes)


def unpack_hashes(packed: bytes) -> tuple[BlockHash, ...]:
    """Read `pack_hashes`. Raises ValueError when the length does not fit."""
    if len(packed) % HASH_BYTES:
        message = f"hashes: {len(packed)} bytes"
        raise ValueError(message)
    return tuple(BlockHash(packed[at : at + HASH_BYTES]) for at in range(0, len(packed), HASH_BYTES))


def _kind_and_hashes(event: BlockEvent | SnapshotStored | WorkersChanged) -> tuple[bytes, tuple[BlockHash, ...]]:
    match event:
        case BlocksStored(hashes=hashes):
            return b"stored", hashes
        case BlocksRemoved(hashes=hashes):
            return b"removed", hashes
        case CacheCleared():
            return b"cleared", ()
        case SnapshotStored():
            return b"snapshot", ()
        case WorkersChanged():
            return b"workers", ()
        case never:
            assert_never(never)
