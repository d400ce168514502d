"""Processes die; the client does not notice."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass

import psutil
import pytest

from cluster_core.errors import BatonError
from cluster_core.identity import Role
from cluster_rpc.answers import AttemptView, ClusterView, WorkerView
from cluster_rpc.client import BatonClient
from tests.cluster_harness import RunningCluster, running_cluster
from tests.end_to_end.clusters import cluster_config
from tests.end_to_end.oracle import Oracle
from tests.model_fixtures import make_model, prompt_tokens

RECOVERY_S = 60.0


@dataclass(frozen=True)
class Served:
    cluster: RunningCluster
    oracle: Oracle


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Small chunks make a long prefill of many steps, so that a kill finds it running."""
    folder = tmp_path_factory.mktemp("failures")
    model = make_model(folder / "model", "llama")
    config = cluster_config(
        folder, model, cluster={"directory_restart_s": 4.0}, prefill={"token_budget": 16, "chunk_tokens": 16}
    )
    with running_cluster(config, folder) as cluster:
        yield Served(cluster, Oracle(model))


@pytest.fixture
async def client(served: Served) -> AsyncIterator[BatonClient]:
    async with BatonClient(served.cluster.address) as connected:
        yield connected


async def until(client: BatonClient, settled: Callable[[ClusterView], bool]) -> ClusterView:
    """Wait until the cluster's state satisfies ``settled``."""
    async with asyncio.timeout(RECOVERY_S):
        while True:
            view = await client.list_workers()
            if settled(view):
                return view
            await asyncio.sleep(0.05)


def worker(view: ClusterView, worker_id: str) -> WorkerView:
    (found,) = (one for one in view.workers if one.worker_id == worker_id and one.state == "ready")
    return found


def all_ready_and_free(view: ClusterView) -> bool:
    return [one.state for one in view.workers] == ["ready"] * 3 and all(
        one.load.held_blocks == 0 and one.load.orphaned_holds == 0 for one in view.workers
    )


async def placed(client: BatonClient, request_id: str) -> AttemptView:
    """Wait until the request has been placed."""
    async with asyncio.timeout(RECOVERY_S):
        while not (attempts := await attempts_of(client, request_id)):  # noqa: ASYNC110  # another process's state
            await asyncio.sleep(0.005)
    return attempts[0]


async def attempts_of(client: BatonClient, request_id: str) -> tuple[AttemptView, ...]:
    try:
        return await client.get_placement(request_id)
    except BatonError:
        return ()  # not placed yet


async def test_a_prefill_worker_dies_during_a_prefill(served: Served, client: BatonClient) -> None:
    before = await until(client, all_ready_and_free)
    victim = next(one for one in before.workers if one.role is Role.PREFILL)
    prompt = prompt_tokens(3_000, seed=1)
    answer = asyncio.create_task(
        client.generate_text(prompt, max_tokens=24, temperature=0.0, request_id="prefill-dies")
    )
    attempt = await placed(client, "prefill-dies")
    assert attempt.chosen.prefill_worker == victim.worker_id
    os.kill(victim.pid, signal.SIGKILL)

    assert list((await answer).token_ids) == served.oracle.greedy(prompt, 24)
    attempts = await client.get_placement("prefill-dies")
    assert len(attempts) == 2, "the kill came while the prefill was running"
    after = await until(client, all_ready_and_free)
    restarted = worker(after, victim.worker_id)
    assert restarted.pid != victim.pid
    assert restarted.incarnation != victim.incarnation


@pytest.mark.parametrize("tokens_before", [1, 17])  # more of them, on the hash model, in test_recovery.py
async def test_a_decode_worker_dies_in_mid_stream(served: Served, client: BatonClient, tokens_before: int) -> None:
    await until(client, all_ready_and_free)
    prompt = prompt_tokens(64, seed=100 + tokens_before)
    expected = served.oracle.greedy(prompt, 200)
    request_id = f"decode-dies-{tokens_before}"
    received: list[int] = []
    victim: WorkerView | None = None
    stream = client.generate(prompt, max_tokens=200, temperature=0.0, request_id=request_id)
    async with aclosing(stream):
        async for chunk in stream:
            assert chunk.completion is not None or chunk.token_index == len(received)
            received.extend(chunk.token_ids)
            if victim is None and len(received) >= tokens_before:
                attempt = await placed(client, request_id)
                victim = worker(await client.list_workers(), attempt.chosen.decode_worker)
                os.kill(victim.pid, signal.SIGKILL)
    assert received == expected
    assert victim is not None
    after = await until(client, all_ready_and_free)
    assert worker(after, victim.worker_id).pid != victim.pid
    if len(expected) > tokens_before + 100:
        assert len(await client.get_placement(request_id)) == 2, "the kill came while the answer was being written"


async def test_the_directory_server_dies_and_nobody_notices_but_status(served: Served, client: BatonClient) -> None:
    await until(client, all_ready_and_free)
    (server,) = (
        process
        for process in psutil.Process(served.cluster.process.pid).children(recursive=True)
        if "valkey" in process.name() or "redis" in process.name()
    )
    prompt = prompt_tokens(100, seed=7)
    expected = served.oracle.greedy(prompt, 48)
    before = await client.generate_text(prompt, max_tokens=48, temperature=0.0)
    server.kill()
    view = await until(client, lambda view: view.mode == "DEGRADED")
    assert all(one.state == "ready" for one in view.workers)
    after = await client.generate_text(prompt, max_tokens=48, temperature=0.0)
    other = await client.generate_text(prompt_tokens(200, seed=8), max_tokens=48, temperature=0.0)
    assert list(before.token_ids) == list(after.token_ids) == expected
    assert after.completion.cached_tokens >= 96
    assert list(other.token_ids) == served.oracle.greedy(prompt_tokens(200, seed=8), 48)
    await until(client, lambda view: view.mode == "SERVING")
