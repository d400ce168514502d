"""What holds for every test."""

import pytest
from hypothesis import settings

# Property tests run the same examples every time, however slow the machine is.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")

# Modules whose fixtures start processes that are dear: all their tests run in one worker of pytest-xdist, one by one.
ONE_WORKER = (
    "tests/end_to_end/",
    "tests/failure_grid/",
    "tests/decode_worker/test_processes.py",
    "tests/cluster_launcher/test_ray_cluster.py",
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep together what shares processes."""
    for item in items:
        path = item.path.relative_to(config.rootpath).as_posix()
        if path.startswith(ONE_WORKER):
            item.add_marker(pytest.mark.xdist_group("processes"))
