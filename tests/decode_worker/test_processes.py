"""Two real processes, a real tiny model, UCX between them, Valkey beside them: tokens equal those of one engine."""

import asyncio
import json
import os
import select
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any

import grpc
import pytest
import pytest_asyncio

from block_directory.embedded import EmbeddedServer
from block_directory.redis_directory import RedisDirectory
from block_directory.settings import DirectorySettings
from cluster_core.hash_chain import root_hash
from cluster_core.identity import Incarnation, WorkerId
from cluster_rpc.v1 import worker_pb2 as pb
from cluster_rpc.v1 import worker_pb2_grpc
from cluster_rpc.worker_messages import PrefillOrigin
from inference_engine.engine import Engine
from inference_engine.model_folder import open_model_folder
from inference_engine.settings import EngineSettings, ModelSettings
from inference_engine.single import generate
from tests.cluster_harness import write_config
from tests.fake_engine import GREEDY
from tests.model_fixtures import make_model
from tests.pair_client import PairClient

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 30.0
SAMPLED = replace(GREEDY, temperature=0.8, top_p=0.9, seed=1234)


@dataclass(slots=True)
class Processes:
    """Both workers as processes, and one engine here for comparison."""

    prefill: "subprocess.Popen[str]"
    decode: "subprocess.Popen[str]"
    ready: dict[str, dict[str, Any]]
    engine: Engine
    directory_url: str

    def stop(self, process: "subprocess.Popen[str]") -> int:
        process.terminate()
        return process.wait(STOP_TIMEOUT_S)


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    folder = tmp_path_factory.mktemp("workers")
    model = make_model(folder / "model", "llama")
    engine_section = {"threads": 1, "block_size_tokens": 16}
    config = write_config(
        folder,
        {
            "model": {"path": str(model)},
            "engine": engine_section,
            "prefill": {"total_blocks": 128, "token_budget": 64, "chunk_tokens": 32},
            "decode": {"total_blocks": 128},
            "transfer": {"transport": "ucx", "lease_s": 2.0},
        },
    )
    server = EmbeddedServer(DirectorySettings())
    url = server.start()
    started: dict[str, subprocess.Popen[str]] = {}
    try:
        for role in ("prefill", "decode"):
            command = [sys.executable, "-m", f"{role}_worker", str(config)]
            with (folder / f"{role}.log").open("w") as log:
                started[role] = subprocess.Popen(
                    [*command, "--worker-id", f"{role}-0", "--directory-url", url],
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    env=dict(os.environ, OMP_NUM_THREADS="1"),
                )
        settings = EngineSettings(threads=1)
        engine = Engine.load(open_model_folder(ModelSettings(path=str(model))), settings, 128)
        ready = {}
        for role, process in started.items():
            assert process.stdout is not None
            readable, _, _ = select.select([process.stdout], [], [], START_TIMEOUT_S)
            line = process.stdout.readline() if readable else ""
            assert line, (folder / f"{role}.log").read_text()
            ready[role] = json.loads(line)
        yield Processes(started["prefill"], started["decode"], ready, engine, url)
    finally:
        for process in started.values():
            if process.poll() is None:
                process.kill()
            process.wait(STOP_TIMEOUT_S)
        server.stop()


@pytest_asyncio.fixture
async def client(processes: Processes) -> AsyncIterator[PairClient]:
    ready = processes.ready
    async with AsyncExitStack() as exits:
        to_prefill, to_decode = [
            await exits.enter_async_context(grpc.aio.insecure_channel(ready[role]["address"]))
            for role in ("prefill", "decode")
        ]
        origin = PrefillOrigin(
            worker_id=WorkerId("prefill-0"),
            incarnation=Incarnation(ready["prefill"]["incarnation"]),
            address=ready["prefill"]["address"],
        )
        pair = PairClient(to_prefill, to_decode, origin)
        pair.root = root_hash(processes.engine.identity.root_hash_seed(processes.engine.layout), "")
        yield pair


def prompt_of(length: int) -> list[int]:
    return [(place * 37 + place * place) % 256 for place in range(length)]


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("length", [1, 15, 16, 100, 333])
async def test_tokens_equal_one_engine(processes: Processes, client: PairClient, length: int, sampling: Any) -> None:
    prompt = prompt_of(length)
    expected = generate(processes.engine, prompt, replace(sampling, max_tokens=24))
    name = f"{length}-{sampling.temperature}"
    split = await client.split(f"split-{name}", prompt, max_tokens=24, sampling=sampling)
    assert split.tokens == expected
    assert split.report is not None
    assert split.report.transport == "ucx"
    again = await client.split(f"again-{name}", prompt, max_tokens=24, sampling=sampling)
    assert again.tokens == expected
    local = await client.local(f"local-{name}", prompt, max_tokens=24, sampling=sampling)
    assert local.tokens == expected


async def test_eight_at_once_equal_one_engine(processes: Processes, client: PairClient) -> None:
    prompts = [[seed, *prompt_of(10 + 23 * seed)] for seed in range(8)]
    answers = await asyncio.gather(*(client.split(f"r{i}", p, max_tokens=16) for i, p in enumerate(prompts)))
    for prompt, answer in zip(prompts, answers, strict=True):
        assert answer.tokens == generate(processes.engine, prompt, replace(GREEDY, max_tokens=16))


async def status_of(ready: dict[str, Any]) -> pb.WorkerStatus:
    async with grpc.aio.insecure_channel(ready["address"]) as channel:
        stub: Any = worker_pb2_grpc.WorkerServiceStub(channel)  # type: ignore[no-untyped-call]  # generated
        watch = stub.Watch(pb.WatchRequest(period_s=0.02), timeout=20)
        status: pb.WorkerStatus = await watch.read()
        while status.held_blocks:
            status = await watch.read()
        watch.cancel()
        return status


async def test_the_workers_are_registered_and_end_with_0_when_told_to(processes: Processes) -> None:
    directory = RedisDirectory(processes.directory_url, DirectorySettings())
    records = {record.worker_id: record for record in await directory.workers()}
    assert {record.address for record in records.values()} == {ready["address"] for ready in processes.ready.values()}
    for ready in processes.ready.values():
        status = await status_of(ready)
        assert status.held_blocks == 0
        assert status.orphaned_holds == 0
    assert [processes.stop(process) for process in (processes.prefill, processes.decode)] == [0, 0]
    assert await directory.workers() == []
    await directory.close()
