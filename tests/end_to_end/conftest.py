"""What the end-to-end tests share."""

import subprocess
import sys
from collections.abc import Iterator

import pytest

STOP_TIMEOUT_S = 30.0


@pytest.fixture(scope="session")
def shared_ray() -> Iterator[str]:
    """Run a Ray for the clusters of tests that kill nothing of it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.end_to_end.shared_ray"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    assert address, "Ray did not start"
    yield address
    process.communicate(timeout=STOP_TIMEOUT_S)
    assert process.returncode == 0
