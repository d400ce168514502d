"""Thinking limits and forced beginnings, token by token."""

from random import Random

import numpy as np
import pytest

from cluster_core.sampling import ThinkingLimit
from inference_engine.thinking import forced_token, grammar_start
from tests.inference_engine.sampling_cases import wish

THINK, END_A, END_B = 90, 91, 92


def forced(tokens: list[int], limit: ThinkingLimit, answer_start: int = 0) -> int | None:
    sampling = wish(thinking=limit, answer_start=answer_start)
    return forced_token(sampling, len(tokens), np.array(tokens, dtype=np.int64))


def limit_of(max_tokens: int, start: tuple[int, ...] = (THINK,)) -> ThinkingLimit:
    return ThinkingLimit(start=start, end=(END_A, END_B), max_tokens=max_tokens)


def test_the_end_is_forced_token_by_token_when_the_limit_is_reached() -> None:
    limit = limit_of(2)
    tokens = [1, THINK]
    seen = []
    for _ in range(6):
        must = forced(tokens, limit)
        seen.append(must)
        tokens.append(5 if must is None else must)
    assert seen == [None, None, END_A, END_B, None, None]


def test_an_end_in_time_is_left_alone_and_a_begun_one_is_completed() -> None:
    assert forced([THINK, 5, END_A, END_B, 5, 5, 5], limit_of(2)) is None
    assert forced([THINK, 5, END_A], limit_of(2)) == END_B
    assert forced([THINK, END_A, 5], limit_of(2)) == END_A


def test_nothing_is_forced_where_nothing_thinks() -> None:
    assert forced([1, 2, 3], limit_of(0)) is None
    assert forced([THINK], limit_of(0)) == END_A


def test_beginning_again_gains_no_time_but_later_thinking_has_its_own() -> None:
    assert forced([THINK, 1, THINK], limit_of(2)) == END_A
    assert forced([THINK, 1, END_A, END_B, THINK, 1], limit_of(2)) is None
    assert forced([THINK, 1, END_A, END_B, THINK, 1, 1], limit_of(2)) == END_A


def test_the_prompt_may_begin_it_but_only_the_answer_counts() -> None:
    assert forced([THINK, 1, 2, 3], limit_of(2), answer_start=3) is None
    assert forced([THINK, 1, 2, 3, 4], limit_of(2), answer_start=3) == END_A
    assert forced([THINK, 1, END_A, END_B, 4, 5, 6], limit_of(2), answer_start=4) is None


def test_without_a_start_the_answer_begins_with_thinking_and_thinks_once() -> None:
    limit = limit_of(1, start=())
    assert forced([THINK, END_A, END_B], limit, answer_start=3) is None
    assert forced([1, 2, 3], limit, answer_start=2) == END_A
    assert forced([1, 2, END_A, END_B, 5, 5, 5], limit, answer_start=2) is None


def test_where_the_grammar_begins() -> None:
    def start(tokens: list[int], limit: ThinkingLimit | None, answer_start: int) -> int | None:
        sampling = wish(thinking=limit, answer_start=answer_start)
        return grammar_start(sampling, np.array(tokens, dtype=np.int64))

    assert start([1, 2, 3], None, 1) == 1
    assert start([1, 2, 3], limit_of(5), 1) == 1
    assert start([THINK, 2, 3], limit_of(5), 1) is None
    assert start([THINK, 2, END_A, END_B, 4], limit_of(5), 1) == 4
    assert start([1, 2, END_A, END_B, 4], limit_of(5, start=()), 1) == 4
    assert start([1, END_A], limit_of(5, start=()), 1) is None


@pytest.mark.parametrize("seed", range(20))
def test_no_stretch_of_thinking_is_longer_than_its_limit(seed: int) -> None:
    random = Random(seed)  # noqa: S311  # no secret
    end = random.choice([(1,), (1, 2), (1, 1, 2), (1, 2, 1, 2, 3)])
    limit = ThinkingLimit(start=random.choice([(), (0,)]), end=end, max_tokens=random.randint(0, 6))
    tokens: list[int] = []
    for _ in range(80):
        must = forced(tokens, limit)
        tokens.append(random.randrange(4) if must is None else must)
    thought, on = 0, not limit.start
    for place, token in enumerate(tokens, start=1):
        if on:
            thought += 1
            assert thought <= limit.max_tokens + len(end)
            # what begins the thinking is no part of its end
            on = thought < len(end) or tuple(tokens[place - len(end) : place]) != end
            if not on and not limit.start:
                break
        elif (token,) == limit.start:
            thought, on = 0, True
