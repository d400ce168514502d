"""Logprobs of drawn and read tokens against torch and transformers."""

from dataclasses import replace

import pytest
import torch

from inference_engine.sampling_logprobs import Wish, token_logprobs
from inference_engine.single import generate_answer
from tests.inference_engine.conftest import Models
from tests.inference_engine.sampling_cases import wish
from tests.model_fixtures import prompt_tokens


def random_logits(rows: int, columns: int) -> torch.Tensor:
    return torch.randn((rows, columns), generator=torch.Generator().manual_seed(3))


def test_values_ranks_and_alternatives() -> None:
    logits = random_logits(150, 20)
    wishes = [Wish(row=row, token_id=row % 20, alternatives=row % 4) for row in range(150)]
    for asked, told in zip(wishes, token_logprobs(logits, wishes), strict=True):
        values = torch.log_softmax(logits[asked.row].double(), 0).tolist()
        order = sorted(range(20), key=lambda token: -values[token])
        assert told.token_id == asked.token_id
        assert told.logprob == pytest.approx(values[asked.token_id], abs=1e-5)
        assert order[told.rank - 1] == asked.token_id
        assert [token for token, _ in told.top] == order[: asked.alternatives]
        assert [value for _, value in told.top] == pytest.approx([values[token] for token, _ in told.top], abs=1e-5)


def test_of_equal_tokens_the_lower_id_ranks_higher() -> None:
    logits = torch.tensor([[1.0, 3.0, 1.0, 3.0, 1.0, -torch.inf]])
    told = token_logprobs(logits, [Wish(row=0, token_id=token, alternatives=4) for token in range(6)])
    assert [entry.rank for entry in told] == [3, 1, 4, 2, 5, 6]
    assert [token for token, _ in told[0].top] == [1, 3, 0, 2]
    assert told[5].logprob == -torch.inf


def test_more_alternatives_than_tokens_are_all_tokens() -> None:
    (told,) = token_logprobs(random_logits(1, 5), [Wish(row=0, token_id=2, alternatives=20)])
    assert sorted(token for token, _ in told.top) == [0, 1, 2, 3, 4]


def test_an_answer_and_its_prompt_tell_what_transformers_computes(models: Models) -> None:
    prompt = prompt_tokens(33)
    asked = wish(temperature=0.0, max_tokens=6, logprobs=3, prompt_logprobs=2, logit_bias=((5, 50.0),), answer_start=33)
    answer = generate_answer(models.engine("llama"), prompt, asked)
    assert answer.token_ids == (5,) * 6, "the bias works"
    tokens = [*prompt, *answer.token_ids]
    with torch.inference_mode():
        values = torch.log_softmax(models.reference("llama")(torch.tensor([tokens])).logits[0], dim=-1)
    told = answer.prompt_logprobs + answer.logprobs
    assert [entry.token_id for entry in told] == tokens[1:]
    for row, entry in enumerate(told):
        assert entry.logprob == pytest.approx(float(values[row, entry.token_id]), abs=1e-3)
        assert len(entry.top) == (2 if row < 32 else 3)
        assert entry.top[0][1] == pytest.approx(float(values[row].max()), abs=1e-3)
    assert all(entry.rank > 1 for entry in answer.logprobs), "but not on the model's own distribution"


@pytest.mark.parametrize("chunk_tokens", [1, 7, 32])
def test_chunks_of_a_prompt_tell_the_same(models: Models, chunk_tokens: int) -> None:
    engine = models.engine("llama")
    prompt = prompt_tokens(33)
    asked = wish(temperature=0.0, max_tokens=2, prompt_logprobs=2)
    whole, parts = (generate_answer(engine, prompt, asked, chunk) for chunk in (512, chunk_tokens))
    assert whole.token_ids == parts.token_ids
    assert [told.token_id for told in whole.prompt_logprobs] == prompt[1:]
    for one, other in zip(whole.prompt_logprobs, parts.prompt_logprobs, strict=True):
        assert (one.token_id, one.rank) == (other.token_id, other.rank)
        assert one.logprob == pytest.approx(other.logprob, abs=1e-3)
    assert generate_answer(engine, prompt, replace(asked, prompt_logprobs=None)).prompt_logprobs == ()
