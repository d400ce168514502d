"""The prompt's logprobs on their way to the client: each position once and in order, whichever attempt computes it."""

from collections.abc import Sequence

from cluster_core.errors import LegFailed
from cluster_rpc.logprob_messages import input_logprobs, logprobs_from_proto
from cluster_rpc.v1 import generation_pb2, worker_pb2


class PromptTold:
    """What the client knows of its prompt. Where it did not ask, it is `complete` from the beginning."""

    def __init__(self, token_ids: Sequence[int], *, wanted: bool) -> None:
        self._token_ids = token_ids
        self._told = 0 if wanted else len(token_ids)

    @property
    def complete(self) -> bool:
        """Whether the client has all that it asked for: before, no token of the answer may be told."""
        return self._told == len(self._token_ids)

    def begin(self) -> generation_pb2.GenerateStreamChunk | None:
        """Return what can be told before anything is computed: all, of a prompt of one token."""
        if self.complete or len(self._token_ids) > 1:
            return None
        return self._tell(input_logprobs(1, (), self._token_ids[0]))

    def take(self, piece: worker_pb2.PromptLogprobs) -> generation_pb2.GenerateStreamChunk | None:
        """Return what the client does not have yet of ``piece``. An attempt that follows another one begins anew.

        Raises `LegFailed` for a piece that leaves some out, or is of another prompt.
        """
        if self.complete:
            return None
        position = max(1, self._told)
        behind = position - piece.position
        if behind < 0:
            message = f"logprobs of {-behind} tokens of the prompt were left out"
            raise LegFailed(message)
        told = logprobs_from_proto(piece.tokens[behind:], "prompt_logprobs")
        expected = self._token_ids[position : position + len(told)]
        if tuple(token.token_id for token in told) != tuple(expected):
            message = "the prompt's logprobs are of other tokens"
            raise LegFailed(message)
        if not told:
            return None
        return self._tell(input_logprobs(position, told, None if self._told else self._token_ids[0]))

    def _tell(self, logprobs: generation_pb2.InputLogProbs) -> generation_pb2.GenerateStreamChunk:
        self._told = logprobs.token_index + len(logprobs.token_ids)
        return generation_pb2.GenerateStreamChunk(input_logprobs=logprobs)
