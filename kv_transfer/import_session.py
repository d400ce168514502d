"""The importer's machine: see the theory of operation in `kv_transfer.session`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar

from cluster_core.blocks import BlockReference
from cluster_core.errors import ExportGone, TransferFailed
from cluster_core.handoff import (
    AcceptBlocks,
    BlocksSealed,
    ExportFailed,
    ExportFinished,
    ExportOpened,
    PullBlocks,
    RejectBlocks,
)
from cluster_core.identity import BlockHash
from kv_transfer.digest import DIGEST_BYTES
from kv_transfer.session import BlockLanded, Complete, GiveUp, ImporterAction, ImporterEvent, PostReceives, Say


class ImporterState(Enum):
    """Where an importer is."""

    OPENING = "opening"
    PULLING = "pulling"
    COMPLETING = "completing"
    IMPORTED = "imported"
    REFUSED = "refused"


class _Refusal(Exception):
    """What the exporter said about these positions cannot be right."""

    def __init__(self, reason: str, *positions: int) -> None:
        super().__init__(reason)
        self.reason = reason
        self.positions = positions


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """What an importer knows of the blocks before it sees them."""

    blocks: int
    kept: frozenset[int]
    """Positions that need not come: their content is here, or nothing will read it."""
    hashes: tuple[BlockHash, ...]
    block_size_tokens: int
    blocks_in_flight: int
    lent: bool = False
    """A fetch: what comes is what the exporter has, from the first position that is not kept on without a gap."""


class ImporterSession:
    """One hand-over as its importer sees it. ``new_tag`` draws the first tag of a pull (see `PullBlocks`)."""

    def __init__(self, expected: Expectation, new_tag: Callable[[], int]) -> None:
        self.state = ImporterState.OPENING
        self._expected = expected
        self._new_tag = new_tag
        lacking = () if expected.lent else (each for each in range(expected.blocks) if each not in expected.kept)
        self._wanted = list(lacking)
        self._needed = frozenset(self._wanted)
        self._sealed: dict[int, BlockReference] = {}
        self._landed: dict[int, bytes] = {}
        """Digests of what has landed."""
        self._distrusted = False
        self._in_flight = 0
        self._first_token_ids: tuple[int, tuple[int, ...]] = (0, ())

    def handle(self, event: ImporterEvent) -> list[ImporterAction]:
        """Take one event. Raises `TransferFailed` for an event that has no place in the present state."""
        method = self.TABLE.get((self.state, type(event)))
        if method is None:
            self.distrust()
            message = f"{type(event).__name__} has no place in an import that is {self.state.value}"
            raise TransferFailed(message)
        try:
            return method(self, event)
        except _Refusal as refusal:
            self.state = ImporterState.REFUSED
            self.distrust()
            reject = RejectBlocks(reason=refusal.reason, positions=refusal.positions)
            return [Say(message=reject), GiveUp(error=TransferFailed(refusal.reason))]

    def distrust(self) -> None:
        """Note that the exporter has said or sent a wrong thing: the rest may be wrong in ways that do not show."""
        self._distrusted = True

    @property
    def verified(self) -> frozenset[int]:
        """Positions whose blocks are valid, whatever becomes of the others; none of an exporter that is distrusted."""
        return frozenset() if self._distrusted else frozenset(self._landed.keys() & self._sealed.keys())

    @property
    def awaits_bytes(self) -> bool:
        """Whether a block that is known to be sealed, be it only because it has landed, is not yet valid."""
        return bool(self._needed & (self._sealed.keys() ^ self._landed.keys()))

    def _opened(self, _event: ExportOpened) -> list[ImporterAction]:
        self.state = ImporterState.PULLING
        return self._pull()

    def _failed(self, event: ExportFailed) -> list[ImporterAction]:
        self.state = ImporterState.REFUSED
        return [GiveUp(error=ExportGone(event.reason))]

    def _sealed_blocks(self, event: BlocksSealed) -> list[ImporterAction]:
        for block in event.blocks:
            known = self._sealed.get(block.position)
            if known is None:
                self._check(block)
                self._sealed[block.position] = block
                self._compare(block.position)
            elif known != block:
                reason = f"block {block.position} was sealed twice, differently"
                raise _Refusal(reason, block.position)
        return self._pull_lent(event.blocks) if self._expected.lent else []

    def _pull_lent(self, blocks: tuple[BlockReference, ...]) -> list[ImporterAction]:
        """Want what is there. Nothing is pulled before it was named: a lender that lacks a block would send nothing."""
        first = len(self._expected.kept) + len(self._needed)
        for expected, block in enumerate(blocks, start=first):
            if block.position != expected:
                reason = f"block {block.position} was lent where block {expected} comes next"
                raise _Refusal(reason, block.position)
        self._needed |= {block.position for block in blocks}
        self._wanted += [block.position for block in blocks]
        return self._pull()

    def _check(self, block: BlockReference) -> None:
        position, size = block.position, self._expected.block_size_tokens
        if not 0 <= position < self._expected.blocks:
            reason = f"block {position} does not exist: the prompt has {self._expected.blocks} blocks"
            raise _Refusal(reason, position)
        full = position < len(self._expected.hashes)
        if block.hash != (self._expected.hashes[position] if full else None):
            reason = f"block {position} does not have the expected hash: it holds other tokens"
            raise _Refusal(reason, position)
        if not (block.tokens == size if full else 0 < block.tokens < size):
            reason = f"block {position} cannot hold {block.tokens} tokens"
            raise _Refusal(reason, position)
        if len(block.digest) != DIGEST_BYTES:
            reason = f"block {position} came without a digest of {DIGEST_BYTES} bytes"
            raise _Refusal(reason, position)

    def _pull(self) -> list[ImporterAction]:
        """Ask for what there is room for, and not for a few blocks at a time while more are under way."""
        count = min(self._expected.blocks_in_flight - self._in_flight, len(self._wanted))
        if not count or (count < len(self._wanted) and 2 * count < self._expected.blocks_in_flight):
            return []
        positions = tuple(self._wanted[:count])
        del self._wanted[:count]
        tag = self._new_tag()
        self._in_flight += count
        return [PostReceives(tag=tag, positions=positions), Say(message=PullBlocks(tag=tag, positions=positions))]

    def _landed_block(self, event: BlockLanded) -> list[ImporterAction]:
        assert event.position not in self._landed, "a receive lands once"
        self._landed[event.position] = event.digest
        self._in_flight -= 1
        self._compare(event.position)
        return [*self._pull(), *self._accept_if_complete()]

    def _compare(self, position: int) -> None:
        """Check the bytes of a block once they have landed and its digest is known; either may come first."""
        sealed, digest = self._sealed.get(position), self._landed.get(position)
        if sealed is not None and digest is not None and digest != sealed.digest:
            reason = f"block {position} did not arrive as it was sealed: its digest differs"
            raise _Refusal(reason, position)

    def _finished(self, event: ExportFinished) -> list[ImporterAction]:
        missing = self._needed - self._sealed.keys()
        if missing:
            reason = f"the export finished without {len(missing)} of its blocks"
            raise _Refusal(reason, *sorted(missing))
        self.state = ImporterState.COMPLETING
        self._first_token_ids = event.first_token_id, event.fork_token_ids
        return self._accept_if_complete()

    def _finished_again(self, event: ExportFinished) -> list[ImporterAction]:
        if (event.first_token_id, event.fork_token_ids) != self._first_token_ids:
            reason = "the export finished twice, differently"
            raise _Refusal(reason)
        return []

    def _accept_if_complete(self) -> list[ImporterAction]:
        if self.state is not ImporterState.COMPLETING or len(self._landed) < len(self._needed):
            return []
        self.state = ImporterState.IMPORTED
        first, forks = self._first_token_ids
        return [Complete(first_token_id=first, fork_token_ids=forks), Say(message=AcceptBlocks())]

    def _late(self, _event: ImporterEvent) -> list[ImporterAction]:
        return []

    TABLE: ClassVar[Mapping[tuple[ImporterState, type[ImporterEvent]], Callable[[Any, Any], list[ImporterAction]]]] = {
        (ImporterState.OPENING, ExportOpened): _opened,
        (ImporterState.OPENING, ExportFailed): _failed,
        (ImporterState.PULLING, BlocksSealed): _sealed_blocks,
        (ImporterState.PULLING, BlockLanded): _landed_block,
        (ImporterState.PULLING, ExportFinished): _finished,
        (ImporterState.PULLING, ExportFailed): _failed,
        (ImporterState.COMPLETING, BlocksSealed): _sealed_blocks,
        (ImporterState.COMPLETING, BlockLanded): _landed_block,
        (ImporterState.COMPLETING, ExportFinished): _finished_again,
        (ImporterState.COMPLETING, ExportFailed): _failed,
        (ImporterState.IMPORTED, BlocksSealed): _late,
        (ImporterState.IMPORTED, ExportFinished): _late,
        (ImporterState.IMPORTED, ExportFailed): _late,
        (ImporterState.REFUSED, BlocksSealed): _late,
        (ImporterState.REFUSED, BlockLanded): _late,
        (ImporterState.REFUSED, ExportFinished): _late,
        (ImporterState.REFUSED, ExportFailed): _late,
    }
