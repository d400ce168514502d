"""The bounded stream from a running answer to whoever reads it.

The scheduler puts, one reader takes. Tokens that were not taken yet are joined into one event. When ``limit_tokens``
tokens wait, the stream is full: the scheduler then pauses the answer until half of them have been taken. Nothing is
ever dropped.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from cluster_core.errors import BatonError
from cluster_core.handoff import FetchReport, HandoffReport
from cluster_core.logprobs import TokenLogprobs

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """The request was admitted: its blocks are reserved."""

    queue_s: float
    cached_tokens: int
    """Prompt tokens found in this worker's own cache."""
    fetch: FetchReport | None = None
    """What was fetched into it before from another worker's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokensWritten:
    """Tokens of the answer; the first has the index ``offset`` in this attempt's output."""

    offset: int
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] = ()
    """One a token, where they were asked for."""
    choice: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PartRead:
    """A part of the prompt has been read here whose logprobs were asked for."""

    position: int
    """Of the first of them in the prompt."""
    logprobs: tuple[TokenLogprobs, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class HandedOver:
    """The prompt's blocks have arrived."""

    report: HandoffReport


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """The hand-over failed; so many leading full blocks of the prompt are in this worker's cache, checked."""

    blocks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The answer is complete."""

    reason: FinishReason
    choice: int = 0


AnswerEvent = Started | PartRead | TokensWritten | HandedOver | Kept | Finished


class AnswerStream:
    """Events of one answer. ``on_room`` is called when a full stream has been read down to half."""

    def __init__(self, limit_tokens: int, on_room: Callable[[], None]) -> None:
        self.full = False
        self._limit = limit_tokens
        self._on_room = on_room
        self._events: deque[AnswerEvent] = deque()
        self._tokens = 0
        self._error: BatonError | None = None
        self._changed = asyncio.Event()

    def put(self, event: AnswerEvent) -> None:
        """Add an event; never waits."""
        if isinstance(event, TokensWritten):
            self._tokens += len(event.token_ids)
            self.full = self._tokens >= self._limit
            last = self._events[-1] if self._events else None
            if isinstance(last, TokensWritten) and last.choice == event.choice:
                self._events.pop()
                event = TokensWritten(
                    offset=last.offset,
                    token_ids=last.token_ids + event.token_ids,
                    logprobs=last.logprobs + event.logprobs,
                    choice=event.choice,
                )
        self._events.append(event)
        self._changed.set()

    def fail(self, error: BatonError) -> None:
        """End the stream: the reader gets what was put before, then ``error``."""
        self._error = error
        self._changed.set()

    async def take(self) -> AnswerEvent:
        """Wait for the next event. Raises the error that ended the answer."""
        while not self._events:
            if self._error is not None:
                raise self._error
            self._changed.clear()
            await self._changed.wait()
        event = self._events.popleft()
        if isinstance(event, TokensWritten):
            self._tokens -= len(event.token_ids)
            if self.full and self._tokens <= self._limit // 2:
                self.full = False
                self._on_room()
        return event
