"""`baton check`: runs the checkout's simulation, ``simulation/check.py``, over many seeds."""

import subprocess
import sys
from collections.abc import Sequence

from cluster_launcher.checkout import checkout_folder


def run_check(options: Sequence[str]) -> int:
    """Run the simulation on this terminal and return its exit code. Raises `PartUnavailable` without a checkout."""
    command = [sys.executable, "-m", "simulation.check", *options]
    process = subprocess.Popen(command, cwd=checkout_folder("baton check"))  # noqa: S603 - ours
    try:
        return process.wait()
    except KeyboardInterrupt:
        # The terminal has sent the same Ctrl-C to the simulation, which has nothing to clean up.
        process.kill()
        process.wait()
        raise
