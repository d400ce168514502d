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


def test_prompts_are_read_in_order_of_arrival() -> None:
    assert plan_step([1, 300, 50, 1], 512, 128) == [1, 128, 0, 1]
    assert plan_step([1, 100, 50, 1], 512, 128) == [1, 100, 28, 1]
