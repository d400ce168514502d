"""The whole pipeline against transformers' logits processors, strung together in the documented order."""

from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinLengthLogitsProcessor,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    PrefixConstrainedLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from cluster_core.sampling import Sampling
from inference_engine.sampler import draw_tokens, uniform
from inference_engine.sampling_edits import Draw
from tests.inference_engine.sampling_cases import random_wish, wish

VOCABULARY = 40
PROMPT = 7


def expected_token(logits: torch.Tensor, sampling: Sampling, tokens: list[int]) -> int | None:
    """Walk the distribution that the processors leave; None where rounding decides."""
    scores = _edited(logits[None].clone(), sampling, tokens)
    if sampling.temperature == 0:
        return int(scores[0].argmax())
    probabilities = _warpers(sampling)(None, scores)[0].double().softmax(0)
    rest = uniform(sampling.seed, len(tokens))
    for token, probability in enumerate(probabilities.tolist()):
        rest -= probability
        if abs(rest) < 1e-6:
            return None
        if rest < 0:
            return token
    raise AssertionError


def _edited(scores: torch.Tensor, sampling: Sampling, tokens: list[int]) -> torch.Tensor:
    whole, answer = torch.tensor([tokens]), torch.tensor([tokens[sampling.answer_start :]], dtype=torch.int64)
    # transformers leaves out a sequence that is as long as what was written and the token that would complete it
    padded = torch.cat((torch.full((1, 9), VOCABULARY - 1), answer), dim=1)
    if sampling.allowed_token_ids:
        allowed = sorted(sampling.allowed_token_ids)
        scores = PrefixConstrainedLogitsProcessor(lambda *_: allowed, 1)(whole, scores)
    if sampling.banned_sequences:
        scores = NoBadWordsLogitsProcessor([list(words) for words in sampling.banned_sequences])(padded, scores)
    if sampling.min_tokens:
        stops = sorted(sampling.stop_token_ids)
        scores = MinLengthLogitsProcessor(sampling.min_tokens, stops)(answer, scores)
    if sampling.logit_bias:
        bias: Any = {(token,): amount for token, amount in sampling.logit_bias}
        scores = SequenceBiasLogitsProcessor(bias)(padded, scores)
    if sampling.repetition_penalty != 1:
        scores = RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)(whole, scores)
    counts = np.bincount(answer[0].numpy(), minlength=VOCABULARY)
    counted = sampling.frequency_penalty * counts + sampling.presence_penalty * (counts > 0)
    return scores - torch.from_numpy(counted).float()


def _warpers(sampling: Sampling) -> Any:
    warpers: list[Any] = [TemperatureLogitsWarper(sampling.temperature)]
    if sampling.min_p:
        warpers.append(MinPLogitsWarper(sampling.min_p))
    if sampling.top_k:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    if sampling.typical_p < 1:
        warpers.append(TypicalLogitsWarper(sampling.typical_p))
    return LogitsProcessorList(warpers)


@pytest.mark.parametrize("seed", range(8))
def test_random_wishes_draw_what_the_processors_leave(seed: int) -> None:
    random = Random(seed)  # noqa: S311  # no secret
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn((60, VOCABULARY), generator=generator) * 3
    draws, expected = [], []
    for row in logits:
        sampling = random_wish(random, VOCABULARY, answer_start=PROMPT)
        # few different tokens, so that penalties and banned sequences meet them
        tokens = [random.randrange(VOCABULARY - 1) for _ in range(PROMPT)]
        pool = [token for words in sampling.banned_sequences for token in words] or tokens
        tokens += [random.choice(pool) for _ in range(random.randint(0, 10))]
        expected.append(expected_token(row, sampling, tokens))
        draws.append(Draw(sampling=sampling, position=len(tokens), tokens=np.array(tokens)))
    drawn = draw_tokens(logits, draws)
    told = [(token, want) for token, want in zip(drawn, expected, strict=True) if want is not None]
    assert len(told) > 55
    assert [token for token, _ in told] == [want for _, want in told]


@pytest.mark.parametrize(
    "fields",
    [
        {"min_p": 0.02},
        {"min_p": 0.4},
        {"typical_p": 0.2},
        {"typical_p": 0.8},
        {"top_k": 12, "typical_p": 0.5},
        {"min_p": 0.05, "top_p": 0.7},
        {"temperature": 2.0, "min_p": 0.05, "top_k": 9, "top_p": 0.9, "typical_p": 0.9},
        {"repetition_penalty": 1.8},
        {"frequency_penalty": 1.0, "presence_penalty": -2.0},
    ],
)
def test_each_cut_and_penalty(fields: dict[str, float]) -> None:
    logits = torch.randn((300, VOCABULARY), generator=torch.Generator().manual_seed(5)) * 2
    tokens = [row * 7 % VOCABULARY for row in range(300)]
    sampling = wish(**fields, answer_start=2)
    draws = [Draw(sampling=sampling, position=end, tokens=np.array(tokens)) for end in range(2, 300)]
    expected = [expected_token(logits[end], sampling, tokens[:end]) for end in range(2, 300)]
    drawn = draw_tokens(logits[2:], draws)
    assert [token for token, want in zip(drawn, expected, strict=True) if want is not None] == [
        want for want in expected if want is not None
    ]


def test_the_order_of_temperature_and_top_p_matters() -> None:
    """Hot first: the nucleus is wider than the one of the cool distribution."""
    logits = torch.tensor([4.0, 2.0, 1.0, 0.0]).expand(400, 4)
    sampling = wish(temperature=2.0, top_p=0.85)
    drawn = draw_tokens(logits, [Draw(sampling=sampling, position=position) for position in range(400)])
    assert set(drawn) == {0, 1, 2}
    cool = TopPLogitsWarper(0.85)(None, logits[:1])
    assert int(torch.isfinite(cool).sum()) == 2
