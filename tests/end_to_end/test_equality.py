"""The answers of a whole cluster are those of `transformers`, token for token, however they came about."""

import asyncio
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cluster_core.errors import InvalidField
from cluster_core.sampling import choice_seed
from cluster_rpc.client import BatonClient
from inference_engine.engine import Engine
from inference_engine.model_folder import open_model_folder
from inference_engine.settings import EngineSettings, ModelSettings
from tests.cluster_harness import running_cluster
from tests.end_to_end.clusters import at_rest, cluster_config
from tests.end_to_end.oracle import Oracle, sampled
from tests.model_fixtures import make_model, prompt_tokens

KINDS = ("llama", "mistral", "qwen2", "qwen3")
LENGTHS = (1, 2, 15, 16, 17, 33, 100, 500, 1_000, 3_000)
MAX_TOKENS = 24
TOGETHER = 16
BLOCKS_OF_100_TOKENS = {"llama": 7, "mistral": 3, "qwen2": 7, "qwen3": 7}
"""What a hand-over moves: all blocks, but where the window has 24 tokens only those with positions from 77 on."""


@dataclass(frozen=True)
class Served:
    kind: str
    address: str
    folder: Path
    oracle: Oracle


@pytest.fixture(scope="module", params=KINDS)
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, shared_ray: str
) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp(request.param)
    model = make_model(folder / "model", request.param)
    decode_workers = 2 if request.param == KINDS[0] else 1  # which of them answers is no matter of the family
    config = cluster_config(folder, model, cluster={"ray_address": shared_ray, "decode": decode_workers})
    with running_cluster(config, folder) as cluster:
        yield Served(request.param, cluster.address, model, Oracle(model))


async def greedy(client: BatonClient, prompt: list[int], **options: object) -> list[int]:
    answer = await client.generate_text(prompt, max_tokens=MAX_TOKENS, temperature=0.0, **options)  # type: ignore[arg-type]  # options pass through
    assert len(answer.token_ids) == answer.completion.completion_tokens
    return list(answer.token_ids)


async def test_prompts_of_every_length_alone_and_again(served: Served) -> None:
    async with BatonClient(served.address) as client:
        for length in LENGTHS:
            prompt = prompt_tokens(length)
            expected = served.oracle.greedy(prompt, MAX_TOKENS)
            assert await greedy(client, prompt) == expected, f"{length} tokens, nothing cached"
            assert await greedy(client, prompt) == expected, f"{length} tokens, prompt cached"


async def test_a_prompt_that_shares_its_beginning_with_another(served: Served) -> None:
    shared = prompt_tokens(200, seed=1)
    async with BatonClient(served.address) as client:
        for end in range(3):
            prompt = shared + prompt_tokens(50, seed=2 + end)
            answer = await client.generate_text(prompt, max_tokens=MAX_TOKENS, temperature=0.0)
            assert list(answer.token_ids) == served.oracle.greedy(prompt, MAX_TOKENS)
            assert (answer.completion.cached_tokens >= 192) == (end > 0)


async def test_the_next_turn_of_a_conversation(served: Served) -> None:
    history = prompt_tokens(70, seed=9)
    async with BatonClient(served.address) as client:
        for turn in range(3):
            expected = served.oracle.greedy(history, MAX_TOKENS)
            assert await greedy(client, history) == expected
            history = history + expected + prompt_tokens(20, seed=10 + turn)


async def test_sixteen_at_a_time(served: Served) -> None:
    lengths = (1, 3, 16, 31, 64, 100, 130, 200, 255, 400, 500, 700, 1_000, 1_500, 2_000, 3_000)
    prompts = [prompt_tokens(length, seed=20) for length in lengths]
    assert len(prompts) == TOGETHER
    async with BatonClient(served.address) as client:
        for cache in ("cold", "warm"):
            answers = await asyncio.gather(*(greedy(client, prompt) for prompt in prompts))
            for prompt, answer in zip(prompts, answers, strict=True):
                assert answer == served.oracle.greedy(prompt, MAX_TOKENS), f"{len(prompt)} tokens, {cache}"


async def test_the_blocks_really_moved(served: Served) -> None:
    prompt = prompt_tokens(100, seed=40)
    async with BatonClient(served.address) as client:
        await greedy(client, prompt, request_id="moved")
        (attempt,) = await client.get_placement("moved")
    assert attempt.chosen.prefill_worker is not None
    assert attempt.handoff is not None
    assert attempt.handoff.transport == "ucx"
    assert attempt.handoff.moved_blocks == BLOCKS_OF_100_TOKENS[served.kind]
    assert attempt.handoff.moved_bytes > 0


async def test_seeded_sampling_equals_one_engine_in_one_process(served: Served) -> None:
    folder = open_model_folder(ModelSettings(path=str(served.folder)))
    engine = Engine.load(folder, EngineSettings(threads=1), total_blocks=64)
    async with BatonClient(served.address) as client:
        for seed in range(4):
            prompt = prompt_tokens(60 + seed, seed=seed)
            answer = await client.generate_text(
                prompt, max_tokens=MAX_TOKENS, temperature=0.9, top_p=0.95, top_k=40, seed=seed
            )
            assert list(answer.token_ids) == sampled(engine, prompt, seed, MAX_TOKENS)


async def test_several_answers_with_logprobs_after_one_transfer(served: Served) -> None:
    folder = open_model_folder(ModelSettings(path=str(served.folder)))
    engine = Engine.load(folder, EngineSettings(threads=1), total_blocks=64)
    prompt = prompt_tokens(100, seed=60)
    async with BatonClient(served.address) as client:
        answers = await client.generate_all(
            prompt,
            n=3,
            max_tokens=MAX_TOKENS,
            temperature=0.9,
            top_p=0.95,
            top_k=40,
            seed=5,
            logprobs=2,
            prompt_logprobs=1,
            request_id="several",
        )
        (attempt,) = await client.get_placement("several")
    assert attempt.handoff is not None
    assert attempt.handoff.moved_blocks == BLOCKS_OF_100_TOKENS[served.kind]
    for choice, answer in enumerate(answers):
        assert list(answer.token_ids) == sampled(engine, prompt, choice_seed(5, choice), MAX_TOKENS)
        assert [told.token_id for told in answer.logprobs] == list(answer.token_ids)
        assert [told and told.token_id for told in answer.prompt_logprobs] == [None, *prompt[1:]]


async def test_a_grammar_is_followed_across_the_hand_over(served: Served) -> None:
    async with BatonClient(served.address) as client:
        for seed in range(3):
            answer = await client.generate_text("the ", regex="[a-d]{5,9}", temperature=1.0, seed=seed, max_tokens=20)
            assert re.fullmatch("[a-d]{5,9}", answer.text)
        with pytest.raises(InvalidField, match=r"sampling_params\.regex"):
            await client.generate_text("the ", regex="(", max_tokens=20)


async def test_nothing_is_held_afterwards(served: Served) -> None:
    async with BatonClient(served.address) as client:
        await greedy(client, prompt_tokens(300, seed=50))
        await at_rest(client)
