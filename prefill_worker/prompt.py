"""One prompt on its way through a prefill worker, and what its caller hears of it."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Protocol

from cluster_core.errors import BatonError
from cluster_core.handoff import FetchReport
from cluster_core.logprobs import TokenLogprobs
from cluster_rpc.worker_messages import WorkOrder
from inference_engine.borrowed_prefixes import Borrowing
from inference_engine.sequence import TokenSequence
from kv_transfer.export_memory import SealedBlock


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """The prompt has its blocks."""

    queue_s: float
    cached_tokens: int
    fetch: FetchReport | None = None
    """What was fetched for it from another worker's cache."""


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

    @property
    def claimed(self) -> bool:
        """Whether an importer, which has room for the blocks, fetches them."""
        ...

    @property
    def over(self) -> bool:
        """Whether the lease was given back."""
        ...

    def seal(self, blocks: Sequence[SealedBlock]) -> None:
        """Offer blocks whose content is final, positions ascending."""
        ...

    def finish(self, first_token_id: int, fork_token_ids: tuple[int, ...] = ()) -> None:
        """Say that every block is sealed, and the first token of each choice."""
        ...

    def fail(self, reason: str) -> None:
        """Take the offer back."""
        ...

    async def until_over(self) -> None:
        """Wait until nothing is on offer any more: it was taken, taken back, or nobody came for it."""
        ...


class Stage(Enum):
    """Where a prompt is.

    ::

        WAITING -------------------------> READING --> ENDED
        WAITING --> FETCHING --> WAITING                        another worker's cache has more of it than this one's
        every stage -----------------------------------> ENDED  cancelled or failed
    """

    WAITING = auto()
    FETCHING = auto()
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
    borrowing: Borrowing | None = None
    """While it is fetching."""
    has_fetched: bool = False
    """Whether a fetch for it has been tried."""
    fetch: FetchReport | None = None
    blocked_since_s: float | None = None
    """Since when it has waited for blocks, though it could be read."""
    told: asyncio.Queue[PromptEvent | BatonError] = field(default_factory=asyncio.Queue)

    @property
    def may_fetch(self) -> bool:
        """Whether its beginning may still be fetched. The prompt's logprobs come of computing it, all of it."""
        return not self.has_fetched and self.order.sampling.prompt_logprobs is None

    @property
    def to_compute(self) -> int:
        """Tokens that are still to be computed, as far as is foreseen."""
        pending, source = self.sequence.pending, self.order.fetch
        in_vain = self.fetch is not None and self.fetch.failure != ""
        if source is None or in_vain or self.stage is Stage.READING:
            return pending
        return max(1, pending - source.blocks * self.sequence.block_size_tokens)

    async def next_event(self) -> PromptEvent:
        """Wait for what happens next. Raises the error that ended the prompt."""
        event = await self.told.get()
        if isinstance(event, BatonError):
            raise event
        return event
