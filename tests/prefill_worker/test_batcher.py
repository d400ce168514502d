"""How prompts share a step."""

from hypothesis import given
from hypothesis import strategies as st

from prefill_worker.batcher import share_budget


@given(st.lists(st.integers(1, 3000), max_size=20), st.integers(1, 2048), st.integers(1, 1024))
def test_shares_fit_and_the_oldest_always_moves(pending: list[int], budget: int, chunk: int) -> None:
    shares = share_budget(pending, budget, chunk)
    assert all(0 <= share <= min(tokens, chunk) for share, tokens in zip(shares, pending, strict=True))
    assert sum(shares) <= budget
    assert sum(shares) == min(budget, sum(min(tokens, chunk) for tokens in pending)), "budget is left over"
    assert not pending or shares[0] >= 1


def test_a_short_prompt_does_not_wait_behind_a_long_one() -> None:
    assert share_budget([4000, 100], 1024, 1024) == [924, 100]
    assert share_budget([4000, 600], 1024, 1024) == [512, 512]


def test_prompts_of_equal_length_are_read_one_after_another() -> None:
    assert share_budget([1000, 1000, 1000], 512, 512) == [512, 0, 0]
    assert share_budget([488, 1000, 1000], 512, 512) == [488, 24, 0]
