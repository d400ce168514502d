from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from router.text_stream import TextOptions, TextStream
from tests.router_front import tokenizers_for_tests as kinds

TOKENIZER = kinds.in_memory(kinds.byte_level())


def tokens(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False)


def stream(options: TextOptions, *feeds: Sequence[int]) -> tuple[str, str | None, int]:
    """Return all text, what stopped it, and how many tokens were used."""
    text_stream = TextStream(TOKENIZER, options)
    text, used = "", 0
    for token_ids in feeds:
        delta = text_stream.feed(token_ids)
        text, used = text + delta.text, used + delta.tokens_used
        if delta.stopped_by is not None:
            return text + text_stream.finish(), delta.stopped_by, used
    return text + text_stream.finish(), None, used


def test_without_options_all_text_comes_through() -> None:
    assert stream(TextOptions(), tokens("the 語 end")) == ("the 語 end", None, len(tokens("the 語 end")))


def test_tokens_after_the_one_that_completed_a_stop_string_are_not_used() -> None:
    token_ids = tokens("ab\n\ncd")
    assert stream(TextOptions(stop=("\n\n",)), token_ids) == ("ab", "\n\n", 4)
    assert stream(TextOptions(stop=("\n\n",), include_stop=True), token_ids) == ("ab\n\n", "\n\n", 4)


def test_a_stop_string_inside_one_token_cuts_the_tokens_text() -> None:
    assert stream(TextOptions(stop=("t",)), tokens("ath")) == ("a", "t", 2)


def test_a_stop_string_of_a_character_in_several_tokens_is_found() -> None:
    assert stream(TextOptions(stop=("語",)), tokens("a語b")) == ("a", "語", len(tokens("a語")))


def test_the_token_that_ends_the_answer_shows_no_text() -> None:
    ended = [*tokens("hi"), kinds.END_ID]
    keep = TextOptions(skip_special=False, stop_token_ids=frozenset({kinds.END_ID}))
    shown = TextOptions(skip_special=False, include_stop=True, stop_token_ids=frozenset({kinds.END_ID}))
    ignored = TextOptions(skip_special=False)
    assert stream(keep, ended) == ("hi", None, 3)
    assert stream(shown, ended) == ("hi<|end|>", None, 3)
    assert stream(ignored, ended) == ("hi<|end|>", None, 3)
    assert stream(TextOptions(), ended) == ("hi", None, 3)


def test_held_text_comes_at_the_end() -> None:
    assert stream(TextOptions(stop=("END",)), tokens("x E")) == ("x E", None, 3)


@given(
    st.lists(st.integers(0, kinds.BYTE_LEVEL_SIZE - 1), max_size=40),
    st.lists(st.sampled_from(["th", "é", "a", "b\n", "語", "��"]), max_size=2),
    st.integers(1, 5),
)
@settings(max_examples=100)
def test_how_tokens_are_grouped_changes_nothing(token_ids: list[int], stop: list[str], size: int) -> None:
    options = TextOptions(stop=tuple(stop))
    groups = [token_ids[start : start + size] for start in range(0, len(token_ids), size)]
    assert stream(options, *groups) == stream(options, *([token_id] for token_id in token_ids))
