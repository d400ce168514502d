"""A request of a test: what was asked, what its client saw, and what it must have seen."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from cluster_core.errors import BatonError
from cluster_rpc.client import BatonClient

MAX_TOKENS = 16


@dataclass(slots=True)
class Asked:
    """One request, greedy, of `MAX_TOKENS` tokens. `ask` begins it; ``reading`` is done when its client has its end."""

    request_id: str
    prompt: list[int]
    tokens: list[int] = field(default_factory=list)
    completions: int = 0
    error: BatonError | None = None

    async def read(self, client: BatonClient, timeout_s: float) -> None:
        """Read the answer to its end. Raises `AssertionError` for what is no answer: a gap, or two ends."""
        stream = client.generate(
            self.prompt, max_tokens=MAX_TOKENS, temperature=0.0, request_id=self.request_id, timeout_s=timeout_s
        )
        try:
            async for chunk in stream:
                assert not self.completions, "something came after the last message"
                assert chunk.completion is not None or chunk.token_index == len(self.tokens), "an index is missing"
                self.tokens += chunk.token_ids
                self.completions += chunk.completion is not None
        except BatonError as error:
            self.error = error

    def check(self, expected: Sequence[int], ends_with: type[BatonError] | None) -> None:
        """Hold what was seen against the oracle's tokens, and the end against ``ends_with``; None: it is complete."""
        assert self.tokens == [*expected[: len(self.tokens)]], f"{self.request_id}: tokens that are not the oracle's"
        told = f"{self.request_id}: the client was told {type(self.error).__name__}: {self.error}"
        if ends_with is None:
            assert self.error is None, told
            assert self.completions == 1, f"{self.request_id}: the answer has no end"
            assert len(self.tokens) == len(expected), f"{self.request_id}: {len(self.tokens)} of {len(expected)} tokens"
        else:
            assert self.completions == 0, f"{self.request_id}: the answer is said to be complete"
            assert type(self.error) is ends_with, told


@dataclass(frozen=True, slots=True)
class Reading:
    """A request whose client reads it now."""

    asked: Asked
    task: "asyncio.Task[None]"


def begin(asked: Asked, client: BatonClient, timeout_s: float) -> Reading:
    """Start to ask. Whoever calls cancels the task in the end."""
    return Reading(asked, asyncio.create_task(asked.read(client, timeout_s)))


def random_prompt(seed: int, tokens: int, vocabulary: int) -> list[int]:
    """Draw a prompt that no other seed has."""
    dice = random.Random(seed)  # noqa: S311  # tests must repeat
    return [dice.randrange(vocabulary) for _ in range(tokens)]
