"""Configurations of the clusters that the end-to-end tests run, and waiting until one is at rest."""

import asyncio
from pathlib import Path

from cluster_rpc.answers import ClusterView
from cluster_rpc.client import BatonClient
from tests.cluster_harness import write_config

AT_REST_S = 30.0


def cluster_config(folder: Path, model: Path | None, **changes: dict[str, object]) -> Path:
    """Write a configuration for one prefill and two decode workers on this machine; ``changes`` go over it.

    Without a ``model`` they serve hashes. A worker that the tests of a module kill again and again is not given up.
    """
    sections: dict[str, dict[str, object]] = {
        "cluster": {"name": "test", "prefill": 1, "decode": 2, "restart_budget": 100},
        "model": {"implementation": "hash"} if model is None else {"path": str(model)},
        "engine": {"dtype": "float32", "threads": 1},
        "router": {"port": 0, "placement": "split"},
        "prefill": {"total_blocks": 1024},
        "decode": {"total_blocks": 1024},
    }
    for name, section in changes.items():
        sections.setdefault(name, {}).update(section)
    return write_config(folder, sections)


async def at_rest(client: BatonClient) -> ClusterView:
    """Wait until nothing is live and every worker has reported that it holds nothing.

    A worker reports a moment after its last answer, so what a test asserts about a load it reads from here.
    """
    async with asyncio.timeout(AT_REST_S):
        while not is_at_rest(view := await client.list_workers()):  # noqa: ASYNC110  # other processes' state
            await asyncio.sleep(0.05)
    return view


def is_at_rest(view: ClusterView) -> bool:
    """Whether no request lives and no worker, as it last reported, runs one or holds a block."""
    loads = [worker.load for worker in view.workers]
    return view.live_requests == 0 and not any(
        load.running_requests or load.waiting_requests or load.held_blocks or load.draft_held_blocks for load in loads
    )
