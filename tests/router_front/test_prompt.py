import math
import struct
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from cluster_core import errors as tree
from cluster_core.identity import RequestId
from cluster_core.layout import ModelIdentity
from cluster_core.sampling import Sampling
from cluster_rpc.v1 import generation_pb2 as pb
from router.chat_template import ChatTemplate
from router.prompt import PreparedRequest, RequestPreparer
from router.text_stream import TextOptions
from router.tokenizer import LONG_TEXT_CHARS, Tokenizer
from router.written_numbers import written_number
from tests.router_front import tokenizers_for_tests as kinds

VOCAB = kinds.BYTE_LEVEL_SIZE
CONTEXT = 64
BOS = VOCAB - 2
TOKENIZER = kinds.in_memory(kinds.byte_level())
MODEL = ModelIdentity(name="tiny", fingerprint="00", vocab_size=VOCAB, max_context_tokens=CONTEXT)
PREPARER = RequestPreparer(
    tokenizer=TOKENIZER,
    model=MODEL,
    served_name="demo",
    eos_token_ids=frozenset({kinds.END_ID}),
    chat_template=ChatTemplate("<|bos|>{% for m in messages %}{{ m.role[0] ~ m.content }}{% endfor %}", {}),
)


def prepare(preparer: RequestPreparer = PREPARER, **fields: Any) -> PreparedRequest:
    return preparer.prepare(pb.GenerateRequest(**fields), lambda: RequestId("minted"), lambda: 99)


def test_a_bare_prompt_gets_every_default() -> None:
    stops = frozenset({kinds.END_ID})
    sampling = Sampling(
        temperature=1.0, top_p=1.0, top_k=0, seed=99, max_tokens=16, stop_token_ids=stops, answer_start=3
    )
    assert prepare(text="the") == PreparedRequest(
        request_id=RequestId("minted"),
        prompt_token_ids=(BOS, *TOKENIZER.encode("the", add_special_tokens=False)),
        sampling=sampling,
        text=TextOptions(stop_token_ids=stops),
        cache_salt="",
        priority=0,
        seed=99,
    )


def test_every_field_is_taken_over() -> None:
    prepared = prepare(
        request_id="My-request_1.a",
        model="demo",
        tokenized={"input_ids": [1, 2, 3]},
        cache_salt="tenant",
        priority=7,
        sampling_params={
            "temperature": 0.7,
            "top_p": 0.9,
            "top_k": 5,
            "max_tokens": 61,
            "stop": ["a", "b", "a"],
            "stop_token_ids": [4],
            "ignore_eos": True,
            "seed": -5,
            "include_stop_str_in_output": True,
            "skip_special_tokens": False,
            "min_tokens": 3,
            "n": 2,
        },
    )
    assert prepared == PreparedRequest(
        request_id=RequestId("My-request_1.a"),
        prompt_token_ids=(1, 2, 3),
        sampling=Sampling(
            temperature=0.7,
            top_p=0.9,
            top_k=5,
            seed=-5,
            max_tokens=61,
            stop_token_ids=frozenset({4}),
            answer_start=3,
            min_tokens=3,
        ),
        choices=2,
        text=TextOptions(stop=("a", "b"), include_stop=True, skip_special=False, stop_token_ids=frozenset({4})),
        cache_salt="tenant",
        priority=7,
        seed=-5,
    )


@pytest.mark.parametrize(("written", "skipped"), [({}, True), ({"skip_special_tokens": True}, True)])
def test_special_tokens_are_skipped_unless_the_client_refuses(written: dict[str, bool], skipped: bool) -> None:
    assert prepare(text="a", sampling_params=written).text.skip_special is skipped


def test_a_chat_is_rendered_and_gets_no_second_beginning() -> None:
    messages = [{"role": "system", "content": ""}, {"role": "user", "content": "hi"}]
    prompt = prepare(chat={"messages": messages}).prompt_token_ids
    assert prompt == (BOS, *TOKENIZER.encode("suhi", add_special_tokens=False))


def test_the_models_own_name_is_understood() -> None:
    assert prepare(text="a", model="tiny").prompt_token_ids == prepare(text="a").prompt_token_ids


def test_an_unset_max_tokens_shrinks_to_the_room_that_is_left() -> None:
    assert prepare(tokenized={"input_ids": [1] * (CONTEXT - 3)}).sampling.max_tokens == 3


def test_top_k_of_the_whole_vocabulary_means_all_tokens() -> None:
    assert prepare(text="a", sampling_params={"top_k": VOCAB}).sampling.top_k == 0


def test_zero_values_that_mean_something() -> None:
    prepared = prepare(text="a", sampling_params={"temperature": 0.0, "seed": 0})
    assert (prepared.sampling.temperature, prepared.seed) == (0.0, 0)


def chat(*messages: tuple[str, str]) -> dict[str, Any]:
    return {"chat": {"messages": [{"role": role, "content": content} for role, content in messages]}}


BAD: list[tuple[dict[str, Any], type[tree.RequestError], str, str]] = [
    ({}, tree.InvalidField, "input", "send one of tokenized, text, chat and fim"),
    ({"text": ""}, tree.InvalidField, "text", "is empty"),
    ({"text": "a\0b"}, tree.InvalidField, "text", "NUL character at position 1"),
    ({"text": "語" * 400_000}, tree.InvalidField, "text", "at most 1048576"),
    ({"text": "a" * CONTEXT}, tree.ContextTooLong, "text", f"has {CONTEXT + 1} tokens: at most {CONTEXT - 1}"),
    ({"tokenized": {}}, tree.InvalidField, "tokenized.input_ids", "at least one token"),
    ({"tokenized": {"input_ids": [1, VOCAB, 2]}}, tree.TokenOutOfRange, "tokenized.input_ids[1]", f"0 to {VOCAB - 1}"),
    ({"tokenized": {"input_ids": [2**32 - 1]}}, tree.TokenOutOfRange, "tokenized.input_ids[0]", "4294967295"),
    ({"tokenized": {"input_ids": [1] * CONTEXT}}, tree.ContextTooLong, "tokenized.input_ids", "leave room"),
    ({"chat": {}}, tree.InvalidField, "chat.messages", "is empty"),
    (chat(("user", "a"), ("cook", "b")), tree.InvalidField, "chat.messages[1].role", "one of system, user, assistant"),
    (chat(("", "a")), tree.InvalidField, "chat.messages[0].role", "''"),
    (chat(("user", "a\0")), tree.InvalidField, "chat.messages[0].content", "NUL"),
    (chat(("user", "x" * 262_145)), tree.InvalidField, "chat.messages[0].content", "at most 262144"),
    (chat(*[("user", "x" * 262_144)] * 5), tree.InvalidField, "chat.messages", "at most 1048576"),
    (chat(*[("user", "x")] * 257), tree.InvalidField, "chat.messages", "at most 256"),
    (chat(("user", "x" * CONTEXT)), tree.ContextTooLong, "chat.messages", "leave room"),
    ({"text": "a", "request_id": "a b"}, tree.InvalidField, "request_id", "1 to 64 characters"),
    ({"text": "a", "request_id": "a" * 65}, tree.InvalidField, "request_id", "1 to 64 characters"),
    ({"text": "a", "request_id": "a\n"}, tree.InvalidField, "request_id", "1 to 64 characters"),
    ({"text": "a", "model": "gpt-5"}, tree.NotServed, "model", "'gpt-5' is not served here: 'demo' is"),
    ({"text": "a", "model": "x" * 100_000}, tree.NotServed, "model", "is not served"),
    ({"text": "a", "cache_salt": "語" * 22}, tree.InvalidField, "cache_salt", "is 66 bytes long: at most 64"),
    ({"text": "a", "priority": 8}, tree.InvalidField, "priority", r"0 \(first\) to 7 \(last\)"),
]
BAD_SAMPLING: list[tuple[dict[str, Any], type[tree.RequestError], str, str]] = [
    ({"temperature": math.nan}, tree.InvalidField, "temperature", r"is nan: must be 0 \(greedy\) to 2"),
    ({"temperature": math.inf}, tree.InvalidField, "temperature", "is inf"),
    ({"temperature": -0.1}, tree.InvalidField, "temperature", "is -0.1"),
    ({"temperature": 2.5}, tree.InvalidField, "temperature", "is 2.5"),
    ({"top_p": math.nan}, tree.InvalidField, "top_p", "is nan: must be above 0 and at most 1"),
    ({"top_p": 1.5}, tree.InvalidField, "top_p", "is 1.5"),
    ({"top_p": -1.0}, tree.InvalidField, "top_p", "is -1"),
    ({"max_tokens": 0}, tree.InvalidField, "max_tokens", "at least 1"),
    ({"max_tokens": CONTEXT - 1}, tree.ContextTooLong, "max_tokens", f"leaves room for {CONTEXT - 2}"),
    ({"max_tokens": 2**32 - 1}, tree.ContextTooLong, "max_tokens", "is 4294967295"),
    ({"stop": [""]}, tree.InvalidField, "stop[0]", "must be 1 to 128"),
    ({"stop": ["a", "x" * 129]}, tree.InvalidField, "stop[1]", "is 129 bytes long"),
    ({"stop": ["x"] * 17}, tree.InvalidField, "stop", "at most 16"),
    ({"stop": ["x" * 128] * 9}, tree.InvalidField, "stop", "at most 1024"),
    ({"stop_token_ids": [1] * 65}, tree.InvalidField, "stop_token_ids", "at most 64"),
    ({"stop_token_ids": [0, VOCAB]}, tree.TokenOutOfRange, "stop_token_ids[1]", "not in the vocabulary"),
]
BAD += [
    ({"text": "a", "sampling_params": params}, kind, f"sampling_params.{field}", text)
    for params, kind, field, text in BAD_SAMPLING
]


@pytest.mark.parametrize(("fields", "kind", "field", "text"), BAD, ids=lambda value: repr(value)[:40])
def test_bad_input_is_refused_by_field(
    fields: dict[str, Any], kind: type[tree.RequestError], field: str, text: str
) -> None:
    with pytest.raises(kind, match=text) as caught:
        prepare(**fields)
    assert type(caught.value) is kind
    assert caught.value.field == field
    assert len(str(caught.value)) < 300


def test_a_hopelessly_long_text_is_refused_by_its_beginning() -> None:
    tokenised: list[int] = []

    class Counting(Tokenizer):
        def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
            tokenised.append(len(text))
            return super().encode(text, add_special_tokens=add_special_tokens)

    with pytest.raises(tree.ContextTooLong, match="text: is far longer than the 63 tokens"):
        prepare(replace(PREPARER, tokenizer=Counting(kinds.byte_level())), text="the " * 200_000)
    assert sum(tokenised) < 1000


def test_long_texts_are_tokenised_as_short_ones_are() -> None:
    text = "the 語 " * (LONG_TEXT_CHARS // 4)
    halves = [
        TOKENIZER.encode(half, add_special_tokens=False) for half in (text[: len(text) // 2], text[len(text) // 2 :])
    ]
    assert len(text) > LONG_TEXT_CHARS
    assert TOKENIZER.encode(text, add_special_tokens=True) == [BOS, *halves[0], *halves[1]]


def test_a_chat_without_a_template_is_refused() -> None:
    bare = RequestPreparer(tokenizer=TOKENIZER, model=MODEL, served_name="demo", eos_token_ids=frozenset())
    with pytest.raises(tree.InvalidField, match="chat: the model has no chat template"):
        prepare(bare, **chat(("user", "hi")))


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_a_number_means_the_same_32_bits_and_is_stable(value: float) -> None:
    written = written_number(value)
    assert struct.pack("f", written) == struct.pack("f", value)
    assert written_number(written) == written


@pytest.mark.parametrize("number", [0.1, 0.7, 0.95, 0.999, 1e-6, 1.0, 0.0])
def test_a_number_is_the_one_that_was_written(number: float) -> None:
    (wire,) = struct.unpack("f", struct.pack("f", number))
    assert written_number(wire) == number


@given(st.binary(max_size=80))
def test_random_requests_are_prepared_or_refused(raw: bytes) -> None:
    with suppress(DecodeError, tree.RequestError):
        PREPARER.prepare(pb.GenerateRequest.FromString(raw), lambda: RequestId("minted"), lambda: 1)
