"""The engine on a CUDA device; the attention back ends are in the contract suite. Skipped where there is none."""

import warnings
from itertools import chain
from typing import Any

import pytest
import torch

from cluster_core.sampling import Sampling
from inference_engine.engine import Engine
from inference_engine.settings import EngineSettings
from inference_engine.single import generate
from inference_engine.step import SequenceSlice, StepPlan
from tests.inference_engine.conftest import Models
from tests.model_fixtures import EOS_TOKEN_ID, prompt_tokens

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")

ATTENTIONS = ("auto", "triton", "reference")
LENGTHS = (1, 16, 33, 200)


def sampling(temperature: float) -> Sampling:
    stops = frozenset({EOS_TOKEN_ID})
    return Sampling(temperature=temperature, top_p=0.95, top_k=40, seed=5, max_tokens=24, stop_token_ids=stops)


def on_cuda(models: Models, kind: str, **settings: Any) -> Engine:
    return models.engine(kind, device="cuda", **settings)


def slices(tokens: list[int], starts: list[int], draw: Sampling) -> tuple[SequenceSlice, ...]:
    return tuple(
        SequenceSlice(token_ids=[token], start=start, block_table=range(index * 4, index * 4 + 4), draw=draw)
        for index, (token, start) in enumerate(zip(tokens, starts, strict=True))
    )


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2_window", "qwen3", "mqa"])
def test_tokens_in_float32_are_those_of_the_cpu(models: Models, kind: str, attention: str, temperature: float) -> None:
    here, there = models.engine(kind), on_cuda(models, kind, attention=attention)
    for length in LENGTHS:
        prompt = prompt_tokens(length)
        assert generate(there, prompt, sampling(temperature)) == generate(here, prompt, sampling(temperature))


@pytest.mark.parametrize("sequences", [1, 3, 8, 13])
def test_replayed_steps_write_and_draw_what_launched_ones_do(models: Models, sequences: int) -> None:
    engines = [on_cuda(models, "llama", cuda_graphs=graphs) for graphs in (True, False)]
    noise = torch.randn(engines[0].memory.storage[:64].shape, generator=torch.Generator().manual_seed(1))
    drawn: list[list[list[int]]] = []
    for engine in engines:
        engine.memory.storage[:64] = noise.to("cuda")
        tokens, starts = list(range(sequences)), [7 * index % 50 for index in range(sequences)]
        steps = []
        for _ in range(6):
            results = engine.step(StepPlan(slices=slices(tokens, starts, sampling(0.9)))).slices
            tokens = list(chain.from_iterable(result.token_ids for result in results))
            starts = [start + 1 for start in starts]
            steps.append(tokens)
        drawn.append(steps)
    assert drawn[0] == drawn[1]
    replayed, launched = (engine.memory.storage[:64] for engine in engines)
    torch.testing.assert_close(replayed, launched, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_decode_step_waits_for_the_device_once(models: Models, temperature: float) -> None:
    engine = on_cuda(models, "llama", dtype="bfloat16")
    plan = StepPlan(slices=slices([1, 2, 3], [5, 6, 7], sampling(temperature)))
    engine.step(plan)  # captures
    with warnings.catch_warnings(record=True) as waits:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            engine.step(plan)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    told = [f"{wait.filename}:{wait.lineno}" for wait in waits if "synchronizing" in str(wait.message)]
    assert len(told) == 1, told


def test_graphs_that_are_captured_early_write_no_block_of_a_request(models: Models) -> None:
    engine = on_cuda(models, "llama")
    engine.prepare_decode(20)
    assert engine.memory.storage[: engine.memory.total_blocks].eq(0).all()
    assert engine.memory.storage[engine.memory.total_blocks].ne(0).any()


def test_a_step_that_draws_nothing_has_written_its_kv_when_it_ends(models: Models) -> None:
    engine = on_cuda(models, "llama")
    piece = SequenceSlice(token_ids=prompt_tokens(20), start=0, block_table=[5, 2], draw=None)
    engine.step(StepPlan(slices=(piece,)))
    assert torch.cuda.current_stream().query()
    assert engine.memory.storage[5].ne(0).all()


def test_auto_takes_kernels_that_read_blocks_in_place(models: Models) -> None:
    engine = on_cuda(models, "llama", dtype="float32")
    assert type(engine._decoder.attention).__name__ == "TritonAttention"
    assert EngineSettings(device="cuda").cuda_graphs
