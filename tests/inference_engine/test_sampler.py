"""The sampler against transformers' own warpers, against chance, and against its promises."""

import math

import pytest
import torch
from transformers.generation.logits_process import (
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from cluster_core.sampling import Sampling
from inference_engine.sampler import draw_tokens, uniform
from inference_engine.sampling_edits import Draw
from inference_engine.step_faults import BrokenLogits

VOCABULARY = 50


def draw(position: int = 0, *, temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0, seed: int = 1) -> Draw:
    wish = Sampling(
        temperature=temperature, top_p=top_p, top_k=top_k, seed=seed, max_tokens=1, stop_token_ids=frozenset()
    )
    return Draw(sampling=wish, position=position)


def random_logits(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn((rows, VOCABULARY), generator=torch.Generator().manual_seed(seed)) * 3


def expected_token(logits: torch.Tensor, wish: Draw) -> int:
    """Walk the distribution that transformers would draw from."""
    scores = logits[None].clone()
    sampling = wish.sampling
    scores = TemperatureLogitsWarper(sampling.temperature)(None, scores)
    if sampling.top_k:
        scores = TopKLogitsWarper(sampling.top_k)(None, scores)
    if sampling.top_p < 1:
        scores = TopPLogitsWarper(sampling.top_p)(None, scores)
    rest = uniform(sampling.seed, wish.position)
    for token, probability in enumerate(scores[0].double().softmax(0).tolist()):
        rest -= probability
        if rest < 0:
            return token
    raise AssertionError


@pytest.mark.parametrize(
    "cut",
    [
        {},
        {"temperature": 0.3},
        {"temperature": 2.5},
        {"top_k": 1},
        {"top_k": 7},
        {"top_k": 1000},
        {"top_p": 0.01},
        {"top_p": 0.5},
        {"top_p": 0.9},
        {"temperature": 0.7, "top_k": 10, "top_p": 0.8},
        {"temperature": 1.8, "top_k": 20, "top_p": 0.95},
    ],
)
def test_draws_are_those_of_transformers_distribution(cut: dict[str, float]) -> None:
    logits = random_logits(200)
    draws = [draw(position, **cut) for position in range(200)]  # type: ignore[arg-type]  # top_k is whole
    expected = [expected_token(row, wish) for row, wish in zip(logits, draws, strict=True)]
    assert draw_tokens(logits, draws) == expected


def test_rows_of_different_wishes_do_not_touch_one_another() -> None:
    logits = random_logits(6)
    draws = [
        draw(3, temperature=0.0),
        draw(4, top_k=3),
        draw(5, temperature=0.0, top_k=1),
        draw(6, top_p=0.6, temperature=0.5),
        draw(7),
        draw(8, top_k=9, top_p=0.9, seed=99),
    ]
    alone = [draw_tokens(logits[row : row + 1], [draws[row]])[0] for row in range(6)]
    assert draw_tokens(logits, draws) == alone
    assert alone[0] == int(logits[0].argmax())


def test_frequencies_pass_a_chi_squared_test() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, 0.5, 1.5, -2.0, 0.2])
    draws = 8000
    tokens = draw_tokens(logits.expand(draws, 8), [draw(position, seed=12345) for position in range(draws)])
    counts = torch.bincount(torch.tensor(tokens), minlength=8).double()
    expected = logits.double().softmax(0) * draws
    statistic = float(((counts - expected) ** 2 / expected).sum())
    assert statistic < 24.3, "chi squared with 7 degrees of freedom exceeds this once in 1,000 times"


def test_uniform_numbers_are_fixed_for_ever() -> None:
    assert uniform(0, 0) == 0.7637222939321724
    assert uniform(-1, 5) == uniform((1 << 64) - 1, 5)
    assert len({uniform(seed, position) for seed in range(30) for position in range(30)}) == 900
    assert all(0 <= uniform(seed, 1) < 1 for seed in range(100))


def test_of_equal_tokens_the_lower_ids_stay() -> None:
    logits = torch.zeros((400, 10))
    tokens = draw_tokens(logits, [draw(position, top_k=3) for position in range(400)])
    assert set(tokens) == {0, 1, 2}
    tokens = draw_tokens(logits, [draw(position, top_p=0.35) for position in range(400)])
    assert set(tokens) == {0, 1, 2, 3}


def test_a_small_temperature_is_nearly_greedy_and_does_not_overflow() -> None:
    logits = random_logits(50) * 1000
    for temperature in (1e-6, 1e-40, 5e-324):
        drawn = draw_tokens(logits, [draw(row, temperature=temperature) for row in range(50)])
        assert drawn == logits.argmax(1).tolist()


def test_excluded_tokens_are_never_drawn() -> None:
    logits = torch.full((300, 4), -math.inf)
    logits[:, 1] = 0.0
    logits[:, 3] = 0.0
    assert set(draw_tokens(logits, [draw(position) for position in range(300)])) == {1, 3}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_broken_logits_are_told_by_row(bad: float, temperature: float) -> None:
    logits = random_logits(3)
    logits[1, 7] = bad
    with pytest.raises(BrokenLogits) as caught:
        draw_tokens(logits, [draw(row, temperature=temperature) for row in range(3)])
    assert caught.value.places == (1,)
