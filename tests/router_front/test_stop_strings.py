from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from router.stop_strings import StopMatcher

texts = st.text(alphabet="abc\n", max_size=24)
stops = st.lists(st.text(alphabet="abc\n", min_size=1, max_size=5), max_size=4)


def naive(text: str, stops: list[str]) -> tuple[int, str] | None:
    """Return where the answer ends: the first place where some stop string is complete, the longest that is."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return end, max(complete, key=len)
    return None


def cut(text: str, places: list[int]) -> list[str]:
    bounds = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[start:end] for start, end in pairwise(bounds)]


@given(texts, stops, st.lists(st.integers(0, 100), max_size=12), st.booleans())
@settings(max_examples=250)
def test_any_cut_of_the_text_gives_what_a_search_of_the_whole_gives(
    text: str, stops: list[str], places: list[int], include_stop: bool
) -> None:
    matcher = StopMatcher(stops, include_stop=include_stop)
    shown, matched = "", None
    for piece in cut(text, places):
        passed = matcher.feed(piece)
        shown += passed.text
        matched = passed.matched
        if matched is not None:
            break
    else:
        shown += matcher.finish()
    expected = naive(text, stops)
    if expected is None:
        assert (shown, matched) == (text, None)
    else:
        end, stop = expected
        assert matched == stop
        assert shown == text[: end if include_stop else end - len(stop)]


@given(texts, stops)
def test_only_what_could_become_a_stop_string_is_held(text: str, stops: list[str]) -> None:
    matcher = StopMatcher(stops, include_stop=False)
    passed = matcher.feed(text)
    if passed.matched is None:
        held = matcher.finish()
        assert passed.text + held == text
        assert not held or any(stop.startswith(held) for stop in stops)


def test_a_beginning_that_comes_to_nothing_is_released() -> None:
    matcher = StopMatcher(["END"], include_stop=False)
    assert [matcher.feed(piece).text for piece in ("a", "E", "N", "x", "E")] == ["a", "", "", "ENx", ""]
    assert matcher.finish() == "E"


def test_a_stop_string_across_pieces_leaves_no_trace() -> None:
    matcher = StopMatcher(["\n\n"], include_stop=False)
    assert matcher.feed("done\n").text == "done"
    passed = matcher.feed("\nmore")
    assert (passed.text, passed.matched) == ("", "\n\n")


def test_without_stop_strings_nothing_is_held() -> None:
    assert StopMatcher([], include_stop=False).feed("text").text == "text"
