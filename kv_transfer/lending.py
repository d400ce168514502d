"""What a loan offers: what a worker's cache has of a run of blocks (see `kv_transfer.exporter`)."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

from cluster_core.handoff import OpenFetch
from cluster_core.identity import BlockHash
from kv_transfer.export_memory import ExportMemory, SealedBlock

FindRun: TypeAlias = Callable[[Sequence[BlockHash]], Sequence[int]]
"""Says where in the pool the first of these blocks are that the cache has, up to one that it lacks."""

LENT_AT_ONCE_BYTES = 8 << 20
"""Bytes whose digests are computed in one turn of the event loop: a millisecond or less."""


class Offer(Protocol):
    """The part of an export that is needed here."""

    def seal(self, blocks: Sequence[SealedBlock]) -> None:
        """Offer blocks."""
        ...

    def finish(self, first_token_id: int, fork_token_ids: tuple[int, ...] = ()) -> None:
        """Say that there are no more."""
        ...


def lend_nothing(_hashes: Sequence[BlockHash]) -> Sequence[int]:
    """Be the `FindRun` of a worker without a cache."""
    return ()


async def seal_run(export: Offer, wanted: OpenFetch, blocks: ExportMemory, find_run: FindRun) -> None:
    """Seal what the cache has, a few blocks at a time: digests take time that others need."""
    size = blocks.layout.block_size_tokens
    at_once = max(1, LENT_AT_ONCE_BYTES // blocks.memory.block_bytes)
    for start in range(0, len(wanted.hashes), at_once):
        hashes = wanted.hashes[start : start + at_once]
        found = list(zip(find_run(hashes), hashes, strict=False))
        first = wanted.first + start
        export.seal(
            [
                SealedBlock(position=position, index=index, hash=block_hash, tokens=size)
                for position, (index, block_hash) in enumerate(found, start=first)
            ]
        )
        if len(found) < len(hashes):
            break
        await asyncio.sleep(0)
    export.finish(0)
