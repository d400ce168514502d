"""The router as it is really put together: a model folder, a directory server, its own server; fake workers."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from block_directory.embedded import EmbeddedServer
from block_directory.redis_directory import RedisDirectory
from block_directory.settings import DirectorySettings
from cluster_core.errors import PartUnavailable
from cluster_core.identity import Role, WorkerId
from cluster_rpc.v1 import cluster_pb2, cluster_pb2_grpc, generation_pb2, generation_pb2_grpc
from inference_engine.model_folder import layout_of, open_model_folder
from inference_engine.settings import EngineSettings, ModelSettings
from router.wiring import build_router
from tests.router.fake_workers import FakeWorker
from tests.router.router_harness import PATIENCE_S

MODEL_FOLDER = Path(__file__).resolve().parents[2] / "examples/demo_model"


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedServer]:
    embedded = EmbeddedServer(DirectorySettings())

    yield embedded
    embedded.stop()


def document(port: int = 0) -> dict[str, Any]:
    return {
        "model": {"path": str(MODEL_FOLDER), "name": "demo"},
        "router": {"port": port, "watch_period_s": 0.05, "drain_timeout_s": 1.0},
        "directory": {"lease_s": 1.0, "call_timeout_s": 0.5},
    }


async def test_the_directorys_password_is_not_told() -> None:
    router = build_router(document(), "redis://user:secret@127.0.0.1:1/0")
    address = await router.start()
    try:
        async with grpc.aio.insecure_channel(address) as channel, asyncio.timeout(PATIENCE_S):
            cluster = cluster_pb2_grpc.ClusterServiceStub(channel)  # type: ignore[no-untyped-call]  # generated
            listed = await cluster.ListWorkers(cluster_pb2.ListWorkersRequest())
            assert listed.directory_url == "redis://user:***@127.0.0.1:1/0"
    finally:
        await router.close()


async def test_text_in_text_out_with_and_without_the_directory(server: EmbeddedServer) -> None:
    url = server.start()
    folder = open_model_folder(ModelSettings(path=str(MODEL_FOLDER)))
    worker = FakeWorker(
        worker_id="decode-0",
        role=Role.DECODE,
        layout=layout_of(folder.config, EngineSettings()),
        model=folder.identity,
    )
    record = await worker.start()
    settings = DirectorySettings(lease_s=1.0)
    directory = RedisDirectory(url, settings)
    await directory.register(record, 30.0)
    router = build_router(document(), url)
    address = await router.start()
    try:
        async with grpc.aio.insecure_channel(address) as channel, asyncio.timeout(PATIENCE_S):
            cluster = cluster_pb2_grpc.ClusterServiceStub(channel)  # type: ignore[no-untyped-call]  # generated
            generation = generation_pb2_grpc.GenerationServiceStub(channel)  # type: ignore[no-untyped-call]  # generated
            request = generation_pb2.GenerateRequest(
                text="def add(a, b):", sampling_params=generation_pb2.SamplingParams(temperature=0.0, max_tokens=5)
            )
            responses = [response async for response in generation.Generate(request)]
            assert sum(len(response.chunk.token_ids) for response in responses) == 5
            assert responses[-1].complete.finish_reason == "length"
            assert responses[-1].complete.prompt_tokens > 1

            listed = await cluster.ListWorkers(cluster_pb2.ListWorkersRequest())
            while listed.mode != "SERVING":
                listed = await cluster.ListWorkers(cluster_pb2.ListWorkersRequest())
            assert (listed.model, listed.directory_url) == ("demo", url)
            server.stop()
            while listed.mode != "DEGRADED":
                listed = await cluster.ListWorkers(cluster_pb2.ListWorkersRequest())
            assert [response async for response in generation.Generate(request)]
            assert [each.state for each in listed.workers] == ["ready"]

            taken = int(address.rpartition(":")[2])
            other = build_router(document(taken), url)
            with pytest.raises(PartUnavailable, match=str(taken)):
                await other.start()
            await other.close()
    finally:
        await router.close()
        await directory.close()
        await worker.crash()
    assert router.membership.find(WorkerId("decode-0")) is None
