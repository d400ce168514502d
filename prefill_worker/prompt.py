"""One prompt on its way through a prefill worker, and what its caller hears of it."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Protocol

from cluster_core.errors import BatonError
from cluster_core.logprobs import TokenLogprobs
from cluster_rpc.worker_messages import WorkOrder
from inference_engine.sequence import TokenSequence
from kv_transfer.exporter import SealedBlock


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """The prompt has its blocks."""

    queue_s: float
    cached_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PartRead:
    """A part of the prompt has been read whose logprobs were asked for."""

    position: int
    """Of the first of them in the prompt."""
    logprobs: tuple[TokenLogprobs, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstToken:
    """The prompt has been read; this is the first token of one of the answers to it."""

    token_id: int
    compute_s: float
    logprobs: TokenLogprobs | None = None
    """Where they were asked for."""
    choice: int = 0


PromptEvent = Started | PartRead | FirstToken


class Offer(Protocol):
    """The part of `kv_transfer.exporter.Export` that the scheduler calls. Nothing of it raises once it is over."""

    def seal(self, blocks: Sequence[SealedBlock]) -> None:
        """Offer blocks whose content is final, positions ascending."""
        ...

    def finish(self, first_token_id: int, fork_token_ids: tuple[int, ...] = ()) -> None:
        """Say that every block is sealed, and the first token of each choice."""
        ...

    def fail(self, reason: str) -> None:
        """Take the offer back."""
        ...


class Stage(Enum):
    """Where a prompt is: WAITING -> READING -> ENDED, or WAITING -> ENDED."""

    WAITING = auto()
    READING = auto()
    ENDED = auto()


@dataclass(slots=True, eq=False, kw_only=True)
class Prompt:
    """The state of one prompt; the scheduler owns it. ``told`` carries a few events and at most one error."""

    order: WorkOrder
    sequence: TokenSequence
    export: Offer
    arrived_s: float
    stage: Stage = Stage.WAITING
    started_s: float = 0.0
    blocked_since_s: float | None = None
    """Since when it has waited for blocks, though it could be read."""
    told: asyncio.Queue[PromptEvent | BatonError] = field(default_factory=asyncio.Queue)

    async def next_event(self) -> PromptEvent:
        """Wait for what happens next. Raises the error that ended the prompt."""
        event = await self.told.get()
        if isinstance(event, BatonError):
            raise event
        return event
