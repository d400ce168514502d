"""The tokens of one answer, each index once and in order, whatever the attempts behind it do.

Attempts are numbered. The log takes a token when it comes from the current attempt and has the next index; older
attempts are dropped and counted, and so is what the current one tells twice (its two workers may both tell the first
token). An attempt fails when it tells a token twice and differently, or skips one.
Logprobs, where they were asked for, go the way of their tokens; they are kept until they were told.
The log also knows where the answer ends, so that a worker that dies after its last token has not failed.
"""

from collections.abc import Sequence

from cluster_core.errors import LegFailed
from cluster_core.identity import Attempt
from cluster_core.logprobs import TokenLogprobs
from cluster_core.sampling import Sampling


class TokenLog:
    """Tokens of one request. `finish_reason` is set once the answer is complete; nothing is taken afterwards."""

    def __init__(self, sampling: Sampling) -> None:
        self._stop_ids = sampling.stop_token_ids
        self._max_tokens = sampling.max_tokens
        self._with_logprobs = sampling.logprobs is not None
        self._untold: list[TokenLogprobs] = []
        self._first_index = 0
        self.tokens: list[int] = []
        self.attempt = Attempt(0)
        self.dropped_tokens = 0
        self.finish_reason: str | None = None
        self.stop_token_id: int | None = None

    @property
    def remaining(self) -> int:
        """Tokens that may still be written."""
        return self._max_tokens - len(self.tokens)

    def begin_attempt(self) -> Attempt:
        """Start the next attempt: it continues after the tokens that are there; the one before can add none."""
        self.attempt = Attempt(self.attempt + 1)
        self._first_index = len(self.tokens)
        return self.attempt

    def accept(
        self, attempt: Attempt, offset: int, token_ids: Sequence[int], logprobs: Sequence[TokenLogprobs] = ()
    ) -> list[int]:
        """Take tokens that start at ``offset`` of an attempt's output; return those that are new.

        Raises `LegFailed` when tokens before them are missing, or when one that the attempt gave before is another now,
        or when logprobs are missing.
        """
        if attempt != self.attempt or self.finish_reason is not None:
            self.dropped_tokens += len(token_ids)
            return []
        behind = len(self.tokens) - (self._first_index + offset)
        if behind < 0:
            message = f"attempt {attempt} skipped {-behind} tokens of the answer"
            raise LegFailed(message)
        again = list(token_ids[:behind])
        if again != self.tokens[len(self.tokens) - behind :][: len(again)]:
            message = f"attempt {attempt} gave a token of the answer twice, and differently"
            raise LegFailed(message)
        if self._with_logprobs and [told.token_id for told in logprobs] != list(token_ids):
            message = f"attempt {attempt} gave tokens without their logprobs"
            raise LegFailed(message)
        fresh = list(token_ids[behind:])
        for position, token in enumerate(fresh):
            if token in self._stop_ids:
                self.finish_reason, self.stop_token_id = "stop", token
            elif len(self.tokens) + position + 1 == self._max_tokens:
                self.finish_reason = "length"
            else:
                continue
            del fresh[position + 1 :]
            break
        self.tokens += fresh
        if self._with_logprobs:
            self._untold += logprobs[behind : behind + len(fresh)]
        self.dropped_tokens += len(token_ids) - len(fresh)
        return fresh

    def take_logprobs(self) -> list[TokenLogprobs]:
        """Return the logprobs of the tokens taken since the last call."""
        untold, self._untold = self._untold, []
        return untold

    def stop_after(self, count: int) -> None:
        """End the answer after its first ``count`` tokens: a stop string was found there."""
        assert count <= len(self.tokens)
        dropped = len(self.tokens) - count
        self.dropped_tokens += dropped
        del self.tokens[count:]
        del self._untold[max(0, len(self._untold) - dropped) :]
        self.finish_reason, self.stop_token_id = "stop", None
