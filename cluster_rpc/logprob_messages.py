"""Logprobs: between `cluster_core.logprobs` and ``worker.proto``, and on to the client's ``generation.proto``."""

import math
from collections.abc import Iterable, Iterator, Sequence

from cluster_core.logprobs import TokenLogprobs
from cluster_rpc import field_checks as check
from cluster_rpc.sampling_messages import MAX_ALTERNATIVES
from cluster_rpc.v1 import generation_pb2, worker_pb2

PIECE_TOKENS = 1024
"""Most tokens of a prompt in one message: a long prompt's logprobs exceed what one message may be."""


def logprobs_to_proto(told: Iterable[TokenLogprobs]) -> list[worker_pb2.TokenLogprobs]:
    """Put logprobs on the wire between worker and router."""
    return [
        worker_pb2.TokenLogprobs(
            token_id=token.token_id,
            logprob=token.logprob,
            rank=token.rank,
            top_token_ids=[token_id for token_id, _ in token.top],
            top_logprobs=[logprob for _, logprob in token.top],
        )
        for token in told
    ]


def logprobs_from_proto(messages: Sequence[worker_pb2.TokenLogprobs], field: str) -> tuple[TokenLogprobs, ...]:
    """Read a worker's logprobs. Raises `InvalidField`."""
    return tuple(_from_proto(message, field) for message in messages)


def prompt_pieces(position: int, told: Sequence[TokenLogprobs]) -> Iterator[worker_pb2.PromptLogprobs]:
    """Put the logprobs of the prompt's tokens from ``position`` on into messages of bounded size."""
    for start in range(0, len(told), PIECE_TOKENS):
        tokens = logprobs_to_proto(told[start : start + PIECE_TOKENS])
        yield worker_pb2.PromptLogprobs(position=position + start, tokens=tokens)


def output_logprobs(told: Sequence[TokenLogprobs]) -> generation_pb2.OutputLogProbs:
    """Tell a client the logprobs of tokens of its answer."""
    return generation_pb2.OutputLogProbs(
        token_logprobs=[token.logprob for token in told],
        token_ids=[token.token_id for token in told],
        top_logprobs=[_top(token) for token in told],
        ranks=[token.rank for token in told],
    )


def input_logprobs(
    position: int, told: Sequence[TokenLogprobs], first_token_id: int | None
) -> generation_pb2.InputLogProbs:
    """Tell a client the logprobs of its prompt from ``position`` on.

    ``first_token_id`` is the prompt's first token, which has none, where they begin with the second.
    """
    values = [generation_pb2.InputTokenLogProb(value=token.logprob) for token in told]
    message = generation_pb2.InputLogProbs(
        token_logprobs=values,
        token_ids=[token.token_id for token in told],
        top_logprobs=[_top(token) for token in told],
        ranks=[token.rank for token in told],
        token_index=position,
    )
    if first_token_id is None:
        return message
    nothing = generation_pb2.InputLogProbs(
        token_logprobs=[generation_pb2.InputTokenLogProb()],
        token_ids=[first_token_id],
        top_logprobs=[generation_pb2.TopLogProbs()],
        ranks=[0],
    )
    nothing.MergeFrom(message)
    nothing.token_index = 0
    return nothing


def output_told(message: generation_pb2.OutputLogProbs) -> tuple[TokenLogprobs, ...]:
    """Read what a client was told of tokens of its answer."""
    values = zip(message.token_logprobs, message.token_ids, message.ranks, message.top_logprobs, strict=True)
    return tuple(_told(*value) for value in values)


def input_told(message: generation_pb2.InputLogProbs) -> tuple[TokenLogprobs | None, ...]:
    """Read what a client was told of its prompt. None stands for the prompt's first token."""
    values = zip(message.token_logprobs, message.token_ids, message.ranks, message.top_logprobs, strict=True)
    return tuple(
        _told(entry.value, token_id, rank, top) if entry.HasField("value") else None
        for entry, token_id, rank, top in values
    )


def _told(logprob: float, token_id: int, rank: int, top: generation_pb2.TopLogProbs) -> TokenLogprobs:
    alternatives = tuple(zip(top.token_ids, top.values, strict=True))
    return TokenLogprobs(token_id=token_id, logprob=logprob, rank=rank, top=alternatives)


def _top(token: TokenLogprobs) -> generation_pb2.TopLogProbs:
    return generation_pb2.TopLogProbs(
        values=[logprob for _, logprob in token.top], token_ids=[token_id for token_id, _ in token.top]
    )


def _from_proto(message: worker_pb2.TokenLogprobs, field: str) -> TokenLogprobs:
    check.at_most(len(message.top_token_ids), MAX_ALTERNATIVES, field)
    same = len(message.top_token_ids) == len(message.top_logprobs)
    check.require(same, field, "must have as many top_logprobs as top_token_ids")
    check.require(not math.isnan(message.logprob), field, "must be numbers")
    return TokenLogprobs(
        token_id=message.token_id,
        logprob=message.logprob,
        rank=message.rank,
        top=tuple(zip(message.top_token_ids, message.top_logprobs, strict=True)),
    )
