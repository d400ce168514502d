from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.detokenizer import MAX_WINDOW_TOKENS, REPLACEMENT, Detokenizer
from router.tokenizer import Tokenizer
from tests.router_front import tokenizers_for_tests as kinds

BYTE_LEVEL = kinds.in_memory(kinds.byte_level())
BYTE_FALLBACK = kinds.in_memory(kinds.byte_fallback())
TEXTS = ("plain the text", "né 語語 は", "👩‍👩‍👧‍👦 and 🏳️‍🌈", "a a  hello  a", " leading", "\n\t tabs")


def deltas_of(tokenizer: Tokenizer, token_ids: Sequence[int], *, skip_special: bool = True) -> list[str]:
    detokenizer = Detokenizer(tokenizer, skip_special=skip_special)
    return [*(detokenizer.feed(token_id) for token_id in token_ids), detokenizer.finish()]


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, BYTE_FALLBACK])
@pytest.mark.parametrize("text", TEXTS)
def test_deltas_are_whole_characters_and_join_to_the_text(tokenizer: Tokenizer, text: str) -> None:
    token_ids = tokenizer.encode(text, add_special_tokens=False)
    deltas = deltas_of(tokenizer, token_ids)
    assert "".join(deltas) == tokenizer.decode(token_ids, skip_special=True)
    assert not any(REPLACEMENT in delta for delta in deltas)
    assert deltas[-1] == ""


@given(
    st.lists(st.integers(0, kinds.BYTE_LEVEL_SIZE + 3), max_size=MAX_WINDOW_TOKENS),
    st.booleans(),
)
@settings(max_examples=150)
def test_any_tokens_of_a_byte_level_vocabulary_join_to_the_whole_decode(
    token_ids: list[int], skip_special: bool
) -> None:
    deltas = deltas_of(BYTE_LEVEL, token_ids, skip_special=skip_special)
    assert "".join(deltas) == BYTE_LEVEL.decode(token_ids, skip_special=skip_special)


@given(
    st.lists(st.text(max_size=6) | st.sampled_from([" ", "a", "</s>", "語"]), max_size=8).map("".join), st.booleans()
)
@settings(max_examples=150)
def test_any_text_in_byte_fallback_tokens_joins_to_the_whole_decode(text: str, skip_special: bool) -> None:
    token_ids = BYTE_FALLBACK.encode(text, add_special_tokens=False)
    deltas = deltas_of(BYTE_FALLBACK, token_ids, skip_special=skip_special)
    assert "".join(deltas) == BYTE_FALLBACK.decode(token_ids, skip_special=skip_special)


def test_a_character_cut_off_at_the_end_becomes_a_replacement() -> None:
    token_ids = BYTE_LEVEL.encode("語", add_special_tokens=False)
    assert deltas_of(BYTE_LEVEL, token_ids[:-1]) == ["", REPLACEMENT]


def test_a_plain_character_is_never_held() -> None:
    token_ids = BYTE_LEVEL.encode("hello", add_special_tokens=False)
    assert deltas_of(BYTE_LEVEL, token_ids) == ["h", "e", "l", "l", "o", ""]


def test_a_space_after_a_skipped_special_token_is_kept() -> None:
    backend = kinds.byte_fallback()
    vocabulary = backend.get_vocab()
    token_ids = [vocabulary["he"], vocabulary["</s>"], vocabulary["</s>"], vocabulary["▁a"]]
    assert "".join(deltas_of(BYTE_FALLBACK, token_ids)) == "he a"


def test_bytes_without_end_are_given_out_and_work_stays_bounded() -> None:
    decoded: list[int] = []

    class Counting(Tokenizer):
        def decode(self, token_ids: Sequence[int], *, skip_special: bool) -> str:
            decoded.append(len(token_ids))
            return super().decode(token_ids, skip_special=skip_special)

    continuation = 255  # the byte-level alphabet's last symbol stands for no beginning of a character
    deltas = deltas_of(Counting(kinds.byte_level()), [continuation] * 600)
    assert max(decoded) <= MAX_WINDOW_TOKENS + 1
    assert len("".join(deltas)) == 600
    assert sum(map(bool, deltas)) >= 4


def test_the_window_stays_short_over_a_long_answer() -> None:
    detokenizer = Detokenizer(BYTE_LEVEL, skip_special=True)
    for token_id in BYTE_LEVEL.encode("語 the é " * 200, add_special_tokens=False):
        detokenizer.feed(token_id)
        assert len(detokenizer._window) < 12
