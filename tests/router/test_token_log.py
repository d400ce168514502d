"""The log against a model: an answer, cut into attempts that repeat, lag and die."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster_core.errors import LegFailed
from cluster_core.identity import Attempt
from cluster_core.sampling import Sampling
from router.token_log import TokenLog


def sampling(max_tokens: int, *stop: int) -> Sampling:
    return Sampling(temperature=0.0, top_p=1.0, top_k=0, seed=0, max_tokens=max_tokens, stop_token_ids=frozenset(stop))


def test_tokens_of_the_current_attempt_are_taken_in_order() -> None:
    log = TokenLog(sampling(10))
    attempt = log.begin_attempt()
    assert log.accept(attempt, 0, [5]) == [5]
    assert log.accept(attempt, 1, [6, 7]) == [6, 7]
    assert log.accept(attempt, 1, [6, 7, 8]) == [8]
    assert (log.tokens, log.dropped_tokens, log.remaining) == ([5, 6, 7, 8], 2, 6)


def test_a_zombie_adds_nothing() -> None:
    log = TokenLog(sampling(10))
    zombie = log.begin_attempt()
    log.accept(zombie, 0, [5])
    heir = log.begin_attempt()
    assert log.accept(zombie, 1, [6, 7]) == []
    assert log.accept(heir, 0, [6]) == [6]
    assert (log.tokens, log.dropped_tokens) == ([5, 6], 2)


def test_a_gap_fails_the_attempt() -> None:
    log = TokenLog(sampling(10))
    with pytest.raises(LegFailed, match="skipped 2 tokens"):
        log.accept(log.begin_attempt(), 2, [7])


def test_a_token_told_twice_must_be_the_same() -> None:
    log = TokenLog(sampling(10))
    attempt = log.begin_attempt()
    log.accept(attempt, 0, [5])
    assert log.accept(attempt, 0, [5, 6]) == [6]
    assert log.dropped_tokens == 1
    with pytest.raises(LegFailed, match="differently"):
        log.accept(attempt, 0, [5, 7, 8])
    heir = log.begin_attempt()
    assert log.accept(heir, 0, [9]) == [9]
    with pytest.raises(LegFailed, match="differently"):
        log.accept(heir, 0, [8])
    assert log.tokens == [5, 6, 9]


def test_the_answer_ends_with_a_stop_token_or_by_its_length() -> None:
    stopped, full = TokenLog(sampling(10, 7)), TokenLog(sampling(2, 7))
    assert stopped.accept(stopped.begin_attempt(), 0, [5, 7, 8]) == [5, 7]
    assert (stopped.finish_reason, stopped.stop_token_id) == ("stop", 7)
    assert full.accept(full.begin_attempt(), 0, [5, 6, 8]) == [5, 6]
    assert (full.finish_reason, full.stop_token_id) == ("length", None)
    assert full.accept(full.attempt, 2, [9]) == []


def test_a_stop_string_takes_back_what_follows_it() -> None:
    log = TokenLog(sampling(3))
    log.accept(log.begin_attempt(), 0, [5, 6, 7])
    log.stop_after(1)
    assert (log.tokens, log.finish_reason) == ([5], "stop")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_whatever_the_attempts_do_the_answer_is_whole(data: st.DataObject) -> None:
    answer = data.draw(st.lists(st.integers(10, 20), min_size=1, max_size=12))
    log = TokenLog(sampling(len(answer)))
    starts: list[tuple[Attempt, int]] = []
    taken: list[int] = []
    for _ in range(data.draw(st.integers(1, 30))):
        if not starts or data.draw(st.booleans()):
            starts.append((log.begin_attempt(), len(log.tokens)))
        attempt, start = data.draw(st.sampled_from(starts))
        offset = data.draw(st.integers(0, len(answer) - start)) if start < len(answer) else 0
        tokens = answer[start + offset : start + offset + data.draw(st.integers(0, 4))]
        before = len(log.tokens)
        try:
            taken += log.accept(attempt, offset, tokens)
        except LegFailed:
            assert attempt == log.attempt
            assert start + offset > before
        assert taken == log.tokens == answer[: len(taken)]
    assert (log.finish_reason == "length") == (len(taken) == len(answer))
