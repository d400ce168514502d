"""A cluster of one worker that reads and writes, with a draft model: the same answers as any other."""

import asyncio
from pathlib import Path

from cluster_core.identity import Role
from cluster_rpc.client import BatonClient
from tests.cluster_harness import running_cluster
from tests.end_to_end.clusters import at_rest, cluster_config
from tests.end_to_end.oracle import Oracle
from tests.model_fixtures import make_model, prompt_tokens

MAX_TOKENS = 40
LENGTHS = (1, 17, 150, 1_000)


async def test_one_worker_reads_guesses_and_writes(tmp_path: Path, shared_ray: str) -> None:
    model = make_model(tmp_path / "model", "llama")
    config = cluster_config(
        tmp_path,
        model,
        cluster={"name": "colocated", "prefill": 0, "decode": 1, "ray_address": shared_ray},
        router={"placement": "local"},
        speculation={"method": "draft_model", "draft_model": "model", "max_draft_tokens": 4},
    )
    oracle = Oracle(model)
    prompts = [prompt_tokens(length, seed=3) for length in LENGTHS]
    with running_cluster(config, tmp_path) as cluster:
        async with BatonClient(cluster.address) as client:
            for _ in range(2):
                answers = await asyncio.gather(
                    *(client.generate_text(prompt, max_tokens=MAX_TOKENS, temperature=0.0) for prompt in prompts)
                )
                for prompt, answer in zip(prompts, answers, strict=True):
                    assert list(answer.token_ids) == oracle.greedy(prompt, MAX_TOKENS), f"{len(prompt)} tokens"
            (worker,) = (await at_rest(client)).workers
    assert worker.role is Role.DECODE
    assert worker.load.written_tokens >= worker.load.answer_steps > 0
