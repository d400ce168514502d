"""Which worker of pytest-xdist runs which tests, and what begins first.

A unit is what one worker runs from beginning to end: a file of tests, so that its fixtures are made once; or all files
whose clusters run on Ray, so that the Ray that most of them attach to starts once and two cores have one of them to
carry; and with those the grid of failures, whose deadlines are missed where a cluster starts beside it. Units that take
long begin first: one that began last would leave the other worker idle.

pytest-xdist has groups of its own (``--dist loadgroup``), which it writes into the names of tests. From pytest 9.2 on
that has no effect, and says nothing.
"""

from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]  # the library has no types

ON_RAY = "tests/end_to_end/"
WITH_THEM = "tests/failure_grid/"
BY_HAND = ("tests/end_to_end/test_fetch.py", "tests/end_to_end/test_without_ray.py")
"""Where the processes are started without Ray, among files where they run on it."""

LONG = (
    "tests/cluster_launcher/test_ray_cluster.py",
    "tests/decode_worker/test_processes.py",
    *BY_HAND,
    "tests/inference_engine/test_attention_triton.py",
    "tests/inference_engine/test_attention_contract.py",
    "tests/kv_transfer/test_nixl_transport.py",
    "tests/decode_worker/test_speculation_model.py",
    "tests/planted_bugs/",
    "tests/inference_engine/",
    "tests/kv_transfer/test_digest_triton.py",
    "tests/benchmarks/",
    "tests/simulation/",
    "tests/machines/",
)
"""What takes ten seconds and more. Processes come first, while there is most to do beside them."""


def unit_of(nodeid: str) -> str:
    """Return the unit that a test belongs to."""
    path = nodeid.partition("::")[0]
    return ON_RAY if path.startswith((ON_RAY, WITH_THEM)) and path not in BY_HAND else path


def rank_of(nodeid: str) -> int:
    """Return when a test's unit begins: lower ones earlier."""
    if unit_of(nodeid) == ON_RAY:
        return 0
    return next((rank for rank, long in enumerate(LONG, 1) if nodeid.startswith(long)), len(LONG) + 1)


class ByUnit(LoadScopeScheduling):  # type: ignore[misc]  # as above
    """Gives a worker the next unit whenever it has nearly done its last one."""

    def _split_scope(self, nodeid: str) -> str:
        return unit_of(nodeid)
