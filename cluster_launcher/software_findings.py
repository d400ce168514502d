"""The doctor's look at versions: Python and the libraries that carry a cluster.

Versions come from the installed packages' metadata, so a broken library is reported instead of raising here.
"""

import platform
import re
import sys
from collections.abc import Iterator
from importlib import metadata

from cluster_launcher.findings import Finding, fail, ok, warn
from cluster_launcher.host_findings import gpu_names

_NEEDED = {
    "torch": (2, 11),
    "ray": (2, 54),
    "ucxx-cu12": (0, 46),
    "redis": (5, 2),
    "grpcio": (1, 81),
    "protobuf": (6, 33),
    "tokenizers": (0, 21),
    "numba": (0, 61),
}
_NUMBERS = re.compile(r"\d+")


def software() -> Iterator[Finding]:
    """Yield one finding for the platform, one for Python and one for each library."""
    yield _platform()
    yield _python()
    for name, least in _NEEDED.items():
        yield _library(name, least)


def _platform() -> Finding:
    found = f"{platform.system()} {platform.release()} {platform.machine()}"
    if sys.platform != "linux":
        cure = "run on Linux (a container or WSL 2 will do): UCX for Python has no wheels for other systems"
        return fail("platform", found, cure)
    return ok("platform", found)


def _python() -> Finding:
    found = f"{platform.python_version()} at {sys.executable}"
    if not (3, 11) <= sys.version_info[:2] < (3, 14):
        return fail("python", found, "use Python 3.11, 3.12 or 3.13: `make setup PYTHON=python3.11`")
    return ok("python", found)


def _library(name: str, least: tuple[int, int]) -> Finding:
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return fail(name, "not installed", "run `make setup`")
    wanted = ".".join(map(str, least))
    if tuple(map(int, _NUMBERS.findall(version)[:2])) < least:
        return fail(name, version, f"needs {wanted} or newer: run `make setup`")
    if name == "torch" and "+cpu" in version:
        return _torch_without_cuda(version)
    return ok(name, version)


def _torch_without_cuda(version: str) -> Finding:

    if gpu_names():
        return warn("torch", f"{version} cannot use this machine's GPUs", "pip install a CUDA build of torch")
    return ok("torch", version)
