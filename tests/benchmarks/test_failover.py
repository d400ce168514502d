"""Rows of `baton bench failover` and `serve`, from figures made up."""

import pytest

from benchmarks import failover
from benchmarks.serve import p99
from benchmarks.worker_breaker import Disturbed, equal_tokens


def _disturbed(*, detected_s: float = 0.1, resumed_s: float = 0.4, equal: int = 64, fenced_s: float = 0.5) -> Disturbed:
    return Disturbed(
        detected_s=detected_s,
        resumed_s=resumed_s,
        scratch_s=2.0,
        cached_s=0.5,
        equal_tokens=equal,
        expected_tokens=64,
        attempts=2,
        late_tokens=0,
        fenced_s=fenced_s,
    )


def test_the_rows_are_the_cases() -> None:
    rows = [*failover.kill_rows([_disturbed()] * 3), *failover.stop_rows([_disturbed()] * 2)]
    assert tuple(row.case for row in rows) == failover.CASES
    assert all(row.met for row in rows if row.aim is not None)


def test_one_slow_detection_misses_the_aim() -> None:
    detected, *_ = failover.kill_rows([_disturbed(), _disturbed(detected_s=1.2), _disturbed()])
    assert detected.value == pytest.approx(1200)
    assert detected.met is False


def test_resuming_in_more_than_half_of_a_restart_misses_the_aim() -> None:
    _, resumed, *_ = failover.kill_rows([_disturbed(resumed_s=1.1)])
    assert resumed.met is False


def test_one_token_that_is_lost_misses_the_aim() -> None:
    *_, tokens = failover.kill_rows([_disturbed(), _disturbed(equal=63)])
    assert (tokens.value, tokens.against_value, tokens.met) == (127, 128, False)


@pytest.mark.parametrize(
    ("tokens", "equal"),
    [([1, 2, 3, 4], 4), ([1, 2, 4], 2), ([1, 2, 3], 3), ([1, 2, 3, 4, 4], 3), ([1, 2, 2, 3, 4], 1)],
)
def test_tokens_count_up_to_the_first_that_is_not_in_its_place(tokens: list[int], equal: int) -> None:
    assert equal_tokens(tokens, [1, 2, 3, 4]) == equal


def test_the_p99_of_few_is_the_longest_and_of_many_leaves_one_in_a_hundred_out() -> None:
    assert p99([3.0, 9.0, 1.0]) == 9.0
    assert p99([float(value) for value in range(1, 201)]) == 198.0
