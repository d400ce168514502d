"""The pipeline's promises: company changes nothing, edges are sharp, faults stay with their request."""

import math
import re
from dataclasses import replace
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import pre_tokenizers

from cluster_core.sampling import Grammar, GrammarKind, Sampling, ThinkingLimit
from inference_engine import row_arrays, sampling_cuts
from inference_engine.sampler import draw_tokens
from inference_engine.sampling_cuts import cut
from inference_engine.sampling_edits import Draw
from inference_engine.single import generate
from inference_engine.step_faults import BrokenLogits, NothingAllowed
from tests.inference_engine.conftest import Models
from tests.inference_engine.sampling_cases import DIGITS, OddAndEven, random_thinking, random_wish, wish
from tests.model_fixtures import prompt_tokens

VOCABULARY = 30
STOP = VOCABULARY - 1
MASKER = OddAndEven(VOCABULARY, [STOP])


def draw(tokens: list[int], sampling: Sampling) -> Draw:
    return Draw(sampling=sampling, position=len(tokens), tokens=np.array(tokens, dtype=np.int64))


def random_logits(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn((rows, VOCABULARY), generator=torch.Generator().manual_seed(seed)) * 3


def greedy(logits: torch.Tensor, tokens: list[int], **fields: Any) -> int:
    sampling = wish(temperature=0.0, **fields)
    (token,) = draw_tokens(logits[None], [draw(tokens, sampling)], MASKER)
    return token


@pytest.mark.parametrize("seed", range(10))
def test_a_mixed_batch_draws_what_each_draws_alone(seed: int) -> None:
    random = Random(seed)  # noqa: S311  # no secret
    rows = 40
    logits = random_logits(rows, seed)
    draws = []
    for row in range(rows):
        answer = [1 - place % 2 + 2 * random.randrange(10) for place in range(row % 6)]
        fields: dict[str, Any] = {"answer_start": 4}
        if row % 5 == 1:
            fields |= {"grammar": DIGITS, "allowed_token_ids": frozenset()}
        if row % 5 == 2:
            fields |= {"thinking": random_thinking(random, VOCABULARY)}
        if row % 5 == 3:
            fields |= {"forced_token_ids": (7, 8, 9)}
        sampling = wish(temperature=row % 2 * 0.7) if row % 5 == 0 else random_wish(random, VOCABULARY, **fields)
        draws.append(draw([random.randrange(VOCABULARY) for _ in range(4)] + answer, sampling))
    alone = [draw_tokens(logits[row : row + 1], [draws[row]], MASKER)[0] for row in range(rows)]
    assert draw_tokens(logits, draws, MASKER) == alone
    order = random.sample(range(rows), rows)
    assert draw_tokens(logits[order], [draws[row] for row in order], MASKER) == [alone[row] for row in order]


def test_the_logits_stay_as_they_were() -> None:
    logits = random_logits(3)
    before = logits.clone()
    draw_tokens(logits, [draw([row, 2], wish(repetition_penalty=1.5, logit_bias=((4, 9.0),))) for row in range(3)])
    assert torch.equal(logits, before)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("harmless", [{"top_k": 5}, {"top_k": 9}, {"top_p": 1.0}, {"min_p": 0.0}, {"typical_p": 1.0}])
def test_published_probabilities(temperature: float, harmless: dict[str, float]) -> None:
    """Five logits, at three temperatures, as frequencies of 100,000 draws."""
    expected = {
        0.5: (0.8935, 0.0543, 0.0298, 0.0134, 0.0090),
        1.0: (0.6053, 0.1493, 0.1106, 0.0741, 0.0607),
        2.0: (0.3860, 0.1917, 0.1650, 0.1351, 0.1222),
    }[temperature]
    rows = 20_000 if harmless != {"top_p": 1.0} else 100_000
    logits = torch.tensor([5.2, 3.8, 3.5, 3.1, 2.9]).expand(rows, 5)
    sampling = wish(temperature=temperature, **harmless)
    tokens = torch.tensor(draw_tokens(logits, [Draw(sampling=sampling, position=row) for row in range(rows)]))
    counts = torch.bincount(tokens, minlength=5).double()
    exact = torch.tensor(expected, dtype=torch.float64)
    statistic = float(((counts - exact * rows) ** 2 / (exact * rows)).sum())
    assert statistic < 18.5, "chi squared with 4 degrees of freedom exceeds this once in 1,000 times"


def test_a_nucleus_that_is_just_full_takes_no_more() -> None:
    """0.580, 0.143, 0.106 and 0.071 of the whole are 0.90001 of it: at 0.90 four tokens stay, not five."""
    best = [5.2, 3.8, 3.5, 3.1, 2.9]
    whole = math.exp(5.2) / 0.58
    rest = (whole - sum(math.exp(logit) for logit in best)) / 1000
    logits = torch.tensor(best + [math.log(rest)] * 1000).expand(3000, 1005)
    sampling = wish(top_p=0.90)
    drawn = draw_tokens(logits, [Draw(sampling=sampling, position=row) for row in range(3000)])
    assert set(drawn) == {0, 1, 2, 3}


def test_a_flat_tail_drowns_the_best_token_when_hot_unless_it_is_cut() -> None:
    logits = torch.full((1, 128_000), math.log(math.exp(5.2) / 0.58 * 0.42 / 127_999))
    logits[0, 0] = 5.2
    draws = [Draw(sampling=wish(temperature=2.0), position=row) for row in range(200)]
    assert sum(token == 0 for token in draw_tokens(logits.expand(200, -1), draws)) < 10
    draws = [Draw(sampling=wish(temperature=2.0, min_p=0.1), position=row) for row in range(20)]
    assert set(draw_tokens(logits.expand(20, -1), draws)) == {0}


def test_penalties_are_what_their_formulas_say() -> None:
    logits = torch.tensor([2.0, -2.0, 1.0, 0.5, 1.9])
    # token 0 and 1 stand in prompt and answer, 2 in the prompt alone
    tokens = [0, 2, 2, 1, 1, 0, 1]
    penalties = {"repetition_penalty": 1.25, "frequency_penalty": 0.5, "presence_penalty": 0.25, "answer_start": 3}
    edited = [2.0 / 1.25 - 0.5 - 0.25, -2.0 * 1.25 - 1.5 - 0.25, 1.0 / 1.25, 0.5, 1.9]
    rows = 20_000
    draws = [Draw(sampling=wish(**penalties, seed=seed), position=7, tokens=np.array(tokens)) for seed in range(rows)]
    counts = torch.bincount(torch.tensor(draw_tokens(logits.expand(rows, 5), draws)), minlength=5).double()
    exact = torch.softmax(torch.tensor(edited, dtype=torch.float64), 0) * rows
    assert float(((counts - exact) ** 2 / exact).sum()) < 18.5
    assert greedy(logits, tokens, **penalties) == 4


@pytest.mark.parametrize("penalty", [1e-45, 1e-30, 2.0])
def test_extreme_penalties_draw_a_token(penalty: float) -> None:
    logits = random_logits(1)[0] * 1e30
    for temperature in (0.0, 1.0):
        sampling = wish(repetition_penalty=penalty, temperature=temperature)
        (token,) = draw_tokens(logits[None], [draw([3, 4, 5], sampling)])
        assert 0 <= token < VOCABULARY


def test_banned_sequences_never_appear() -> None:
    banned = ((3,), (4, 5), (6, 7, 8))
    logits = torch.zeros(VOCABULARY)
    logits[[3, 5, 8]] = torch.tensor([9.0, 8.0, 7.0])
    assert greedy(logits, [1, 2], banned_sequences=banned) == 5
    assert greedy(logits, [1, 4], banned_sequences=banned) == 8
    assert greedy(logits, [1, 4], banned_sequences=banned, answer_start=2) == 5, "the prompt is not the answer"
    assert greedy(logits, [4, 6, 7], banned_sequences=((3,), (5,), *banned)) == 0


def test_a_bias_cannot_bring_back_what_is_banned() -> None:
    logits = torch.zeros(VOCABULARY)
    bias = ((3, 100.0), (4, 50.0))
    assert greedy(logits, [], logit_bias=bias) == 3
    assert greedy(logits, [], logit_bias=bias, banned_sequences=((3,),)) == 4
    assert greedy(logits, [], logit_bias=bias, allowed_token_ids=frozenset({9, 8})) == 8


def test_stop_tokens_wait_for_the_answer_to_be_long_enough() -> None:
    logits = torch.zeros(VOCABULARY)
    logits[STOP] = 10
    fields = {"stop_token_ids": frozenset({STOP, 999}), "min_tokens": 2, "answer_start": 3}
    assert [greedy(logits, [1] * length, **fields) for length in (3, 4, 5)] == [0, 0, STOP]


def test_forced_tokens_begin_the_answer() -> None:
    logits = torch.full((VOCABULARY,), -math.inf)
    logits[9] = 0.0
    fields = {"forced_token_ids": (5, 6), "answer_start": 2, "banned_sequences": ((5,), (6,))}
    assert [greedy(logits, [1] * length, **fields) for length in (2, 3, 4)] == [5, 6, 9]


def test_a_complete_grammar_ends_the_answer_whatever_else_is_asked() -> None:
    logits = random_logits(1)[0]
    answer = [1, 2, 3, 4, 5]
    fields = {"grammar": DIGITS, "stop_token_ids": frozenset({STOP}), "min_tokens": 20}
    assert greedy(logits, answer, **fields) == STOP
    assert greedy(logits, answer, **fields, banned_sequences=((STOP,),), allowed_token_ids=frozenset({2})) == STOP
    assert greedy(logits, answer[:3], **fields) % 2 == 0


def test_a_grammar_rules_what_follows_the_thinking() -> None:
    logits = torch.zeros(VOCABULARY)
    logits[8] = 5.0
    limit = ThinkingLimit(start=(20,), end=(21,), max_tokens=9)
    fields = {"grammar": DIGITS, "thinking": limit, "stop_token_ids": frozenset({STOP})}
    assert greedy(logits, [20, 0], **fields, answer_start=1) == 8, "it still thinks"
    assert greedy(logits, [20, 0, 21], **fields, answer_start=1) == 1, "the first of the grammar's tokens is odd"
    assert greedy(logits, [0, 0], **fields, answer_start=2) == 1, "it does not think"


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    "impossible",
    [
        {"allowed_token_ids": frozenset({2}), "banned_sequences": ((2,),)},
        {"allowed_token_ids": frozenset({10_000})},
        {"grammar": DIGITS, "allowed_token_ids": frozenset({2, 4})},
        {"grammar": Grammar(kind=GrammarKind.REGEX, text="no number")},
        {"allowed_token_ids": frozenset({STOP}), "stop_token_ids": frozenset({STOP}), "min_tokens": 3},
    ],
)
def test_where_nothing_is_allowed_that_request_is_told(impossible: dict[str, Any], temperature: float) -> None:
    draws = [draw([], wish(temperature=temperature, **fields)) for fields in ({}, impossible, {"top_k": 3})]
    with pytest.raises(NothingAllowed, match="forbid less") as caught:
        draw_tokens(random_logits(3), draws, MASKER)
    assert caught.value.places == (1,)


def test_broken_logits_are_told_before_what_is_not_allowed() -> None:
    logits = random_logits(3)
    logits[2, 4] = math.nan
    impossible = wish(allowed_token_ids=frozenset({2}), banned_sequences=((2,),))
    with pytest.raises(BrokenLogits) as caught:
        draw_tokens(logits, [draw([], sampling) for sampling in (wish(), impossible, impossible)])
    assert caught.value.places == (2,)


@pytest.mark.parametrize("typical_p", [1e-9, 0.3])
def test_the_cuts_leave_a_token_and_of_equal_ones_the_first(typical_p: float) -> None:
    logits = torch.zeros((200, 10))
    for fields in ({"min_p": 0.999}, {"top_p": 1e-9}, {"typical_p": typical_p}):
        sampling = wish(**fields)
        drawn = set(draw_tokens(logits, [Draw(sampling=sampling, position=row) for row in range(200)]))
        if "min_p" in fields:
            assert drawn == set(range(10))
        else:
            assert drawn == ({0, 1, 2} if fields.get("typical_p") == 0.3 else {0})


def test_plain_is_what_changes_no_logit() -> None:
    assert wish(top_k=3, top_p=0.5, min_p=0.1, typical_p=0.5, min_tokens=3, logprobs=3, prompt_logprobs=2).plain
    for fields in (
        {"logit_bias": ((1, 1.0),)},
        {"forced_token_ids": (1,)},
        {"min_tokens": 1, "stop_token_ids": frozenset({1})},
        {"presence_penalty": 0.1},
        {"grammar": DIGITS},
    ):
        assert not wish(**fields).plain


@pytest.mark.parametrize("vocabulary", [600, 2000])
@pytest.mark.parametrize("flat", [0.1, 1.0, 4.0])
def test_long_rows_are_cut_as_if_they_were_sorted_whole(vocabulary: int, flat: float) -> None:
    """The cuts look at the greatest tokens first: nuclei within, at and beyond those, and ties there."""
    logits = torch.randn((12, vocabulary), generator=torch.Generator().manual_seed(2)) / flat
    logits[6:] = (logits[6:] * 4).round() / 4
    probabilities = torch.softmax(logits, dim=-1)
    limits = [0, 1, 30, 512, 513, 599]
    wishes = [wish(top_k=limits[row % 6], top_p=top_p) for top_p in (0.2, 0.9, 1.0) for row in range(12)]
    cut_rows = cut(probabilities.repeat(3, 1), wishes)
    for row, (sampling, left) in enumerate(zip(wishes, cut_rows, strict=True)):
        whole = probabilities[row % 12]
        order = (-whole).argsort(stable=True).tolist()
        kept = order[: sampling.top_k or vocabulary]
        running = np.cumsum([float(whole[token]) for token in kept])
        if sampling.top_p < 1:
            kept = kept[: int(np.searchsorted(running, sampling.top_p * running[-1] * (1 - 1e-12))) + 1]
        expected = torch.zeros(vocabulary)
        expected[kept] = whole[kept]
        assert torch.equal(left, expected)


def test_rows_on_a_device_draw_what_rows_on_the_host_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    """The branches for a device, run on the host: sorts, maxima and ties are torch's there, not numpy's."""
    random = Random(4)  # noqa: S311  # no secret
    logits = torch.randn((48, 700), generator=torch.Generator().manual_seed(4)) * 2
    logits[::3] = logits[::3].round()
    draws = [draw([row, 3, 4, row], random_wish(random, 700, answer_start=2)) for row in range(48)]
    on_the_host = draw_tokens(logits, draws)
    for module in (row_arrays, sampling_cuts):
        monkeypatch.setattr(module, "on_host", _never)
    assert draw_tokens(logits, draws) == on_the_host


def test_grammars_of_the_engine_rule_mixed_steps(models: Models) -> None:
    engine = models.engine("llama")
    prompt = prompt_tokens(9)
    grammar = Grammar(kind=GrammarKind.REGEX, text="[ab]{2,5}c")
    fields = {"answer_start": 9, "max_tokens": 12, "stop_token_ids": engine.eos_token_ids}
    for seed in range(4):
        ruled = wish(grammar=grammar, seed=seed, temperature=seed / 2, **fields)
        answer = generate(engine, prompt, ruled)
        assert answer[-1] in engine.eos_token_ids
        assert re.fullmatch("[ab]{2,5}c", bytes(answer[:-1]).translate(_bytes_of_tokens()).decode())
        resumed = generate(engine, prompt + answer[:2], replace(ruled, max_tokens=10))
        assert answer[:2] + resumed == answer
    nonsense = wish(grammar=Grammar(kind=GrammarKind.REGEX, text="[ab"), **fields)
    with pytest.raises(NothingAllowed):
        generate(engine, prompt, nonsense)


def _bytes_of_tokens() -> bytes:
    """Map the tests' first 256 tokens to bytes: they are the byte-level alphabet's characters in order."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return bytes(ord(character) if ord(character) < 256 else 63 for character in alphabet)


def _never(_values: torch.Tensor) -> bool:
    return False
