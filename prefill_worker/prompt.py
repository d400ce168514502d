"""One prompt on its way through a prefill worker, and what its caller hears of it."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Protocol

from cluster_core.errors import BatonError
from cluster_rpc.worker_messages import WorkOrder
from inference_engine.sequence import TokenSequence
from kv_transfer.exporter import SealedBlock


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """The prompt has its blocks."""

    queue_s: float
    cached_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstToken:
    """The prompt has been read; this is the answer's first token."""

    token_id: int
    compute_s: float


class Offer(Protocol):
    """The part of `kv_transfer.exporter.Export` that the scheduler calls. Nothing of it raises once it is over."""

    def seal(self, blocks: Sequence[SealedBlock]) -> None:
        """Offer blocks whose content is final, positions ascending."""
        ...

    def finish(self, first_token_id: int) -> None:
        """Say that every block is sealed."""
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
    """The state of one prompt; the scheduler owns it. ``told`` carries at most two events and one error."""

    order: WorkOrder
    sequence: TokenSequence
    export: Offer
    arrived_s: float
    stage: Stage = Stage.WAITING
    started_s: float = 0.0
    told: asyncio.Queue[Started | FirstToken | BatonError] = field(default_factory=asyncio.Queue)

    async def next_event(self) -> Started | FirstToken:
        """Wait for what happens next. Raises the error that ended the prompt."""
        event = await self.told.get()
        if isinstance(event, BatonError):
            raise event
        return event
