"""The doctor's look at the machine: memory, limits, GPUs, CPU flags."""

import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil

from cluster_launcher.findings import Finding, fail, ok, warn

_GIB = 1 << 30
_SHARED_MEMORY = "/dev/shm"  # noqa: S108 - looked at, not written to
_LEAST_SHARED_MEMORY = 256 << 20
_LEAST_MEMORY = 3 * _GIB
_LEAST_OPEN_FILES = 4096
_LEAST_LOCKED_MEMORY = 1 * _GIB


def host() -> Iterator[Finding]:
    """Yield one finding for each property of the machine."""
    yield _memory()
    yield _shared_memory()
    yield _locked_memory()
    yield _open_files()
    yield _cpu()
    yield _gpus()


def gpu_names() -> list[str]:
    """Return the names of the NVIDIA GPUs as the driver lists them; none without a driver."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)  # noqa: S603 - fixed
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in answer.stdout.splitlines() if line.strip()]


def has_infiniband() -> bool:
    """Whether the kernel knows an RDMA device (InfiniBand, RoCE or EFA)."""
    folder = Path("/sys/class/infiniband")
    return folder.is_dir() and any(folder.iterdir())


def _memory() -> Finding:
    memory = psutil.virtual_memory()
    found = f"{memory.available / _GIB:.1f} GiB available of {memory.total / _GIB:.1f} GiB, {os.cpu_count()} CPUs"
    if memory.available < _LEAST_MEMORY:
        return warn("memory", found, "the demo takes up to 3 GB: close something")
    return ok("memory", found)


def _shared_memory() -> Finding:
    try:
        usage = shutil.disk_usage(_SHARED_MEMORY)
    except OSError:
        return fail(_SHARED_MEMORY, "not there", "mount a tmpfs at /dev/shm; Ray and UCX need it")
    found = f"{usage.free / _GIB:.2f} GiB free of {usage.total / _GIB:.2f} GiB"
    if usage.free < _LEAST_SHARED_MEMORY:
        return fail(_SHARED_MEMORY, found, "give the container more: docker run --shm-size=2g")
    return ok(_SHARED_MEMORY, found)


def _locked_memory() -> Finding:
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft == resource.RLIM_INFINITY:
        return ok("locked memory", "unlimited")
    found = f"{soft / (1 << 20):.0f} MiB"
    if soft >= _LEAST_LOCKED_MEMORY:
        return ok("locked memory", found)
    if has_infiniband():
        return fail("locked memory", found, "RDMA registers the KV pool: ulimit -l unlimited, or --ulimit memlock=-1")
    return ok("locked memory", f"{found} (RDMA would need `ulimit -l unlimited`; there is none here)")


def _open_files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = f"{soft} (hard limit {hard})"
    if soft < _LEAST_OPEN_FILES:
        return warn("open files", found, f"many streams need many: ulimit -n {min(hard, 65536)}")
    return ok("open files", found)


def _cpu() -> Finding:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return warn("cpu", "unknown", "/proc/cpuinfo cannot be read; dtype float32 is safe everywhere")
    flags = next((line.split(":", 1)[1].split() for line in lines if line.startswith(("flags", "Features"))), [])
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown CPU")
    fast = [flag for flag in ("amx_bf16", "avx512_bf16", "bf16", "avx512f", "avx2") if flag in flags]
    found = f"{name}: {', '.join(fast) or 'no vector flags that matter'}"
    if any("bf16" in flag for flag in fast):
        return ok("cpu", found)
    return ok("cpu", f'{found}; no bf16, so engine.dtype = "float32" is the fast one here')


def _gpus() -> Finding:
    names = gpu_names()
    if names:
        return ok("gpus", "; ".join(names))
    return ok("gpus", 'none: engine.device = "cpu"')
