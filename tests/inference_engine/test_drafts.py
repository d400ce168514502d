"""Drafts: what is drawn over one is what plain decoding draws, whatever was guessed, with whatever is asked for."""

from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any

import numpy as np
import pytest
import torch

from cluster_core.sampling import Sampling
from inference_engine.engine import Engine
from inference_engine.single import generate_answer
from inference_engine.step import SequenceSlice, SliceResult, StepPlan
from inference_engine.step_faults import BrokenLogits, NothingAllowed
from inference_engine.step_output import read_step
from tests.inference_engine.conftest import Models
from tests.inference_engine.sampling_cases import DIGITS, OddAndEven, random_thinking, random_wish, wish
from tests.model_fixtures import VOCABULARY, prompt_tokens

TOY = 12
STOP = TOY - 1
MASKER = OddAndEven(TOY, [STOP])


def toy_logits(tokens: Sequence[int]) -> torch.Tensor:
    """Return the logits of a model of a few tokens that has read these."""
    seed = sum((place + 7) * (token + 1) ** 2 for place, token in enumerate(tokens))
    return torch.randn(TOY, generator=torch.Generator().manual_seed(seed)) * 1.5


def toy_step(tokens: list[int], guesses: list[int], sampling: Sampling) -> SliceResult:
    """Read the last token and the guesses, all else was read before."""
    start = len(tokens) - 1
    piece = SequenceSlice(
        token_ids=[tokens[-1], *guesses],
        start=start,
        block_table=(),
        draw=sampling,
        drafted=len(guesses),
        before=tokens[:start] if sampling.looks_back else (),
    )
    rows = [toy_logits(tokens + guesses[:count]) for count in range(len(guesses) + 1)]
    return read_step(StepPlan(slices=(piece,)), torch.stack(rows), MASKER)[0]


def plainly(tokens: list[int], sampling: Sampling, count: int) -> list[int]:
    written: list[int] = []
    while len(written) < count and not sampling.stop_token_ids.intersection(written):
        written += toy_step(tokens + written, [], sampling).token_ids
    return written


def guessed(random: Random, truth: list[int], count: int) -> list[int]:
    """Guess the truth, with mistakes."""
    return [token if random.random() < 0.7 else random.randrange(TOY) for token in truth[:count]]


@pytest.mark.parametrize("seed", range(60))
def test_drafts_change_no_token(seed: int) -> None:
    random = Random(seed)  # noqa: S311  # no secret
    prompt = [random.randrange(TOY) for _ in range(5)]
    fields: dict[str, Any] = {"answer_start": 5, "logprobs": 2, "allowed_token_ids": frozenset()}
    if seed % 3 == 1:
        fields |= {"grammar": DIGITS}
    if seed % 3 == 2:
        fields |= {"thinking": random_thinking(random, TOY), "forced_token_ids": (3, 1)}
    sampling = random_wish(random, TOY, **fields)
    try:
        truth = plainly(prompt, sampling, 12)
    except NothingAllowed:
        assert seed % 3 == 1, "only a grammar can be left without a token"
        return
    written: list[int] = []
    while len(written) < len(truth):
        guesses = guessed(random, truth[len(written) :], random.randint(0, 5))
        result = toy_step(prompt + written, guesses, sampling)
        assert [told.token_id for told in result.logprobs] == list(result.token_ids)
        assert 1 <= len(result.token_ids) <= 1 + len(guesses)
        written += result.token_ids
    assert written[: len(truth)] == truth


def test_a_draft_in_a_mixed_step_finds_its_own_rows() -> None:
    slices, rows, expected = [], [], []
    for index, count in enumerate((0, 3, 1, 0, 2)):
        tokens = [index, 1, 2]
        sampling = wish(seed=index, presence_penalty=0.5 * (index % 2))
        guesses = plainly(tokens, sampling, count)
        expected.append(toy_step(tokens, guesses, sampling))
        rows += [toy_logits(tokens + guesses[:end]) for end in range(count + 1)]
        slices.append(
            SequenceSlice(
                token_ids=[2, *guesses],
                start=2,
                block_table=(),
                draw=sampling,
                drafted=count,
                before=tokens[:2],
            )
        )
    slices.insert(2, SequenceSlice(token_ids=[1, 2, 3], start=0, block_table=(), draw=None))
    expected.insert(2, SliceResult())
    assert list(read_step(StepPlan(slices=tuple(slices)), torch.stack(rows))) == expected
    assert [len(result.token_ids) for result in expected] == [1, 4, 0, 2, 1, 3]


def test_an_answer_ends_with_its_stop_token_even_if_more_was_guessed() -> None:
    sampling = wish(logit_bias=((4, 100.0),), stop_token_ids=frozenset({4}))
    assert toy_step([1], [4, 4, 4], sampling).token_ids == (4,)


def test_faults_beyond_the_first_wrong_guess_are_nobodys() -> None:
    tokens = [1, 2, 3]
    (truth,) = plainly(tokens, wish(), 1)
    wrong = (truth + 1) % TOY
    piece = SequenceSlice(token_ids=[3, wrong], start=2, block_table=(), draw=wish(), drafted=1)
    broken = torch.full((TOY,), torch.nan)
    plan = StepPlan(slices=(piece,))
    assert read_step(plan, torch.stack([toy_logits(tokens), broken]))[0].token_ids == (truth,)
    right = replace(piece, token_ids=[3, truth])
    with pytest.raises(BrokenLogits) as caught:
        read_step(StepPlan(slices=(piece, right)), torch.stack([toy_logits(tokens), broken] * 2))
    assert caught.value.places == (1,)


def test_a_guess_comes_true_with_its_probability_and_the_draws_keep_their_distribution() -> None:
    """The statistics of rejection sampling, over 20,000 seeds."""
    logits = torch.tensor([1.0, 0.5, 0.0, -0.5, -1.0])
    target = torch.softmax(logits.double(), 0)
    seeds = 20_000
    slices = [
        SequenceSlice(token_ids=[0, seed % 5, 1], start=3, block_table=(), draw=wish(seed=seed * 7919), drafted=2)
        for seed in range(seeds)
    ]
    results = read_step(StepPlan(slices=tuple(slices)), logits.expand(3 * seeds, 5))
    first = torch.tensor([result.token_ids[0] for result in results])
    second = torch.tensor([result.token_ids[1] for result in results if len(result.token_ids) > 1])
    third = torch.tensor([result.token_ids[2] for result in results if len(result.token_ids) > 2])
    for drawn in (first, second, third):
        expected = target * len(drawn)
        statistic = float(((torch.bincount(drawn, minlength=5) - expected) ** 2 / expected).sum())
        assert statistic < 18.5, "chi squared with 4 degrees of freedom exceeds this once in 1,000 times"
    guess = torch.arange(seeds) % 5
    came_true = torch.bincount(guess[first == guess], minlength=5)
    tries = seeds / 5
    spread = (target * (1 - target) * tries).sqrt()
    assert bool(((came_true - target * tries).abs() < 4 * spread).all())
    assert len(second) == int(came_true.sum())


def over_drafts(engine: Engine, prompt: list[int], sampling: Sampling, truth: Sequence[int]) -> list[int]:
    """Write an answer on the engine with drafts that are wrong at every seventh place."""
    table = range(engine.memory.total_blocks)
    tokens = list(prompt)
    answer = [token if place % 7 != 3 else (token + 1) % VOCABULARY for place, token in enumerate(truth)]
    start = 0
    while len(tokens) < len(prompt) + len(truth):
        written = len(tokens) - len(prompt)
        guesses = answer[written : written + 4][: len(truth) - written - 1] if written else []
        piece = SequenceSlice(
            token_ids=tokens[start:] + guesses,
            start=start,
            block_table=table,
            draw=sampling,
            drafted=len(guesses),
            before=np.array(tokens[:start], dtype=np.int64),  # type: ignore[arg-type]  # arrays are sequences of tokens
        )
        tokens += engine.step(StepPlan(slices=(piece,))).slices[0].token_ids
        start = len(tokens) - 1
    return tokens[len(prompt) :]


@pytest.mark.parametrize("seed", range(12))
def test_the_engine_writes_the_same_over_drafts(models: Models, seed: int) -> None:
    random = Random(seed)  # noqa: S311  # no secret
    engine, prompt = models.engine("llama"), prompt_tokens(21, seed)
    fields = {"thinking": random_thinking(random, VOCABULARY)} if seed % 3 == 0 else {}
    sampling = random_wish(random, VOCABULARY, answer_start=21, max_tokens=24, **fields)
    truth = generate_answer(engine, prompt, sampling).token_ids
    assert over_drafts(engine, prompt, sampling, truth) == list(truth)


@pytest.mark.parametrize("seed", range(12))
def test_an_answer_that_is_resumed_anywhere_goes_on_as_if_nothing_had_happened(models: Models, seed: int) -> None:
    random = Random(seed)  # noqa: S311  # no secret
    engine, prompt = models.engine("mistral"), prompt_tokens(18, seed)
    fields: dict[str, Any] = {"answer_start": 18, "max_tokens": 20, "logprobs": 0}
    if seed % 3 == 0:
        fields |= {"thinking": random_thinking(random, VOCABULARY)}
    if seed % 3 == 1:
        fields |= {"forced_token_ids": (1, 2, 3)}
    sampling = random_wish(random, VOCABULARY, **fields)
    truth = list(generate_answer(engine, prompt, sampling).token_ids)
    for written in (1, len(truth) // 2, len(truth) - 1):
        rest = replace(sampling, max_tokens=20 - written)
        resumed = generate_answer(engine, prompt + truth[:written], rest, chunk_tokens=9)
        assert truth[:written] + list(resumed.token_ids) == truth


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_forks_draw_what_requests_with_their_seeds_would(temperature: float) -> None:
    tokens, sampling = [1, 2, 3], wish(temperature=temperature, presence_penalty=1.0, logprobs=2)
    piece = SequenceSlice(token_ids=tokens, start=0, block_table=(), draw=sampling, forks=(5, 6, 7), prompt_logprobs=1)
    logits = torch.stack([toy_logits(tokens[:end]) for end in (1, 2, 3)])
    result = read_step(StepPlan(slices=(piece,)), logits)[0]
    alone = [toy_step(tokens, [], replace(sampling, seed=seed)) for seed in (1, 5, 6, 7)]
    assert result.token_ids == alone[0].token_ids
    assert result.fork_token_ids == tuple(other.token_ids[0] for other in alone[1:])
    assert result.fork_logprobs == tuple(other.logprobs[0] for other in alone[1:])
    assert [told.token_id for told in result.prompt_logprobs] == [2, 3]
