"""What a client may ask of the sampling, and what the workers are told of it."""

import json
import math
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster_core import errors as tree
from cluster_core.sampling import Grammar, GrammarKind, Sampling, ThinkingLimit
from cluster_rpc.v1 import generation_pb2 as pb
from router.sampling_request import SamplingReader
from router.validation import InputLimits
from tests.router_front import tokenizers_for_tests as kinds

VOCAB = kinds.BYTE_LEVEL_SIZE + 2
START, END = VOCAB - 2, VOCAB - 1


def thinker() -> tokenizers.Tokenizer:
    backend = kinds.byte_level()
    backend.add_special_tokens(["<think>", "</think>"])
    return backend


def reader_for(backend: tokenizers.Tokenizer) -> SamplingReader:
    tokenizer = kinds.in_memory(backend)
    return SamplingReader(
        tokenizer=tokenizer, vocab_size=VOCAB, eos_token_ids=frozenset({kinds.END_ID}), limits=InputLimits()
    )


READER = reader_for(thinker())


def tokens(text: str) -> tuple[int, ...]:
    return tuple(READER.tokenizer.encode(text, add_special_tokens=False))


def read(reader: SamplingReader = READER, **params: Any) -> Sampling:
    return reader.read(pb.SamplingParams(**params))


def test_nothing_asked_for_changes_nothing() -> None:
    assert read(temperature=0.0, ignore_eos=True) == Sampling(
        temperature=0.0, top_p=1.0, top_k=0, seed=0, max_tokens=1, stop_token_ids=frozenset()
    )


def test_numbers_are_taken_over_as_written() -> None:
    sampling = read(
        presence_penalty=-0.3,
        frequency_penalty=1.9,
        repetition_penalty=1.1,
        min_p=0.05,
        typical_p=0.9,
        logit_bias={5: -100.0, 3: 0.7},
        allowed_token_ids=[4, 4, 2],
        forced_token_ids=[9, 8],
        logprobs=0,
        prompt_logprobs=5,
    )
    assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty) == (-0.3, 1.9, 1.1)
    assert (sampling.min_p, sampling.typical_p) == (0.05, 0.9)
    assert sampling.logit_bias == ((3, 0.7), (5, -100.0))
    assert (sampling.allowed_token_ids, sampling.forced_token_ids) == (frozenset({2, 4}), (9, 8))
    assert (sampling.logprobs, sampling.prompt_logprobs) == (0, 5)


def test_a_bad_word_is_banned_at_a_texts_start_and_after_a_space() -> None:
    assert read(bad_words=["the", " he"]).banned_sequences == (tokens("the"), tokens("he"))
    spaced = reader_for(spaced_tokenizer())
    bare, after_space = spaced.tokenizer.token_id("the"), spaced.tokenizer.token_id("Ġthe")
    assert read(spaced, bad_words=["the"]).banned_sequences == ((bare,), (after_space,))


def spaced_tokenizer() -> tokenizers.Tokenizer:
    """Make a tokenizer with tokens of their own for words after a space, as GPT-2's kind has them."""
    backend = kinds.byte_level()
    document = json.loads(backend.to_str())
    vocabulary, merges = document["model"]["vocab"], document["model"]["merges"]
    for left, right in (("th", "e"), ("Ġ", "the")):
        vocabulary[left + right] = 1000 + len(merges)
        merges.append([left, right])
    return tokenizers.Tokenizer.from_str(json.dumps(document))


def test_thinking_is_limited_between_the_models_own_tokens() -> None:
    assert read(max_thinking_tokens=7).thinking == ThinkingLimit(start=(START,), end=(END,), max_tokens=7)
    assert read(max_thinking_tokens=0, thinking_start="").thinking == ThinkingLimit(start=(), end=(END,), max_tokens=0)
    written = read(reader_for(kinds.byte_level()), max_thinking_tokens=7, thinking_start="the", thinking_end="e.")
    assert written.thinking == ThinkingLimit(start=tokens("the"), end=tokens("e."), max_tokens=7)


@pytest.mark.parametrize(
    ("params", "grammar"),
    [
        ({"json_schema": '{"type": "object"}'}, Grammar(kind=GrammarKind.JSON_SCHEMA, text='{"type": "object"}')),
        ({"json_object": True}, Grammar(kind=GrammarKind.JSON_SCHEMA, text='{"type":"object"}')),
        ({"json_object": False}, None),
        ({"regex": "[a-z]+"}, Grammar(kind=GrammarKind.REGEX, text="[a-z]+")),
        ({"grammar": 'start: "a"'}, Grammar(kind=GrammarKind.LARK, text='start: "a"')),
        ({"choice": {"choices": ["ja", "é", "ja"]}}, Grammar(kind=GrammarKind.CHOICE, text='["ja", "é"]')),
    ],
)
def test_constraints_become_grammars(params: dict[str, Any], grammar: Grammar | None) -> None:
    assert read(**params).grammar == grammar


DEEP = json.dumps(json.loads('{"items":' * 40 + "1" + "}" * 40))
WIDE = json.dumps({"properties": {f"p{place}": {} for place in range(257)}})
BAD: list[tuple[dict[str, Any], type[tree.RequestError], str, str]] = [
    ({"presence_penalty": 2.5}, tree.InvalidField, "presence_penalty", "is 2.5: must be -2 to 2"),
    ({"frequency_penalty": math.nan}, tree.InvalidField, "frequency_penalty", "is nan"),
    ({"repetition_penalty": -1.0}, tree.InvalidField, "repetition_penalty", "above 0 and at most 2"),
    ({"repetition_penalty": 2.1}, tree.InvalidField, "repetition_penalty", "is 2.1"),
    ({"min_p": 1.0}, tree.InvalidField, "min_p", "below 1"),
    ({"typical_p": 1.1}, tree.InvalidField, "typical_p", "above 0 and at most 1"),
    ({"logit_bias": {-1: 1.0}}, tree.InvalidField, "logit_bias[-1]", "not negative"),
    ({"logit_bias": {VOCAB: 1.0}}, tree.TokenOutOfRange, "logit_bias[0]", f"0 to {VOCAB - 1}"),
    ({"logit_bias": {3: 101.0}}, tree.InvalidField, "logit_bias[3]", "is 101.0: must be -100 to 100"),
    ({"logit_bias": {3: math.inf}}, tree.InvalidField, "logit_bias[3]", "is inf"),
    ({"logit_bias": dict.fromkeys(range(1025), 1.0)}, tree.InvalidField, "logit_bias", "at most 1024"),
    ({"allowed_token_ids": [VOCAB]}, tree.TokenOutOfRange, "allowed_token_ids[0]", "vocabulary"),
    ({"allowed_token_ids": [1] * 20_000}, tree.InvalidField, "allowed_token_ids", "at most 16384"),
    ({"forced_token_ids": [VOCAB]}, tree.TokenOutOfRange, "forced_token_ids[0]", "vocabulary"),
    ({"forced_token_ids": [1] * 2000}, tree.InvalidField, "forced_token_ids", "at most 1024"),
    ({"logprobs": 21}, tree.InvalidField, "logprobs", "is 21: must be 0 to 20"),
    ({"logprobs": -1}, tree.InvalidField, "logprobs", "is -1"),
    ({"prompt_logprobs": 6}, tree.InvalidField, "prompt_logprobs", "must be 0 to 5"),
    ({"bad_words": ["a"] * 65}, tree.InvalidField, "bad_words", "at most 64"),
    ({"bad_words": ["a", "x" * 65]}, tree.InvalidField, "bad_words[1]", "is 65 bytes long"),
    ({"bad_words": [""]}, tree.InvalidField, "bad_words[0]", "is 0 bytes long"),
    ({"bad_words": ["  "]}, tree.InvalidField, "bad_words[0]", "is blank"),
    ({"thinking_end": "x"}, tree.InvalidField, "thinking_end", "without max_thinking_tokens"),
    ({"max_thinking_tokens": 1, "thinking_end": ""}, tree.InvalidField, "thinking_end", "is empty"),
    ({"max_thinking_tokens": 1, "thinking_start": "x" * 129}, tree.InvalidField, "thinking_start", "at most 128"),
    ({"regex": "("}, tree.InvalidField, "regex", "."),
    ({"grammar": "no grammar"}, tree.InvalidField, "grammar", "."),
    ({"json_schema": '{"type": 5}'}, tree.InvalidField, "json_schema", "."),
    ({"regex": ""}, tree.InvalidField, "regex", "must be 1 to 16384"),
    ({"grammar": "x" * 20_000}, tree.InvalidField, "grammar", "is 20000 bytes long"),
    ({"json_schema": "{"}, tree.InvalidField, "json_schema", "is not JSON"),
    ({"json_schema": "[" * 16_000}, tree.InvalidField, "json_schema", "is not JSON"),
    ({"json_schema": "[]"}, tree.InvalidField, "json_schema", "JSON object"),
    ({"json_schema": DEEP}, tree.InvalidField, "json_schema", "more than 32 brackets"),
    ({"json_schema": WIDE}, tree.InvalidField, "json_schema", "has 257 properties"),
    ({"choice": {}}, tree.InvalidField, "choice.choices", "send 1 to 256"),
    ({"choice": {"choices": ["a", ""]}}, tree.InvalidField, "choice.choices[1]", "is empty"),
    ({"choice": {"choices": ["x" * 20_000]}}, tree.InvalidField, "choice.choices", "at most 16384"),
]


@pytest.mark.parametrize(("params", "kind", "field", "text"), BAD, ids=lambda value: repr(value)[:30])
def test_what_is_out_of_bounds_is_refused_by_field(
    params: dict[str, Any], kind: type[tree.RequestError], field: str, text: str
) -> None:
    with pytest.raises(kind, match=text) as caught:
        read(**params)
    assert type(caught.value) is kind
    assert caught.value.field == f"sampling_params.{field}"
    assert len(str(caught.value)) < 300


def test_a_tokenizer_without_thinking_tokens_refuses_a_limit_in_one_line() -> None:
    with pytest.raises(tree.InvalidField, match="thinking_start: the model's tokenizer has no token <think>") as caught:
        read(reader_for(kinds.byte_level()), max_thinking_tokens=3)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("count", [9, 1000])
def test_too_many_choices_are_refused(count: int) -> None:
    with pytest.raises(tree.InvalidField, match="must be 1 to 8"):
        READER.choices(pb.SamplingParams(n=count))


WORDS = st.sampled_from(["type", "properties", "items"])
SCHEMAS = st.recursive(st.booleans() | WORDS, lambda inner: st.dictionaries(WORDS, inner) | st.lists(inner))


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=40) | SCHEMAS.map(json.dumps))
def test_whatever_a_schema_is_it_is_taken_or_refused(text: str) -> None:
    try:
        grammar = read(json_schema=text).grammar
    except tree.InvalidField:
        return
    assert grammar == Grammar(kind=GrammarKind.JSON_SCHEMA, text=text)
