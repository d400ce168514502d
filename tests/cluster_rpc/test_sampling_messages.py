from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster_core.errors import InvalidField
from cluster_core.logprobs import TokenLogprobs
from cluster_core.sampling import Grammar, GrammarKind, Sampling, ThinkingLimit, choice_seed
from cluster_rpc.logprob_messages import (
    PIECE_TOKENS,
    input_logprobs,
    input_told,
    logprobs_from_proto,
    logprobs_to_proto,
    output_logprobs,
    output_told,
    prompt_pieces,
)
from cluster_rpc.sampling_messages import sampling_from_proto, sampling_to_proto
from cluster_rpc.v1 import worker_pb2 as pb
from tests.random_samplings import samplings, token_logprobs

NAN = float("nan")
GOOD: dict[str, Any] = {"top_p": 1.0, "typical_p": 1.0, "repetition_penalty": 1.0, "max_tokens": 1}


@given(samplings)
def test_samplings_survive_the_wire(sampling: Sampling) -> None:
    wire = sampling_to_proto(sampling).SerializeToString()
    assert sampling_from_proto(pb.Sampling.FromString(wire)) == sampling


def test_every_field_of_a_sampling_has_a_place_on_the_wire() -> None:
    grammar = Grammar(kind=GrammarKind.REGEX, text="a+")
    thinking = ThinkingLimit(start=(1,), end=(2,), max_tokens=3)
    values: dict[str, Any] = {"grammar": grammar, "thinking": thinking, "stop_token_ids": frozenset({4})}
    values |= {"logit_bias": ((5, 0.5),), "allowed_token_ids": frozenset({6}), "banned_sequences": ((7, 8),)}
    values |= {"forced_token_ids": (9,), "top_p": 0.1, "typical_p": 0.2}
    names = [one.name for one in fields(Sampling) if one.init]
    sampling = Sampling(**{name: values.get(name, place + 1) for place, name in enumerate(names)})
    assert sampling_from_proto(sampling_to_proto(sampling)) == sampling


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"temperature": NAN}, "temperature"),
        ({"temperature": -1.0}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"typical_p": 1.5}, "typical_p"),
        ({"min_p": -0.1}, "min_p"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"presence_penalty": NAN}, "presence_penalty"),
        ({"frequency_penalty": float("inf")}, "frequency_penalty"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop_token_ids": range(300)}, "stop_token_ids"),
        ({"logit_bias": {1: NAN}}, "logit_bias"),
        ({"banned_sequences": [pb.TokenSequence()]}, "banned_sequences"),
        ({"forced_token_ids": range(2000)}, "forced_token_ids"),
        ({"thinking": pb.ThinkingLimit(start=[1])}, "thinking.end"),
        ({"grammar": pb.Grammar(kind="poem")}, "grammar.kind"),
        ({"logprobs": 1000}, "logprobs"),
        ({"prompt_logprobs": 1000}, "prompt_logprobs"),
    ],
)
def test_malformed_samplings_are_refused(change: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidField) as caught:
        sampling_from_proto(pb.Sampling(**{**GOOD, **change}))
    assert caught.value.field == f"sampling.{field}"


@given(st.lists(token_logprobs, max_size=4))
def test_logprobs_survive_both_wires(told: list[TokenLogprobs]) -> None:
    assert logprobs_from_proto(logprobs_to_proto(told), "logprobs") == tuple(told)
    assert output_told(output_logprobs(told)) == tuple(told)
    assert input_told(input_logprobs(3, told, None)) == tuple(told)
    assert input_told(input_logprobs(1, told, 9)) == (None, *told)


def test_a_long_prompts_logprobs_go_in_pieces() -> None:
    told = [TokenLogprobs(token_id=place, logprob=-1.0, rank=1) for place in range(2 * PIECE_TOKENS + 5)]
    pieces = list(prompt_pieces(1, told))
    assert [piece.position for piece in pieces] == [1, 1 + PIECE_TOKENS, 1 + 2 * PIECE_TOKENS]
    assert [token.token_id for piece in pieces for token in piece.tokens] == list(range(len(told)))


def test_malformed_logprobs_are_refused() -> None:
    for message in (pb.TokenLogprobs(logprob=NAN), pb.TokenLogprobs(top_token_ids=[1])):
        with pytest.raises(InvalidField, match="first"):
            logprobs_from_proto([message], "first")


def test_each_choice_has_a_seed_of_its_own_and_the_first_the_requests() -> None:
    seeds = [choice_seed(seed, choice) for seed in (-5, 0, 1, 2**63 - 1) for choice in range(8)]
    assert len(set(seeds)) == len(seeds)
    assert [choice_seed(seed, 0) for seed in (-5, 0)] == [-5, 0]
    assert all(0 <= seed < 2**63 for seed in seeds[1:8])
    assert choice_seed(7, 1) == 1938480703413366374, "another number would change what old requests answer"
