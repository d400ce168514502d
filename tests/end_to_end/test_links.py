"""Workers that meet measure the way between them, and one whose blocks would not fit is kept out."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster_core.identity import Role
from cluster_rpc.client import BatonClient
from tests.cluster_harness import RunningCluster, running_cluster, write_config
from tests.end_to_end.clusters import at_rest, cluster_config
from tests.inference_engine.hash_models import random_tokens

MEASURED_S = 30.0
LEASE_S = 1.0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, shared_ray: str) -> Iterator[RunningCluster]:
    folder = tmp_path_factory.mktemp("links")
    config = cluster_config(
        folder, None, cluster={"ray_address": shared_ray}, directory={"lease_s": LEASE_S}, hash_model={"head_dim": 64}
    )
    with running_cluster(config, folder) as running:
        yield running


def run(cluster: RunningCluster, module: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=dict(os.environ, XDG_RUNTIME_DIR=str(cluster.folder), COLUMNS="160"),
    )


async def test_links_are_measured_before_the_cluster_says_that_it_is_ready(cluster: RunningCluster) -> None:
    async with BatonClient(cluster.address) as client:
        async with asyncio.timeout(MEASURED_S):
            while True:  # the measurement is over; a worker's next status tells of it
                view = await client.list_workers()
                links = {
                    (link.peer, worker.worker_id): link
                    for worker in view.workers
                    if worker.role is Role.DECODE
                    for link in worker.load.links
                    if link.peer.startswith("prefill")
                }
                if len(links) == 2:
                    break
                await asyncio.sleep(0.05)
        for link in links.values():
            assert link.transport == "ucx"
            assert link.lane in {"cma", "shared memory"}
            assert not link.warning
            assert min(link.call_s, link.round_trip_s, link.large_in_bytes_per_s, link.large_out_bytes_per_s) > 0
        await client.generate_text(
            [token % 4096 for token in random_tokens(600, seed=1)], max_tokens=2, temperature=0.0, ignore_eos=True
        )
        await at_rest(client)
    shown = run(cluster, "cluster_launcher", "status", "--json")
    status = json.loads(shown.stdout)
    assert sum(link["imports"] for worker in status["workers"] for link in worker["links"]) == 1
    assert not [warning for warning in status["warnings"] if "expected" in warning["found"]]
    table = run(cluster, "cluster_launcher", "status").stdout
    assert "blocks from" in table


async def test_a_worker_with_another_block_size_is_refused_by_name(cluster: RunningCluster, tmp_path: Path) -> None:
    sections: dict[str, dict[str, object]] = {
        "model": {"implementation": "hash"},
        "hash_model": {"head_dim": 64},
        "engine": {"dtype": "float32", "threads": 1, "block_size_tokens": 32},
        "directory": {"lease_s": LEASE_S},
        "decode": {"total_blocks": 64},
    }
    config = write_config(tmp_path, sections)
    url = str(cluster.ready["directory_url"])
    refused = await asyncio.to_thread(
        run, cluster, "decode_worker", str(config), "--worker-id", "decode-9", "--directory-url", url
    )
    assert refused.returncode == 2
    assert refused.stdout == ""
    last = refused.stderr.strip().splitlines()[-1]
    assert last.startswith("engine.block_size_tokens: 32 at decode-9, 16 at ")
    assert "end the other workers first" in last
    async with BatonClient(cluster.address) as client:
        view = await client.list_workers()
    assert {worker.worker_id for worker in view.workers} == {"prefill-0", "decode-0", "decode-1"}
