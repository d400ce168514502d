"""How prompts share a step: nobody starves, and nobody short waits for somebody long."""

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from inference_engine.prompt_shares import share_budget


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


def test_without_a_budget_nobody_gets_anything() -> None:
    assert share_budget([5, 5], 0, 8) == [0, 0]


@dataclass(slots=True)
class Reader:
    """A prompt, and the step after which it must have been read, by the two promises of `share_budget`."""

    left: int
    latest: int
    latest_if_short: int | None


def _steps(tokens: int, each: int) -> int:
    return -(-tokens // each)


@settings(max_examples=150, deadline=None)
@given(
    arrivals=st.lists(st.lists(st.integers(1, 3000), max_size=4), min_size=1, max_size=40),
    budget=st.integers(2, 1024),
    chunk=st.integers(1, 1024),
)
def test_every_prompt_is_read_in_time_whatever_comes_after_it(
    arrivals: list[list[int]], budget: int, chunk: int
) -> None:
    readers: list[Reader] = []
    longest = sum(_steps(length, min(chunk, budget // 2)) for step in arrivals for length in step)
    for now in range(len(arrivals) + longest):
        for length in arrivals[now] if now < len(arrivals) else []:
            before = [reader.left for reader in readers]
            least = min(chunk, budget // 2)
            latest = now + sum(_steps(left, least) for left in [*before, length])
            readers.append(Reader(length, latest, _latest_if_short(now, length, before, arrivals, budget, chunk)))
        shares = share_budget([reader.left for reader in readers], budget, chunk)
        for reader, share in zip(readers, shares, strict=True):
            reader.left -= share
            assert reader.left == 0 or now + 1 < reader.latest, "it starves"
            in_time = reader.latest_if_short is None or now + 1 < reader.latest_if_short
            assert reader.left == 0 or in_time, "it waits for somebody long"
        readers = [reader for reader in readers if reader.left]
    assert not readers


def _latest_if_short(
    now: int, length: int, before: list[int], arrivals: list[list[int]], budget: int, chunk: int
) -> int | None:
    """Return when a short prompt must have been read: the lengths of longer ones do not count. None where it is long.

    Shorter ones that come later count too: they pass it.
    """
    if length > chunk:
        return None
    later = [min(other, length) for step in arrivals[now:] for other in step]
    ahead = sum(min(other, length) for other in before) + sum(later)
    return now + _steps(ahead, budget - budget // 2)
