"""One of the answers to a request: its tokens, its text, and what the client is told of it."""

from collections.abc import Sequence
from typing import Protocol

from cluster_core.sampling import Sampling
from cluster_rpc.logprob_messages import output_logprobs
from cluster_rpc.v1 import generation_pb2
from router.text_stream import TextDelta
from router.timeline import Timeline
from router.token_log import TokenLog


class AnswerText(Protocol):
    """Makes text of tokens: `router.text_stream.TextStream`."""

    def feed(self, token_ids: Sequence[int]) -> TextDelta:
        """Take tokens; return the text that is certain by now, and whether a stop string ended it."""
        ...

    def finish(self) -> str:
        """Return the text that was held back."""
        ...


class AnswerChoice:
    """An answer while it is written; choice 0 where there is only one. Its log says when it is complete."""

    def __init__(self, index: int, sampling: Sampling, text: AnswerText, timeline: Timeline) -> None:
        self.index = index
        self.sampling = sampling
        self.log = TokenLog(sampling)
        self.timeline = timeline
        self.handed_over = False
        """Whether its present attempt's blocks have arrived at another worker."""
        self.rebound = 0
        """Failures of decode legs that others took over: tries, though no attempts."""
        self.stop_string: str | None = None
        self._text = text
        self._told = 0
        """Tokens that the client was told."""

    def chunk(self) -> generation_pb2.GenerateStreamChunk | None:
        """Return the tokens that came since the last chunk and their text; None when none did."""
        log, first_index = self.log, self._told
        if len(log.tokens) == first_index:
            return None
        delta = self._text.feed(log.tokens[first_index:])
        if delta.stopped_by is not None:
            log.stop_after(first_index + delta.tokens_used)
            self.stop_string = delta.stopped_by
        fresh = log.tokens[first_index:]
        self._told = len(log.tokens)
        self.timeline.tokens(len(fresh))
        chunk = generation_pb2.GenerateStreamChunk(
            token_ids=fresh, text=delta.text, token_index=first_index, index=self.index
        )
        if self.sampling.logprobs is not None:
            chunk.output_logprobs.CopyFrom(output_logprobs(log.take_logprobs()))
        return chunk

    def complete(self, decode_step_s: float) -> generation_pb2.GenerateComplete:
        """Return the terminal message of a complete answer, but for what the request knows.

        ``decode_step_s`` is the worker's mean, for answers that are too short to tell one.
        """
        log = self.log
        assert log.finish_reason is not None
        message = generation_pb2.GenerateComplete(
            finish_reason=log.finish_reason,
            completion_tokens=len(log.tokens),
            text=self._text.finish(),
            seed=self.sampling.seed,
            timings=self.timeline.timings(handed_over=self.handed_over, decode_step_s=decode_step_s),
            index=self.index,
        )
        if self.stop_string is not None:
            message.matched_stop_str = self.stop_string
        elif log.stop_token_id is not None:
            message.matched_token_id = log.stop_token_id
        return message
