"""The way from a command to the running cluster."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from cluster_core.errors import DeadlineExceeded, PartUnavailable
from cluster_launcher.exit_codes import ClusterUnreachable
from cluster_launcher.state_file import StateFiles
from cluster_rpc.answers import ClusterView
from cluster_rpc.client import BatonClient


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Which cluster is meant: an address, or the name of one that runs on this machine (empty: the only one)."""

    address: str
    name: str

    def find(self, files: StateFiles) -> str:
        """Return the router's address. Raises `ClusterUnreachable`."""
        return self.address or files.find(self.name).address


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
