"""The exporter's machine: see the theory of operation in `kv_transfer.session`."""

from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, ClassVar

from cluster_core.blocks import BlockReference
from cluster_core.errors import TransferFailed
from cluster_core.handoff import (
    AcceptBlocks,
    BlocksSealed,
    ExportFailed,
    ExportFinished,
    ExportOpened,
    OpenExport,
    PullBlocks,
    RejectBlocks,
)
from kv_transfer.session import (
    Answer,
    BlocksFilled,
    BlocksReady,
    ExporterAction,
    ExporterEvent,
    ImporterLeft,
    LeaseExpired,
    PrefillFailed,
    PrefillFinished,
    ReleaseLease,
    SendBlocks,
)


class ExporterState(Enum):
    """Where an exporter is."""

    COMPUTING = "computing"
    FEEDING = "feeding"
    WAITING = "waiting"
    SERVING = "serving"
    ACCEPTED = "accepted"
    ENDED = "ended"


class ExporterSession:
    """One export as its exporter sees it."""

    def __init__(self, lease_s: float, transport_address: bytes) -> None:
        self.state = ExporterState.COMPUTING
        self.end_reason = ""
        self._opened_answer = ExportOpened(lease_s=lease_s, exporter_transport_address=transport_address)
        self._sealed: dict[int, BlockReference] = {}
        self._awaited: dict[int, tuple[int, int]] = {}
        """Positions that were pulled and are not sealed: the pull's tag, and the place in it."""
        self._finished = ExportFinished(first_token_id=0)

    def handle(self, event: ExporterEvent) -> list[ExporterAction]:
        """Take one event. Raises `TransferFailed` for one that has no place in the present state or cannot be met."""
        method = self.TABLE.get((self.state, type(event)))
        if method is None:
            message = f"{type(event).__name__} has no place in an export that is {self.state.value}"
            raise TransferFailed(message)
        return method(self, event)

    @property
    def over(self) -> bool:
        """Whether the lease was given back."""
        return self.state is ExporterState.ENDED or self.state is ExporterState.ACCEPTED

    def _ready(self, event: BlocksReady) -> list[ExporterAction]:
        for block in event.blocks:
            assert block.position not in self._sealed, f"position {block.position} is sealed already"
            self._sealed[block.position] = block
        if self.state is ExporterState.COMPUTING:
            return []
        return [Answer(message=BlocksSealed(blocks=event.blocks)), *self._send_awaited(event.blocks)]

    def _filled(self, event: BlocksFilled) -> list[ExporterAction]:
        """Send what was pulled: its bytes may travel while its digest is computed."""
        return self._send_awaited(event.blocks)

    def _send_awaited(self, blocks: tuple[BlockReference, ...]) -> list[ExporterAction]:
        """Send those of ``blocks`` that were pulled before they were sealed, pull by pull."""
        pulls: dict[int, list[tuple[int, BlockReference]]] = {}
        for block in blocks:
            if block.position in self._awaited:
                tag, number = self._awaited.pop(block.position)
                pulls.setdefault(tag, []).append((number, block))
        return [SendBlocks(tag=tag, numbered=tuple(numbered)) for tag, numbered in pulls.items()]

    def _prefill_finished(self, event: PrefillFinished) -> list[ExporterAction]:
        if self._awaited:
            return self._end(f"the prompt has no blocks {sorted(self._awaited)}, which were asked for")
        self._finished = ExportFinished(first_token_id=event.first_token_id, fork_token_ids=event.fork_token_ids)
        if self.state is ExporterState.COMPUTING:
            self.state = ExporterState.WAITING
            return []
        self.state = ExporterState.SERVING
        return [Answer(message=self._finished)]

    def _prefill_failed(self, event: PrefillFailed) -> list[ExporterAction]:
        return self._end(event.reason)

    def _opened(self, _event: OpenExport) -> list[ExporterAction]:
        answers: list[ExporterAction] = [Answer(message=self._opened_answer)]
        if self._sealed:
            blocks = tuple(self._sealed[position] for position in sorted(self._sealed))
            answers.append(Answer(message=BlocksSealed(blocks=blocks)))
        if self.state is ExporterState.WAITING:
            self.state = ExporterState.SERVING
            answers.append(Answer(message=self._finished))
        else:
            self.state = ExporterState.FEEDING
        return answers

    def _pulled(self, event: PullBlocks) -> list[ExporterAction]:
        unknown = [position for position in event.positions if position not in self._sealed]
        if not event.positions:
            message = "asked for no block"
            raise TransferFailed(message)
        if unknown and self.state is ExporterState.SERVING:
            message = f"asked for blocks {unknown}, which the prompt does not have"
            raise TransferFailed(message)
        sealed = []
        for number, position in enumerate(event.positions):
            if (block := self._sealed.get(position)) is not None:
                sealed.append((number, block))
            else:
                self._awaited[position] = event.tag, number
        return [SendBlocks(tag=event.tag, numbered=tuple(sealed))] if sealed else []

    def _accepted(self, _event: AcceptBlocks) -> list[ExporterAction]:
        self.state = ExporterState.ACCEPTED
        self.end_reason = "its blocks were accepted"
        return [ReleaseLease()]

    def _rejected(self, event: RejectBlocks) -> list[ExporterAction]:
        return self._end(f"the importer rejected blocks {list(event.positions)}: {event.reason}")

    def _left(self, _event: ImporterLeft) -> list[ExporterAction]:
        self._awaited.clear()
        self.state = ExporterState.COMPUTING if self.state is ExporterState.FEEDING else ExporterState.WAITING
        return []

    def _expired(self, _event: LeaseExpired) -> list[ExporterAction]:
        return self._end("nobody came for its blocks in time")

    def _end(self, reason: str) -> list[ExporterAction]:
        listens = self.state in {ExporterState.FEEDING, ExporterState.SERVING}
        self.state = ExporterState.ENDED
        self.end_reason = reason
        self._awaited.clear()
        return [Answer(message=ExportFailed(reason=reason)), ReleaseLease()] if listens else [ReleaseLease()]

    def _late(self, _event: ExporterEvent) -> list[ExporterAction]:
        return []

    TABLE: ClassVar[Mapping[tuple[ExporterState, type[ExporterEvent]], Callable[[Any, Any], list[ExporterAction]]]] = {
        (ExporterState.COMPUTING, BlocksFilled): _filled,
        (ExporterState.COMPUTING, BlocksReady): _ready,
        (ExporterState.COMPUTING, PrefillFinished): _prefill_finished,
        (ExporterState.COMPUTING, PrefillFailed): _prefill_failed,
        (ExporterState.COMPUTING, OpenExport): _opened,
        (ExporterState.FEEDING, BlocksFilled): _filled,
        (ExporterState.FEEDING, BlocksReady): _ready,
        (ExporterState.FEEDING, PrefillFinished): _prefill_finished,
        (ExporterState.FEEDING, PrefillFailed): _prefill_failed,
        (ExporterState.FEEDING, PullBlocks): _pulled,
        (ExporterState.FEEDING, RejectBlocks): _rejected,
        (ExporterState.FEEDING, ImporterLeft): _left,
        (ExporterState.WAITING, OpenExport): _opened,
        (ExporterState.WAITING, PrefillFailed): _prefill_failed,
        (ExporterState.WAITING, LeaseExpired): _expired,
        (ExporterState.SERVING, PullBlocks): _pulled,
        (ExporterState.SERVING, AcceptBlocks): _accepted,
        (ExporterState.SERVING, RejectBlocks): _rejected,
        (ExporterState.SERVING, PrefillFailed): _prefill_failed,
        (ExporterState.SERVING, ImporterLeft): _left,
        (ExporterState.ACCEPTED, ImporterLeft): _late,
        (ExporterState.ACCEPTED, PrefillFailed): _late,
        (ExporterState.ENDED, BlocksFilled): _late,
        (ExporterState.ENDED, BlocksReady): _late,
        (ExporterState.ENDED, PrefillFinished): _late,
        (ExporterState.ENDED, PrefillFailed): _late,
        (ExporterState.ENDED, PullBlocks): _late,
        (ExporterState.ENDED, AcceptBlocks): _late,
        (ExporterState.ENDED, RejectBlocks): _late,
        (ExporterState.ENDED, ImporterLeft): _late,
    }
