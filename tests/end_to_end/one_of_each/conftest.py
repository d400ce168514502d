"""One cluster of one prefill and one decode worker for all tests of this folder."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.cluster_harness import RunningCluster, running_cluster
from tests.end_to_end.clusters import cluster_config
from tests.end_to_end.oracle import Oracle
from tests.model_fixtures import make_model

POOL_BLOCKS = 224
"""Fewer than the model's context needs, so that there are requests which the context admits and no pool ever will."""


@dataclass(frozen=True)
class Served:
    """The cluster, and what its model answers."""

    cluster: RunningCluster
    oracle: Oracle

    def baton(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run a command as a user of this machine would."""
        return subprocess.run(
            [sys.executable, "-m", "cluster_launcher", *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            env=dict(os.environ, XDG_RUNTIME_DIR=str(self.cluster.folder)),
        )


@pytest.fixture(scope="package")
def served(tmp_path_factory: pytest.TempPathFactory, shared_ray: str) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("one_of_each")
    model = make_model(folder / "model", "llama")
    config = cluster_config(
        folder,
        model,
        cluster={"ray_address": shared_ray, "decode": 1},
        router={"placement": "auto", "watch_period_s": 0.05},
        prefill={"total_blocks": POOL_BLOCKS},
        decode={"total_blocks": POOL_BLOCKS},
    )
    with running_cluster(config, folder) as cluster:
        yield Served(cluster, Oracle(model))
