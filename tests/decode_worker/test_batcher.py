"""Which tokens a decode step computes."""

from hypothesis import given
from hypothesis import strategies as st

from decode_worker.batcher import plan_step


@given(st.lists(st.integers(1, 500), max_size=20), st.integers(21, 600), st.integers(1, 128))
def test_every_running_answer_gets_its_token(pending: list[int], budget: int, chunk: int) -> None:
    shares = plan_step(pending, budget, chunk)
    assert all(share == 1 for share, tokens in zip(shares, pending, strict=True) if tokens == 1)
    read = sum(share for share, tokens in zip(shares, pending, strict=True) if tokens > 1)
    assert read <= chunk
    assert sum(shares) <= budget
    assert read or all(tokens == 1 for tokens in pending), "prompts would wait for ever"


def test_a_short_prompt_does_not_wait_behind_a_long_one() -> None:
    assert plan_step([1, 300, 50, 1], 512, 128) == [1, 78, 50, 1]
    assert plan_step([1, 3000, 2000, 1], 512, 128) == [1, 64, 64, 1]
    assert plan_step([1, 100, 100, 1], 512, 128) == [1, 100, 28, 1]


def test_prompts_have_what_answers_leave() -> None:
    assert plan_step([1, 1, 1, 50], 5, 128) == [1, 1, 1, 2]
    assert plan_step([1, 1, 1, 50], 3, 128) == [1, 1, 1, 0]
