"""Which worker of pytest-xdist runs which tests, and what begins first.

A unit is what one worker runs from beginning to end: a file of tests, so that its fixtures are made once; or all files
that start clusters, so that no two clusters share two cores, and the Ray that several attach to starts once. Units that
take long begin first: one that began last would leave the other worker idle.

pytest-xdist has groups of its own (``--dist loadgroup``), which it writes into the names of tests. From pytest 9.2 on
that has no effect, and says nothing.
"""

from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]  # the library has no types

PROCESSES = (
    "tests/end_to_end/",
    "tests/failure_grid/",
    "tests/decode_worker/test_processes.py",
    "tests/cluster_launcher/test_ray_cluster.py",
)
"""Where clusters are started."""

LONG = (
    "tests/inference_engine/test_attention_triton.py",
    "tests/inference_engine/test_attention_contract.py",
    "tests/inference_engine/test_hf_decoder.py",
    "tests/kv_transfer/test_nixl_transport.py",
    "tests/decode_worker/test_speculation_model.py",
    "tests/inference_engine/",
    "tests/cluster_launcher/test_up_refusals.py",
    "tests/benchmarks/",
)
"""What takes ten seconds and more, the longest first."""


def unit_of(nodeid: str) -> str:
    """Return the unit that a test belongs to."""
    path = nodeid.partition("::")[0]
    return "processes" if path.startswith(PROCESSES) else path


def rank_of(nodeid: str) -> int:
    """Return when a test's unit begins: lower ones earlier."""
    if unit_of(nodeid) == "processes":
        return 0
    return next((rank for rank, long in enumerate(LONG, 1) if nodeid.startswith(long)), len(LONG) + 1)


class ByUnit(LoadScopeScheduling):  # type: ignore[misc]  # as above
    """Gives a worker the next unit whenever it has nearly done its last one."""

    def _split_scope(self, nodeid: str) -> str:
        return unit_of(nodeid)
