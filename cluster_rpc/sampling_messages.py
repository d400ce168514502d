"""A request's sampling between `cluster_core.sampling` and ``worker.proto``.

Bounds here keep a peer from hurting us. What a client may ask for is narrower, and for the router to say; whether a
token id is in the vocabulary is for the worker to say (`cluster_rpc.order_checks`).
"""

import math

from cluster_core.sampling import Grammar, GrammarKind, Sampling, ThinkingLimit
from cluster_rpc import field_checks as check
from cluster_rpc.v1 import worker_pb2 as pb

MAX_STOP_TOKENS = 256
MAX_BIASES = 1 << 16
MAX_BANNED_SEQUENCES = 1 << 10
MAX_SEQUENCE_TOKENS = 1 << 10
MAX_ALTERNATIVES = 1 << 7
MAX_GRAMMAR_BYTES = 1 << 16

_KINDS = {kind.value: kind for kind in GrammarKind}


def sampling_to_proto(sampling: Sampling) -> pb.Sampling:
    """Put a request's sampling on the wire."""
    message = pb.Sampling(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        seed=sampling.seed,
        max_tokens=sampling.max_tokens,
        stop_token_ids=sorted(sampling.stop_token_ids),
        answer_start=sampling.answer_start,
        min_p=sampling.min_p,
        typical_p=sampling.typical_p,
        repetition_penalty=sampling.repetition_penalty,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        logit_bias=dict(sampling.logit_bias) or None,  # an empty one costs as much as all other fields
        allowed_token_ids=sorted(sampling.allowed_token_ids),
        banned_sequences=[pb.TokenSequence(token_ids=sequence) for sequence in sampling.banned_sequences],
        forced_token_ids=sampling.forced_token_ids,
        min_tokens=sampling.min_tokens,
        logprobs=sampling.logprobs,
        prompt_logprobs=sampling.prompt_logprobs,
    )
    thinking, grammar = sampling.thinking, sampling.grammar
    if thinking is not None:
        limit = pb.ThinkingLimit(start=thinking.start, end=thinking.end, max_tokens=thinking.max_tokens)
        message.thinking.CopyFrom(limit)
    if grammar is not None:
        message.grammar.CopyFrom(pb.Grammar(kind=grammar.kind.value, text=grammar.text))
    return message


def sampling_from_proto(message: pb.Sampling) -> Sampling:
    """Read a request's sampling. Raises `InvalidField`."""
    if not 0 < message.top_p <= 1:
        check.refuse("sampling.top_p", f"must be above 0 and at most 1, not {message.top_p}")
    if not 0 < message.typical_p <= 1:
        check.refuse("sampling.typical_p", f"must be above 0 and at most 1, not {message.typical_p}")
    if not 0 < message.max_tokens <= check.MAX_TOKENS:
        check.refuse("sampling.max_tokens", f"must be 1 to {check.MAX_TOKENS}")
    check.at_most(len(message.stop_token_ids), MAX_STOP_TOKENS, "sampling.stop_token_ids")
    check.at_most(len(message.allowed_token_ids), check.MAX_TOKENS, "sampling.allowed_token_ids")
    check.at_most(len(message.forced_token_ids), MAX_SEQUENCE_TOKENS, "sampling.forced_token_ids")
    return Sampling(
        temperature=_at_least_zero(message.temperature, "temperature"),
        top_p=message.top_p,
        top_k=message.top_k,
        seed=message.seed,
        max_tokens=message.max_tokens,
        stop_token_ids=frozenset(message.stop_token_ids),
        answer_start=message.answer_start,
        min_p=_at_least_zero(message.min_p, "min_p"),
        typical_p=message.typical_p,
        repetition_penalty=_above_zero(message.repetition_penalty, "repetition_penalty"),
        presence_penalty=_finite(message.presence_penalty, "presence_penalty"),
        frequency_penalty=_finite(message.frequency_penalty, "frequency_penalty"),
        logit_bias=_biases(message),
        allowed_token_ids=frozenset(message.allowed_token_ids),
        banned_sequences=_banned(message),
        forced_token_ids=tuple(message.forced_token_ids),
        min_tokens=message.min_tokens,
        thinking=_thinking(message.thinking) if message.HasField("thinking") else None,
        grammar=_grammar(message.grammar) if message.HasField("grammar") else None,
        logprobs=_alternatives(message.logprobs, "logprobs") if message.HasField("logprobs") else None,
        prompt_logprobs=(
            _alternatives(message.prompt_logprobs, "prompt_logprobs") if message.HasField("prompt_logprobs") else None
        ),
    )


def _biases(message: pb.Sampling) -> tuple[tuple[int, float], ...]:
    if not message.logit_bias:
        return ()
    check.at_most(len(message.logit_bias), MAX_BIASES, "sampling.logit_bias")
    return tuple((token, _finite(bias, "logit_bias")) for token, bias in sorted(message.logit_bias.items()))


def _banned(message: pb.Sampling) -> tuple[tuple[int, ...], ...]:
    field = "sampling.banned_sequences"
    check.at_most(len(message.banned_sequences), MAX_BANNED_SEQUENCES, field)
    for sequence in message.banned_sequences:
        check.require(bool(sequence.token_ids), field, "must not have an empty sequence")
        check.at_most(len(sequence.token_ids), MAX_SEQUENCE_TOKENS, field)
    return tuple(tuple(sequence.token_ids) for sequence in message.banned_sequences)


def _thinking(message: pb.ThinkingLimit) -> ThinkingLimit:
    check.require(bool(message.end), "sampling.thinking.end", "must not be empty")
    check.at_most(len(message.start), MAX_SEQUENCE_TOKENS, "sampling.thinking.start")
    check.at_most(len(message.end), MAX_SEQUENCE_TOKENS, "sampling.thinking.end")
    return ThinkingLimit(start=tuple(message.start), end=tuple(message.end), max_tokens=message.max_tokens)


def _grammar(message: pb.Grammar) -> Grammar:
    check.require(message.kind in _KINDS, "sampling.grammar.kind", f"must be one of {', '.join(_KINDS)}")
    check.at_most(len(message.text.encode()), MAX_GRAMMAR_BYTES, "sampling.grammar.text")
    return Grammar(kind=_KINDS[message.kind], text=message.text)


def _alternatives(value: int, name: str) -> int:
    check.require(value <= MAX_ALTERNATIVES, f"sampling.{name}", f"must be at most {MAX_ALTERNATIVES}, not {value}")
    return value


def _finite(value: float, name: str) -> float:
    if not math.isfinite(value):
        check.refuse(f"sampling.{name}", f"must be finite, not {value}")
    return value


def _at_least_zero(value: float, name: str) -> float:
    if _finite(value, name) < 0:
        check.refuse(f"sampling.{name}", f"must be at least 0, not {value}")
    return value


def _above_zero(value: float, name: str) -> float:
    if _finite(value, name) <= 0:
        check.refuse(f"sampling.{name}", f"must be above 0, not {value}")
    return value
