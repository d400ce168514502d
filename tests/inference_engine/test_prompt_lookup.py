"""Guesses from the text itself."""

from hypothesis import given
from hypothesis import strategies as st

from inference_engine.prompt_lookup import INDEXED_AT_ONCE, LONGEST_MATCH, NO_GUESSES, PLACES_TRIED, PromptLookup


def test_what_followed_the_same_tokens_before_is_guessed() -> None:
    assert PromptLookup().guess([1, 2, 3, 4, 5, 9, 1, 2, 3], 3) == ((4, 5, 9), 3)


def test_the_longest_agreement_wins_then_the_latest() -> None:
    text = [7, 1, 2, 50, 8, 1, 2, 60, 9, 1, 2, 70, 8, 1, 2]
    assert PromptLookup().guess(text, 1) == ((60,), 3)
    assert PromptLookup().guess([7, 1, 2, 50, 8, 1, 2, 60, 9, 1, 2], 1) == ((60,), 2)


def test_a_text_that_repeats_itself_is_continued_beyond_its_end() -> None:
    assert PromptLookup().guess([5, 6, 5, 6, 5, 6], 5).token_ids == (5, 6, 5, 6, 5)
    assert PromptLookup().guess([4, 4, 4], 3).token_ids == (4, 4, 4)


def test_nothing_is_guessed_of_what_never_stood_there() -> None:
    for text in ([], [1], [1, 2], [1, 2, 3, 4]):
        assert PromptLookup().guess(text, 4) == NO_GUESSES
    assert PromptLookup().guess([1, 2, 1, 2], 0) == NO_GUESSES


def test_a_long_text_is_indexed_over_several_calls() -> None:
    text = [*range(INDEXED_AT_ONCE + 100), 10, 11]
    lookup = PromptLookup()
    assert lookup.guess(text, 2) == NO_GUESSES
    assert lookup.guess(text, 2) == ((12, 13), 2)


def test_the_match_is_counted_up_to_a_limit() -> None:
    assert PromptLookup().guess([*range(40), *range(39)], 1) == ((39,), LONGEST_MATCH)


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(0, 30), st.integers(1, 6))
def test_an_index_that_grew_says_what_a_new_one_says(text: list[int], first: int, count: int) -> None:
    grown = PromptLookup()
    for end in range(min(first, len(text)), len(text) + 1):
        guesses = grown.guess(text[:end], count)
        assert guesses == PromptLookup().guess(text[:end], count)
        _check(text[:end], guesses.token_ids, guesses.matched)


def _check(text: list[int], guesses: tuple[int, ...], matched: int) -> None:
    """Check that the guesses follow a place before which so many tokens agree, and that no place tried agrees more."""
    if not guesses:
        assert not any(text[place - 2 : place] == text[-2:] for place in range(2, len(text)))
        return
    whole = text + list(guesses)
    places = [
        place
        for place in range(matched, len(text))
        if text[place - matched : place] == text[len(text) - matched :]
        and all(whole[place + step] == guess for step, guess in enumerate(guesses))
    ]
    assert places
    latest = [place for place in range(2, len(text)) if text[place - 2 : place] == text[-2:]][-PLACES_TRIED:]
    longer = [
        place for place in latest if place > matched and text[place - matched - 1 : place] == text[-matched - 1 :]
    ]
    assert not longer or matched == LONGEST_MATCH
