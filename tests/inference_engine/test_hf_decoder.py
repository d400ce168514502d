"""Models that transformers computes, over our pool: greedy float32 answers equal those of transformers alone."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster_core.sampling import Sampling
from inference_engine.attention_capped import CappedAttention
from inference_engine.attention_compiled import CompiledAttention
from inference_engine.engine import Engine
from inference_engine.single import generate
from inference_engine.step import SequenceSlice, StepPlan
from tests.fake_engine import GREEDY
from tests.inference_engine.conftest import Models
from tests.inference_engine.hf_models import KINDS, hf_engine, hf_reference, make_hf_model
from tests.inference_engine.test_engine import run_together
from tests.model_fixtures import EOS_TOKEN_ID, prompt_tokens, reference_greedy
from tests.worker_pair import running_pair

LENGTHS = (1, 16, 17, 60)
TOKENS = 8


class HfModels:
    """The models of one test process, each made when it is first asked for."""

    def __init__(self, root: Path) -> None:
        self.folder: Callable[[str], Path] = cache(lambda kind: make_hf_model(root / kind, kind))
        self.engine: Callable[[str], Engine] = cache(lambda kind: hf_engine(self.folder(kind)))
        self._reference: Callable[[str], Any] = cache(lambda kind: hf_reference(self.folder(kind)))

    def expected(self, kind: str, prompt: list[int], max_tokens: int = TOKENS) -> list[int]:
        return reference_greedy(self._reference(kind), prompt, max_tokens)


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> HfModels:
    return HfModels(tmp_path_factory.mktemp("hf"))


def greedy(max_tokens: int = TOKENS) -> Sampling:
    return replace(GREEDY, max_tokens=max_tokens, stop_token_ids=frozenset({EOS_TOKEN_ID}))


@pytest.mark.parametrize("kind", KINDS)
def test_answers_equal_those_of_transformers_in_one_piece_and_in_chunks(foreign: HfModels, kind: str) -> None:
    engine = foreign.engine(kind)
    for length in LENGTHS:
        prompt = prompt_tokens(length)
        expected = foreign.expected(kind, prompt)
        assert generate(engine, prompt, greedy()) == expected, f"prompt of {length}"
        assert generate(engine, prompt, greedy(), chunk_tokens=7) == expected, f"prompt of {length} in chunks"


@pytest.mark.parametrize("kind", KINDS)
def test_company_and_block_order_change_nothing(foreign: HfModels, kind: str) -> None:
    prompts = [prompt_tokens(length, seed=length) for length in (1, 40, 17, 70)]
    wanted = replace(GREEDY, max_tokens=TOKENS)
    alone = [generate(foreign.engine(kind), prompt, wanted) for prompt in prompts]
    assert run_together(foreign.engine(kind), prompts, [wanted] * len(prompts)) == alone


@pytest.mark.parametrize("kind", ["mixtral", "gemma2", "gemma3", "deepseek_v3"])
def test_a_prompt_goes_on_from_blocks_that_another_one_left(foreign: HfModels, kind: str) -> None:
    engine, shared = foreign.engine(kind), prompt_tokens(32, seed=4)
    first = SequenceSlice(token_ids=shared, start=0, block_table=[7, 3], draw=None)
    engine.step(StepPlan(slices=(first,)))
    ends = [prompt_tokens(length, seed=5) for length in (1, 20)]
    tables = [[7, 3, 11], [7, 3, 12, 13]]
    slices = tuple(
        SequenceSlice(token_ids=end, start=32, block_table=table, draw=greedy())
        for end, table in zip(ends, tables, strict=True)
    )
    drawn = [list(result.token_ids) for result in engine.step(StepPlan(slices=slices)).slices]
    assert drawn == [foreign.expected(kind, shared + end, 1) for end in ends]


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen3", "llama_yarn_rope"])
def test_both_implementations_write_the_same(models: Models, kind: str) -> None:
    ours, theirs = models.engine(kind), hf_engine(models.folder(kind))
    assert theirs.layout == ours.layout
    assert theirs.identity == ours.identity
    assert theirs.eos_token_ids == ours.eos_token_ids
    for length in (5, 90):
        prompt = prompt_tokens(length, seed=8)
        assert generate(theirs, prompt, greedy()) == generate(ours, prompt, greedy())
    written = [engine.memory.storage[0] for engine in (ours, theirs)]
    torch.testing.assert_close(*written, rtol=1e-4, atol=1e-5)


def test_the_attention_is_the_fastest_that_does_what_the_model_asks_for(foreign: HfModels) -> None:
    assert isinstance(foreign.engine("gemma3")._decoder.attention, CompiledAttention)
    assert isinstance(foreign.engine("gemma2")._decoder.attention, CappedAttention)


@pytest.mark.parametrize("kind", ["mixtral", "gemma2", "gpt_oss"])
def test_bfloat16_follows_closely(foreign: HfModels, kind: str) -> None:
    prompt = prompt_tokens(50)
    engine = hf_engine(foreign.folder(kind), dtype="bfloat16")
    (answer,) = generate(engine, prompt, greedy(1))
    with torch.inference_mode():
        logits = foreign._reference(kind)(torch.tensor([prompt])).logits[0, -1]
    assert logits[answer] >= logits.max() - 0.25 * logits.std()


@pytest.mark.parametrize("kind", ["gemma2", "qwen3_moe"])
async def test_a_hand_over_between_workers_changes_nothing(foreign: HfModels, kind: str) -> None:
    engines = hf_engine(foreign.folder(kind)), hf_engine(foreign.folder(kind))
    prompts = [prompt_tokens(length, seed=6) for length in (5, 33, 70)]
    async with running_pair(engines=engines) as pair:
        for prompt in prompts:
            expected = foreign.expected(kind, prompt)
            for turn in ("cold", "cached"):
                answer = await pair.client.split(f"{len(prompt)}-{turn}", prompt, max_tokens=TOKENS, sampling=greedy())
                assert answer.tokens == expected, f"{len(prompt)} tokens, {turn}"
            assert answer.prefill_cached >= (len(prompt) - 1) // 16 * 16
        await pair.until_free()
