"""A whole cluster whose blocks move over NIXL: the hash model shows any byte that is not the one that was sent."""

import asyncio
from collections.abc import Iterator
from importlib import util
from pathlib import Path

import pytest

from cluster_core.sampling import Sampling
from cluster_rpc.client import BatonClient
from inference_engine.hash_model import HashModel, hash_answer, make_hash_model
from inference_engine.settings import EngineSettings, HashModelSettings, ModelSettings
from tests.cluster_harness import RunningCluster, running_cluster
from tests.end_to_end.clusters import at_rest, cluster_config
from tests.inference_engine.hash_models import random_tokens

pytestmark = pytest.mark.skipif(
    util.find_spec("nixl_cu12") is None, reason="NIXL is not installed: pip install 'baton-serve[nixl]'"
)

MAX_TOKENS = 16
LENGTHS = (1, 17, 300, 3_000)
CONCURRENT = 24
MEASURED_S = 20.0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, shared_ray: str) -> Iterator[RunningCluster]:
    folder: Path = tmp_path_factory.mktemp("nixl")
    config = cluster_config(folder, None, cluster={"ray_address": shared_ray}, transfer={"transport": "nixl"})
    with running_cluster(config, folder) as running:
        yield running


@pytest.fixture(scope="module")
def model() -> HashModel:
    return make_hash_model(ModelSettings(implementation="hash"), HashModelSettings(), EngineSettings())


def expected(model: HashModel, prompt: list[int]) -> list[int]:
    sampling = Sampling(
        temperature=0.0, top_p=1.0, top_k=0, seed=0, max_tokens=MAX_TOKENS, stop_token_ids=model.eos_token_ids
    )
    return hash_answer(model, prompt, sampling)


def tokens(length: int, seed: int) -> list[int]:
    return [token % HashModelSettings().vocab_size for token in random_tokens(length, seed)]


async def asked(client: BatonClient, prompt: list[int], request_id: str = "") -> list[int]:
    answer = await client.generate_text(prompt, max_tokens=MAX_TOKENS, temperature=0.0, request_id=request_id)
    return list(answer.token_ids)


async def test_prompts_are_handed_over_by_nixl_whole(cluster: RunningCluster, model: HashModel) -> None:
    async with BatonClient(cluster.address) as client:
        for length in LENGTHS:
            prompt = tokens(length, seed=length)
            assert await asked(client, prompt, f"nixl-{length}") == expected(model, prompt), length
            (attempt,) = await client.get_placement(f"nixl-{length}")
            assert attempt.handoff is not None
            assert attempt.handoff.transport == "nixl"


async def test_many_at_once_and_nothing_is_left(cluster: RunningCluster, model: HashModel) -> None:
    prompts = [tokens(20 + 40 * number, seed=100 + number) for number in range(CONCURRENT)]
    async with BatonClient(cluster.address) as client:
        answers = await asyncio.gather(*(asked(client, prompt) for prompt in prompts))
        assert answers == [expected(model, prompt) for prompt in prompts]
        await at_rest(client)


async def test_what_carries_nixl_is_told(cluster: RunningCluster) -> None:
    async with BatonClient(cluster.address) as client, asyncio.timeout(MEASURED_S):
        while True:  # the measurement is over; a worker's next status tells of it
            view = await client.list_workers()
            links = [link for worker in view.workers for link in worker.load.links if link.measured]
            if links:
                break
            await asyncio.sleep(0.05)
    assert {(link.transport, link.lane) for link in links} == {("nixl", "shared memory")}
