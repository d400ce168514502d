"""A model whose layers all have a window, on two workers: only the window's tail moves, and little is held."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import grpc
import pytest

from cluster_core.layout import blocks_in_window, first_block_in_window
from cluster_core.sampling import Sampling
from inference_engine.engine import Engine
from inference_engine.model_folder import open_model_folder
from inference_engine.settings import EngineSettings, ModelSettings
from inference_engine.single import generate
from inference_engine.step import StepPlan, StepResult
from tests.fake_engine import GREEDY
from tests.model_fixtures import make_model, prompt_tokens
from tests.worker_pair import DECODE, PREFILL, WorkerPair, running_pair

WINDOW = 24
SIZE = 4
BLOCKS = 64
SAMPLED = replace(GREEDY, temperature=1.0, seed=11)
MakeEngine = Callable[[int], Engine]


@pytest.fixture(scope="module")
def make_engine(tmp_path_factory: pytest.TempPathFactory) -> MakeEngine:
    root = tmp_path_factory.mktemp("models")

    @cache
    def folder(window: int) -> Path:
        return make_model(root / str(window), "mistral", sliding_window=window)

    def make(window: int) -> Engine:
        opened = open_model_folder(ModelSettings(path=str(folder(window))))
        return Engine.load(opened, EngineSettings(threads=1, block_size_tokens=SIZE), BLOCKS)

    return make


class Watched:
    """An engine that notes how many blocks its worker holds when a step begins."""

    def __init__(self, engine: Engine) -> None:
        self.layout, self.identity, self.memory = engine.layout, engine.identity, engine.memory
        self.eos_token_ids, self.grammars = engine.eos_token_ids, engine.grammars
        self.most_held = 0
        self.count: Callable[[], int] = lambda: 0
        self._engine = engine

    def step(self, plan: StepPlan) -> StepResult:
        self.most_held = max(self.most_held, self.count())
        return self._engine.step(plan)


def watch(pair: WorkerPair, engines: tuple[Watched, Watched]) -> None:
    for pool, engine in zip(pair.pools(), engines, strict=True):
        engine.count = lambda pool=pool: pool.counts().held  # type: ignore[misc]  # the loop's own pool


@pytest.mark.parametrize("chosen", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
async def test_only_the_tail_moves_and_the_answer_is_the_oracles(make_engine: MakeEngine, chosen: Sampling) -> None:
    engines, oracle = (make_engine(WINDOW), make_engine(WINDOW)), make_engine(WINDOW)
    async with running_pair(engines=engines) as pair:
        for length in (3, 25, 50, 99):
            prompt = prompt_tokens(length)
            expected = generate(oracle, prompt, replace(chosen, max_tokens=20))
            split = await pair.client.split(f"split{length}", prompt, max_tokens=20, sampling=chosen)
            assert split.tokens == expected
            assert split.report is not None
            first = first_block_in_window(length, WINDOW, SIZE)
            assert split.report.moved_blocks == -(-length // SIZE) - first <= blocks_in_window(WINDOW, SIZE)
            assert (split.report.kept_blocks, split.decode_cached) == (0, 0)
            again = await pair.client.split(f"again{length}", prompt, max_tokens=20, sampling=chosen)
            assert again.tokens == expected
            assert again.report is not None
            assert again.report.moved_blocks == (length % SIZE > 0)
            local = await pair.client.local(f"local{length}", prompt, max_tokens=20, sampling=chosen)
            assert local.tokens == expected
            await pair.until_free()


async def test_a_long_answer_holds_a_window(make_engine: MakeEngine) -> None:
    engines, oracle = (Watched(make_engine(WINDOW)), Watched(make_engine(WINDOW))), make_engine(WINDOW)
    bound = blocks_in_window(WINDOW, SIZE) + DECODE.chunk_tokens // SIZE + 2
    async with running_pair(engines=engines) as pair:
        watch(pair, engines)
        prompt = prompt_tokens(60)
        expected = generate(oracle, prompt, replace(GREEDY, max_tokens=120))
        for call in (pair.client.split, pair.client.local):
            engines[1].most_held = 0
            assert (await call(call.__name__, prompt, max_tokens=120)).tokens == expected
            assert 0 < engines[1].most_held <= bound
            await pair.until_free()


async def test_tiny_pools_change_nothing(make_engine: MakeEngine) -> None:
    """Many answers in a pool that holds few windows: preempted ones find their tails again or read once more."""
    engines, oracle = (make_engine(WINDOW), make_engine(WINDOW)), make_engine(WINDOW)
    settings = replace(PREFILL, total_blocks=34), replace(DECODE, total_blocks=34)
    async with running_pair(*settings, engines=engines) as pair:
        prompts = [prompt_tokens(20 + 9 * seed, seed % 3) for seed in range(8)]
        answers = await asyncio.gather(*(pair.client.split(f"r{i}", p, max_tokens=40) for i, p in enumerate(prompts)))
        for prompt, answer in zip(prompts, answers, strict=True):
            assert answer.tokens == generate(oracle, prompt, replace(GREEDY, max_tokens=40))
        await pair.until_free()


async def test_workers_of_different_windows_refuse_each_other(make_engine: MakeEngine) -> None:
    async with running_pair(engines=(make_engine(WINDOW), make_engine(WINDOW + 8))) as pair:
        with pytest.raises(grpc.aio.AioRpcError, match="window_tokens") as refused:
            await pair.client.split("a", prompt_tokens(60))
        assert refused.value.code() is grpc.StatusCode.ABORTED
        await pair.until_free()
