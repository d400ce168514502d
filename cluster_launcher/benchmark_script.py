"""`baton bench`: runs a script of the checkout's ``benchmarks/`` with the options it was given."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from cluster_core.errors import PartUnavailable
from cluster_launcher.checkout import checkout_folder


def run_benchmark(name: str, options: Sequence[str]) -> int:
    """Run ``benchmarks/<name>.py`` on this terminal and return its exit code. Raises `PartUnavailable`."""
    checkout = checkout_folder("baton bench")
    script = checkout / "benchmarks" / f"{name}.py"
    if not script.is_file():
        message = f"benchmarks: {script} is not there; update the checkout"
        raise PartUnavailable(message)
    return _run(checkout, [sys.executable, "-m", f"benchmarks.{name}", *options])


def _run(checkout: Path, command: Sequence[str]) -> int:
    process = subprocess.Popen(command, cwd=checkout)  # noqa: S603 - ours
    try:
        return process.wait()
    except KeyboardInterrupt:
        # The terminal has sent the same Ctrl-C to the script: it ends what it started, and we wait for that.
        try:
            return process.wait(timeout=20)
        finally:
            process.kill()
