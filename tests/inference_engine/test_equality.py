"""Greedy float32 output equals that of transformers, token for token."""

import pytest
import torch

from cluster_core.errors import ContextTooLong
from cluster_core.sampling import Sampling
from inference_engine.single import generate
from tests.inference_engine.conftest import Models
from tests.model_fixtures import EOS_TOKEN_ID, KINDS, prompt_tokens, reference_greedy

LENGTHS = (1, 15, 16, 17, 100)


def greedy(max_tokens: int) -> Sampling:
    return Sampling(
        temperature=0.0, top_p=1.0, top_k=0, seed=0, max_tokens=max_tokens, stop_token_ids=frozenset({EOS_TOKEN_ID})
    )


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_answers_equal_those_of_transformers(models: Models, kind: str) -> None:
    engine, reference = models.engine(kind), models.reference(kind)
    for length in LENGTHS:
        prompt = prompt_tokens(length)
        assert generate(engine, prompt, greedy(10)) == reference_greedy(reference, prompt, 10), f"prompt of {length}"


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen3"])
def test_so_does_the_reference_attention(models: Models, kind: str) -> None:
    engine = models.engine(kind, attention="reference")
    prompt = prompt_tokens(60, seed=3)
    assert generate(engine, prompt, greedy(10)) == reference_greedy(models.reference(kind), prompt, 10)


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2_window"])
def test_prompts_past_many_strips_of_keys(models: Models, kind: str) -> None:
    prompt = prompt_tokens(700)
    answer = generate(models.engine(kind), prompt, greedy(6))
    assert answer == reference_greedy(models.reference(kind), prompt, 6)


@pytest.mark.parametrize("chunk_tokens", [1, 7, 16, 33])
@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_chunks_of_a_prompt_give_the_answer_of_the_whole(models: Models, kind: str, chunk_tokens: int) -> None:
    engine, prompt = models.engine(kind), prompt_tokens(50)
    assert generate(engine, prompt, greedy(8), chunk_tokens) == generate(engine, prompt, greedy(8), 50)


def test_the_answer_ends_with_a_stop_token(models: Models) -> None:
    engine, prompt = models.engine("llama"), prompt_tokens(20)
    whole = generate(engine, prompt, greedy(8))
    stop = Sampling(temperature=0.0, top_p=1.0, top_k=0, seed=0, max_tokens=8, stop_token_ids=frozenset({whole[3]}))
    assert generate(engine, prompt, stop) == whole[: whole.index(whole[3]) + 1]


def test_what_does_not_fit_is_refused(models: Models) -> None:
    with pytest.raises(ContextTooLong, match="prompt"):
        generate(models.engine("llama", blocks=2), prompt_tokens(30), greedy(4))


def test_bfloat16_follows_transformers_closely(models: Models) -> None:
    prompt = prompt_tokens(80)
    engine = models.engine("qwen3", dtype="bfloat16")
    reference = models.reference("qwen3")
    answer = generate(engine, prompt, greedy(1))
    with torch.inference_mode():
        logits = reference(torch.tensor([prompt])).logits[0, -1]
    assert logits[answer[0]] >= logits.max() - 0.1 * logits.std()
