"""Prompts for a gap: the right tokens in the right order, and never a special one out of a user's text."""

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, normalizers

from cluster_core.errors import ContextTooLong, InvalidField
from cluster_core.hash_chain import chain_hashes
from cluster_core.layout import ModelIdentity
from cluster_rpc.v1 import generation_pb2 as pb
from router.fill_in_middle import FillInMiddle
from router.prompt import RequestPreparer
from tests.router_front import tokenizers_for_tests as kinds

QWEN = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
STARCODER = ("<fim_prefix>", "<fim_suffix>", "<fim_middle>")
DEEPSEEK = ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>")  # noqa: RUF001  # written so
PRE, SUF, MID = range(kinds.BYTE_LEVEL_SIZE, kinds.BYTE_LEVEL_SIZE + 3)
BOS = kinds.BYTE_LEVEL_SIZE - 2


def with_sentinels(names: tuple[str, ...], *, special: bool) -> tokenizers.Tokenizer:
    backend = kinds.byte_level()
    backend.add_tokens([AddedToken(name, special=special) for name in names])
    return backend


PLAIN = kinds.in_memory(kinds.byte_level())
FILLER = FillInMiddle(kinds.in_memory(with_sentinels(QWEN, special=False)))


def tokens(text: str) -> list[int]:
    return PLAIN.encode(text, add_special_tokens=False)


@pytest.mark.parametrize("names", [QWEN, STARCODER])
@pytest.mark.parametrize("special", [True, False])
def test_the_suffix_goes_first_unless_the_model_knows_the_other_order_alone(
    names: tuple[str, ...], special: bool
) -> None:
    filler = FillInMiddle(kinds.in_memory(with_sentinels(names, special=special)))
    before, after = tokens("def f("), tokens("):\n  pass")
    suffix_first = filler.prompt("def f(", "):\n  pass", prefix_first=False)
    assert suffix_first == [BOS, PRE, SUF, *after, MID, *before]
    assert filler.prompt("def f(", "):\n  pass", prefix_first=True) == [BOS, PRE, *before, SUF, *after, MID]


def test_a_token_for_the_gap_itself_puts_the_prefix_first() -> None:
    filler = FillInMiddle(kinds.in_memory(with_sentinels(DEEPSEEK, special=True)))
    assert filler.prompt("a", "b", prefix_first=False) == [BOS, PRE, *tokens("a"), SUF, *tokens("b"), MID]


def test_a_tokenizer_without_such_tokens_refuses_in_one_line() -> None:
    with pytest.raises(InvalidField, match="fim: the model's tokenizer has no fill-in-the-middle tokens") as caught:
        FillInMiddle(PLAIN).prompt("a", "b", prefix_first=False)
    assert "\n" not in str(caught.value)


TEXTS = st.lists(st.sampled_from([*QWEN, *kinds.SPECIAL, "<", "|fim_", "prefix|>", "the", " é語", "<<|end|>"])).map(
    "".join
)


@given(TEXTS, TEXTS, st.booleans())
def test_text_that_spells_a_special_token_stays_text(prefix: str, suffix: str, prefix_first: bool) -> None:
    prompt = FILLER.prompt(prefix, suffix, prefix_first=prefix_first)
    assert [token_id for token_id in prompt if token_id >= BOS] == [BOS, PRE, SUF, MID]
    inner = [token_id for token_id in prompt if token_id < BOS]
    whole = prefix + suffix if prefix_first else suffix + prefix
    assert PLAIN.decode(inner, skip_special=False) == whole


def test_a_normaliser_cannot_make_a_special_token_of_other_characters() -> None:
    backend = kinds.byte_level()
    backend.normalizer = normalizers.NFKC()
    backend.add_tokens([AddedToken(name, special=True, normalized=True) for name in STARCODER])
    prompt = FillInMiddle(kinds.in_memory(backend)).prompt("＜fim_suffix＞", "", prefix_first=False)  # noqa: RUF001
    assert [token_id for token_id in prompt if token_id >= BOS] == [BOS, PRE, SUF, MID]


@pytest.mark.parametrize("typed", range(1, 20, 3))
def test_typing_at_the_cursor_keeps_the_blocks_of_suffix_and_prefix(typed: int) -> None:
    suffix, prefix, more = "the suffix " * 9, "the prefix " * 9, "return sorted(the)"
    root, size = b"r" * 16, 4

    def blocks(prefix: str, *, prefix_first: bool) -> list[bytes]:
        return list(chain_hashes(root, FILLER.prompt(prefix, suffix, prefix_first=prefix_first), size))

    def kept(*, prefix_first: bool) -> tuple[int, int]:
        old, new = (blocks(text, prefix_first=prefix_first) for text in (prefix, prefix + more[:typed]))
        same = sum(one == other for one, other in zip(old, new, strict=False))
        return same, len(old)

    same, all_old = kept(prefix_first=False)
    assert same >= all_old - 1, "all but the block in which the last tokens changed"
    same, all_old = kept(prefix_first=True)
    assert same <= all_old * 2 / 3, "in the other order, the suffix's blocks are lost"


def preparer(context: int = 4096) -> RequestPreparer:
    backend = with_sentinels(QWEN, special=False)
    model = ModelIdentity(name="tiny", fingerprint="00", vocab_size=MID + 1, max_context_tokens=context)
    tokenizer = kinds.in_memory(backend)
    return RequestPreparer(tokenizer=tokenizer, model=model, served_name="tiny", eos_token_ids=frozenset())


def prepare(prefix: str, suffix: str, context: int = 4096) -> tuple[int, ...]:
    request = pb.GenerateRequest(request_id="r", fim=pb.FimInput(prefix=prefix, suffix=suffix))
    return preparer(context).prepare(request, lambda: "r", lambda: 1).prompt_token_ids  # type: ignore[arg-type,return-value]


def test_a_request_for_a_gap_is_prepared() -> None:
    assert prepare("ab", "c") == (BOS, PRE, SUF, *tokens("c"), MID, *tokens("ab"))
    assert prepare("", "c")[-1] == MID


def test_gaps_out_of_bounds_are_refused_by_field() -> None:
    for prefix, suffix, field in (("", "", "fim"), ("a\0", "b", "fim.prefix"), ("a", "b" * 1_048_577, "fim.suffix")):
        with pytest.raises(InvalidField) as caught:
            prepare(prefix, suffix)
        assert caught.value.field == field
    with pytest.raises(InvalidField, match="at most 1048576"):
        prepare("a" * 600_000, "b" * 600_000)
    with pytest.raises(ContextTooLong, match=r"fim\.suffix: is far longer"):
        prepare("a", "the " * 100_000, context=64)
    with pytest.raises(ContextTooLong, match="fim: has 64 tokens"):
        prepare("a" * 30, "b" * 30, context=64)
