"""Which way two workers should reach each other, which way they do, and what to do when the two differ."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cluster_core.links import LinkReport, LinkSite

CMA, SHARED_MEMORY, CUDA_IPC, RDMA, TCP, MEMORY = "cma", "shared memory", "cuda ipc", "rdma", "tcp", "memory"
SLOW_SHARE = 0.1
"""Of this machine's own copy: a link within one machine that moves less is slow. Half to all of it is usual."""
SURE_AFTER = 4
"""A link is called slow for its rate alone when the best of so many measurements was: cores may be busy for a while."""

_SLOWER = {
    SHARED_MEMORY: {TCP},
    CUDA_IPC: {TCP, SHARED_MEMORY, CMA},
    RDMA: {TCP},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Expectation:
    """A lane that may be missed."""

    why: str
    names: str
    """What UCX calls it."""
    cure: str


_EXPECTED = {
    SHARED_MEMORY: _Expectation(
        why="both workers run on one machine",
        names="posix,sysv,cma",
        cure="let their containers share memory and processes (docker: --ipc=host --pid=host), with room in /dev/shm "
        "(--shm-size)",
    ),
    CUDA_IPC: _Expectation(
        why="both pools lie in GPUs of one machine",
        names="cuda_ipc",
        cure="let both workers see both GPUs, and their containers share memory and processes (docker: --ipc=host "
        "--pid=host)",
    ),
    RDMA: _Expectation(
        why="both machines have an RDMA device",
        names="rc,dc,ud,rc_verbs,rc_mlx5,dc_mlx5,ud_verbs,ud_mlx5,srd,ib",
        cure="pip's UCX is built without verbs: install UCX 1.19 or newer and set "
        'RAPIDS_LIBUCX_PREFER_SYSTEM_LIBRARY=true, or set [transfer] transport = "nixl"',
    ),
}
_ALLOW_READS = "allow reads between processes (docker: --cap-add SYS_PTRACE; else kernel.yama.ptrace_scope=0)"
_GIVE_CORES = "give each worker cores of its own: [engine] threads, or fewer workers on a machine"

_SHARED_MEMORY_LANES = ("posix", "sysv", "xpmem", "knem")
_RDMA_LANES = ("rc", "dc", "ud", "srd", "gga")
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_HOST_NAME = Path("/proc/sys/kernel/hostname")
_RDMA_DEVICES = Path("/sys/class/infiniband")


def this_site(*, cuda: bool) -> LinkSite:
    """Look where this process runs; ``cuda``: its blocks lie in a GPU's memory. A machine's containers are one host."""
    try:
        host = _BOOT.read_text(encoding="ascii").strip()
    except OSError:
        host = _HOST_NAME.read_text(encoding="utf-8").strip() if _HOST_NAME.exists() else ""
    rdma = _RDMA_DEVICES.is_dir() and any(_RDMA_DEVICES.iterdir())
    return LinkSite(host=host, cuda=cuda, rdma=rdma)


def same_host(here: LinkSite, there: LinkSite) -> bool:
    """Whether both run on one machine, perhaps in different containers."""
    return bool(here.host) and here.host == there.host


def lane_of(names: Sequence[str], *, cuda: bool) -> str:
    """Return which of UCX's transports ``names`` carries long messages: the quickest that can take such memory."""
    if cuda and "cuda_ipc" in names:
        return CUDA_IPC
    if any(name.split("_")[0] in _RDMA_LANES for name in names):
        return RDMA
    if not cuda and "cma" in names:
        return CMA
    if any(name in _SHARED_MEMORY_LANES for name in names):
        return SHARED_MEMORY
    return TCP if "tcp" in names else ""


def expected_lane(transport: str, here: LinkSite, there: LinkSite) -> str:
    """Return the least that should carry long messages between two workers; empty where nothing can be said."""
    if transport == "loopback":
        return MEMORY
    if same_host(here, there):
        if here.cuda != there.cuda:
            return ""
        return CUDA_IPC if here.cuda else SHARED_MEMORY
    return RDMA if here.rdma and there.rdma else TCP


def judged(report: LinkReport, ucx_tls: str) -> LinkReport:
    """Return a measured link with why it is slower than it should be, and the cure; or that this is not sure yet.

    ``ucx_tls`` is what the operator allows UCX; empty for its own choice.
    """
    warning, cure = _wrong_lane(report, ucx_tls)
    settled = True
    if not warning and report.same_host and report.large_in_bytes_per_s < SLOW_SHARE * report.copy_bytes_per_s:
        settled = report.measured >= SURE_AFTER
        if settled:
            warning, cure = _low_rate(report)
    return replace(report, warning=warning, cure=cure, settled=settled)


def _wrong_lane(report: LinkReport, ucx_tls: str) -> tuple[str, str]:
    if report.lane in _SLOWER.get(report.expected_lane, ()):
        expected = _EXPECTED[report.expected_lane]
        warning = f"blocks go by {report.lane} where {report.expected_lane} was expected: {expected.why}"
        return warning, _left_out(ucx_tls, expected.names) or expected.cure
    return "", ""


def _low_rate(report: LinkReport) -> tuple[str, str]:
    rate, copy_rate = report.large_in_bytes_per_s / 1e9, report.copy_bytes_per_s / 1e9
    warning = f"blocks move at {rate:.2f} GB/s at best within a machine that copies at {copy_rate:.1f} GB/s"
    return warning, _ALLOW_READS if report.lane == SHARED_MEMORY else _GIVE_CORES


def _left_out(ucx_tls: str, needed: str) -> str:
    """Return the cure where the operator's own choice of transports leaves out all of those that are needed."""
    chosen = [name.strip() for name in ucx_tls.split(",")]
    if not ucx_tls or "all" in chosen or any(name in chosen for name in needed.split(",")):
        return ""
    return f'[transfer] ucx_tls = "{ucx_tls}" leaves {needed} out: add them, or leave the key out'
