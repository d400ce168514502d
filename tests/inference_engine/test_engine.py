"""Steps: company, order and place of a sequence change nothing; broken numbers are told; memory is what it says."""

import math

import numpy as np
import pytest
import torch

from cluster_core.errors import ModelFolderError, PartUnavailable
from cluster_core.sampling import Sampling
from inference_engine.engine import Engine
from inference_engine.settings import EngineSettings
from inference_engine.single import generate
from inference_engine.step import SequenceSlice, SliceResult, StepPlan
from inference_engine.step_faults import BrokenLogits
from tests.inference_engine.conftest import Models
from tests.model_fixtures import prompt_tokens


def sampling(temperature: float = 0.0, seed: int = 7, max_tokens: int = 6) -> Sampling:
    return Sampling(
        temperature=temperature, top_p=0.95, top_k=40, seed=seed, max_tokens=max_tokens, stop_token_ids=frozenset()
    )


def run_together(engine: Engine, prompts: list[list[int]], samplings: list[Sampling]) -> list[list[int]]:
    """Serve all prompts in shared steps, each started one step after the one before, its blocks in reverse order."""
    each = engine.memory.total_blocks // len(prompts)
    tables = [list(range((index + 1) * each - 1, index * each - 1, -1)) for index in range(len(prompts))]
    written: list[list[int]] = [[] for _ in prompts]
    for turn in range(100):
        slices, owners = [], []
        for index, prompt in enumerate(prompts):
            if turn < index or len(written[index]) == samplings[index].max_tokens:
                continue
            tokens = written[index][-1:] or prompt
            start = len(prompt) + len(written[index]) - 1 if written[index] else 0
            slices.append(
                SequenceSlice(token_ids=tokens, start=start, block_table=tables[index], draw=samplings[index])
            )
            owners.append(index)
        if not slices:
            return written
        for index, drawn in zip(owners, engine.step(StepPlan(slices=tuple(slices))).slices, strict=True):
            written[index] += drawn.token_ids
    raise AssertionError


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen3"])
def test_company_and_block_order_change_nothing(models: Models, kind: str) -> None:
    engine = models.engine(kind)
    prompts = [prompt_tokens(length, seed=length) for length in (1, 40, 17, 16, 90)]
    wanted = [sampling(temperature, seed) for seed, temperature in enumerate((0.0, 0.8, 0.0, 1.3, 0.8))]
    alone = [generate(engine, prompt, wish) for prompt, wish in zip(prompts, wanted, strict=True)]
    assert run_together(engine, prompts, wanted) == alone


def test_a_step_without_draws_writes_the_memory_only(models: Models) -> None:
    engine = models.engine("llama")
    piece = SequenceSlice(token_ids=prompt_tokens(20), start=0, block_table=[5, 2], draw=None)
    result = engine.step(StepPlan(slices=(piece,)))
    assert result.slices == (SliceResult(),)
    assert result.elapsed_s > 0
    storage = engine.memory.storage
    assert storage[5].ne(0).all()
    assert storage[2, :, :, :, :4].ne(0).all()
    assert storage[2, :, :, :, 4:].eq(0).all()
    assert storage[[0, 1, 3, 4]].eq(0).all()


def test_broken_memory_is_told_with_the_slice_that_read_it(models: Models) -> None:
    engine = models.engine("llama")
    for table in ([0], [1]):
        piece = SequenceSlice(token_ids=prompt_tokens(8), start=0, block_table=table, draw=None)
        engine.step(StepPlan(slices=(piece,)))
    engine.memory.storage[1, 0, 0, 0, 2] = math.nan
    slices = (
        SequenceSlice(token_ids=[3], start=0, block_table=[2], draw=None),
        SequenceSlice(token_ids=[3], start=8, block_table=[0], draw=sampling()),
        SequenceSlice(token_ids=[3], start=8, block_table=[1], draw=sampling()),
    )
    with pytest.raises(BrokenLogits, match="not finite") as caught:
        engine.step(StepPlan(slices=slices))
    assert caught.value.places == (2,)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_block_is_its_bytes(models: Models, dtype: str) -> None:
    """Bytes copied from one pool to another carry the sequence over."""
    prompt = prompt_tokens(37)
    first, second = models.engine("llama", dtype=dtype), models.engine("llama", dtype=dtype)
    whole = generate(first, prompt, sampling())
    step = StepPlan(slices=(SequenceSlice(token_ids=prompt, start=0, block_table=[0, 1, 2], draw=None),))
    first.step(step)
    for source, target in ((0, 9), (1, 4), (2, 7)):
        buffer = second.memory.buffer(target)
        assert buffer.nbytes == second.memory.block_bytes == first.layout.block_bytes
        np.copyto(buffer, first.memory.buffer(source))
    last = SequenceSlice(token_ids=whole[:1], start=37, block_table=[9, 4, 7], draw=sampling())
    assert second.step(StepPlan(slices=(last,))).slices[0].token_ids == (whole[1],)


def test_unused_slots_are_cleared(models: Models) -> None:
    pool = models.engine("llama").memory
    pool.storage[:] = 1
    pool.clear_unused(3, 5)
    assert pool.storage[3, :, :, :, :5].eq(1).all()
    assert pool.storage[3, :, :, :, 5:].eq(0).all()
    assert pool.storage[2].eq(1).all()
    assert pool.storage[4].eq(1).all()


def test_memory_that_is_not_there_is_told(models: Models) -> None:
    with pytest.raises(PartUnavailable, match="lower it"):
        models.engine("llama", blocks=1 << 40)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_device_that_is_not_there_is_told(models: Models) -> None:
    with pytest.raises(PartUnavailable, match=r"engine\.device: cuda"):
        models.engine("llama", device="cuda")


def test_weights_that_vanish_after_the_folder_was_opened_are_told(models: Models) -> None:
    folder = models.opened("untied")
    file = folder.weight_files[0]
    hidden = file.rename(file.with_suffix(".hidden"))
    try:
        with pytest.raises(ModelFolderError, match="cannot be read"):
            Engine.load(folder, EngineSettings(threads=1), 4)
    finally:
        hidden.rename(file)
