"""The way from a command to the running cluster."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from cluster_core.errors import DeadlineExceeded, PartUnavailable
from cluster_launcher.exit_codes import ClusterUnreachable
from cluster_rpc.answers import ClusterView
from cluster_rpc.client import BatonClient


@asynccontextmanager
async def reach(address: str) -> AsyncIterator[tuple[BatonClient, ClusterView]]:
    """Connect and ask for the cluster's state. Raises `ClusterUnreachable` when nothing of ours answers."""
    async with BatonClient(address) as client:
        try:
            view = await client.list_workers()
        except (PartUnavailable, DeadlineExceeded) as error:
            message = (
                f"no cluster answers at {address}; start one with `baton up CONFIG.toml`, "
                "or name another with --address HOST:PORT"
            )
            raise ClusterUnreachable(message) from error
        yield client, view
