"""The hash model through a whole cluster: what was handed over, cached or shared is what was written, byte for byte."""

import asyncio
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

from cluster_core.errors import InvalidField
from cluster_core.sampling import Sampling, choice_seed
from cluster_rpc.client import BatonClient
from inference_engine.hash_model import HashModel, hash_answer, make_hash_model
from inference_engine.settings import EngineSettings, HashModelSettings, ModelSettings
from tests.cluster_harness import running_cluster
from tests.end_to_end.clusters import at_rest, cluster_config
from tests.inference_engine.hash_models import random_tokens

MAX_TOKENS = 24
SHAPE = HashModelSettings(vocab_size=4096, eos_tokens=128, layers=3)
"""About every other answer ends by itself."""

LENGTHS = (1, 2, 15, 16, 17, 100, 1_000, 3_000)
CONCURRENT = 40


@dataclass(frozen=True)
class Served:
    placement: str
    address: str
    model: HashModel

    def answer(self, prompt: list[int], seed: int | None = None) -> list[int]:
        """Return what the oracle answers, greedily where there is no seed."""
        sampling = Sampling(
            temperature=0.0 if seed is None else 1.0,
            top_p=1.0,
            top_k=0,
            seed=seed or 0,
            max_tokens=MAX_TOKENS,
            stop_token_ids=self.model.eos_token_ids,
        )
        return hash_answer(self.model, prompt, sampling)


@pytest.fixture(scope="module", params=["split", "local"])
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, shared_ray: str
) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp(request.param)
    config = cluster_config(
        folder,
        None,
        cluster={"ray_address": shared_ray},
        hash_model=asdict(SHAPE),
        router={"placement": request.param},
    )
    model = make_hash_model(ModelSettings(implementation="hash"), SHAPE, EngineSettings())
    with running_cluster(config, folder) as cluster:
        yield Served(request.param, cluster.address, model)


def tokens(length: int, seed: int) -> list[int]:
    return [token % SHAPE.vocab_size for token in random_tokens(length, seed)]


def loaded_libraries(pid: int) -> str:
    return Path(f"/proc/{pid}/maps").read_text()


async def asked(client: BatonClient, prompt: list[int], seed: int | None = None, **options: object) -> list[int]:
    how = {"temperature": 0.0} if seed is None else {"temperature": 1.0, "seed": seed}
    answer = await client.generate_text(prompt, max_tokens=MAX_TOKENS, **how, **options)  # type: ignore[arg-type]  # options pass through
    return list(answer.token_ids)


async def test_prompts_of_every_length_alone_and_again(served: Served) -> None:
    async with BatonClient(served.address) as client:
        for length in LENGTHS:
            prompt = tokens(length, seed=1)
            for cache in ("cold", "warm"):
                assert await asked(client, prompt) == served.answer(prompt), f"{length} tokens, {cache}"
        await asked(client, tokens(100, seed=2), request_id="placed")
        (attempt,) = await client.get_placement("placed")
    assert (attempt.handoff is not None) == (served.placement == "split")


async def test_many_at_once_with_shared_beginnings_greedy_and_seeded(served: Served) -> None:
    beginnings = [tokens(length, seed=10 + length) for length in (64, 200, 700)]
    prompts = [beginnings[number % 3] + tokens(1 + 7 * number, seed=number) for number in range(CONCURRENT)]
    seeds = [None if number % 2 else number for number in range(CONCURRENT)]
    async with BatonClient(served.address) as client:
        for _ in range(2):
            answers = await asyncio.gather(
                *(asked(client, prompt, seed) for prompt, seed in zip(prompts, seeds, strict=True))
            )
            for prompt, seed, answer in zip(prompts, seeds, answers, strict=True):
                assert answer == served.answer(prompt, seed), f"{len(prompt)} tokens, seed {seed}"
        await at_rest(client)


async def test_the_next_turn_of_a_conversation_finds_the_answer_in_the_cache(served: Served) -> None:
    history = tokens(70, seed=3)
    async with BatonClient(served.address) as client:
        for turn in range(4):
            expected = served.answer(history)
            assert await asked(client, history) == expected
            history = history + expected + tokens(20, seed=4 + turn)


async def test_several_answers_to_one_prompt(served: Served) -> None:
    prompt = tokens(90, seed=5)
    async with BatonClient(served.address) as client:
        answers = await client.generate_all(prompt, n=4, max_tokens=MAX_TOKENS, temperature=1.0, seed=6)
    for choice, answer in enumerate(answers):
        assert list(answer.token_ids) == served.answer(prompt, choice_seed(6, choice))


async def test_a_text_is_its_bytes(served: Served) -> None:
    async with BatonClient(served.address) as client:
        answer = await client.generate_text("a täxt", max_tokens=MAX_TOKENS, temperature=0.0)
    assert list(answer.token_ids) == served.answer(list("a täxt".encode()))


async def test_what_needs_logits_is_one_line_and_harms_nobody(served: Served) -> None:
    prompt = tokens(500, seed=7)
    async with BatonClient(served.address) as client:
        beside = asyncio.gather(*(asked(client, prompt, seed) for seed in range(8)))
        for options, field in (({"logprobs": 1}, "logprobs"), ({"top_k": 3}, "top_k"), ({"regex": "a"}, "regex")):
            with pytest.raises(InvalidField, match=rf"^sampling_params\.{field}: the hash model has no logits"):
                await client.generate_text(prompt, max_tokens=4, temperature=1.0, **options)
        for seed, answer in enumerate(await beside):
            assert answer == served.answer(prompt, seed)
        view = await at_rest(client)
    assert not [worker.worker_id for worker in view.workers if "libtorch" in loaded_libraries(worker.pid)]
