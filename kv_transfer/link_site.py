"""Which way two workers should reach each other, which way they do, and what to do when the two differ."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cluster_core.links import LinkReport, LinkSite
from kv_transfer.link_plan import block_out_s, block_s

CMA, SHARED_MEMORY, CUDA_IPC, RDMA, TCP, MEMORY = "cma", "shared memory", "cuda ipc", "rdma", "tcp", "memory"
SLOW_SHARE = 0.1
"""Of this machine's own copy: a link within one machine that moves less is slow. Half to all of it is usual."""
DIRECTIONS_DIFFER = 2.0
"""A link between machines is one-sided when a block comes more than so many times slower than one would go."""
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
    nixl_cure: str = ""
    """Where NIXL moves the blocks, and it is another one."""


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
        nixl_cure="let both workers open the devices (docker: --device=/dev/infiniband --cap-add=IPC_LOCK --ulimit "
        "memlock=-1); ibv_devinfo must show an active port where they run",
    ),
}
_ALLOW_READS = "allow reads between processes (docker: --cap-add SYS_PTRACE; else kernel.yama.ptrace_scope=0)"
_EVEN_OUT = (
    "look for what slows this direction down (a port's speed or duplex, shaping, a machine with too few cores); where "
    "nothing can be done, let the two machines swap roles: most blocks go from prefill to decode"
)
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


def seen_lane(here: LinkSite, there: LinkSite, *, by_tcp: bool | None) -> str:
    """Return what carries messages of a transport that does not tell, by whether TCP does; empty where that is open."""
    if by_tcp is None:
        return ""
    if by_tcp:
        return TCP
    if same_host(here, there):
        return "" if here.cuda or there.cuda else SHARED_MEMORY
    return RDMA if here.rdma and there.rdma else ""


def expected_lane(transport: str, here: LinkSite, there: LinkSite) -> str:
    """Return the least that should carry long messages between two workers; empty where nothing can be said."""
    if transport == "loopback":
        return MEMORY
    if same_host(here, there):
        if here.cuda != there.cuda:
            return ""
        return CUDA_IPC if here.cuda else SHARED_MEMORY
    return RDMA if here.rdma and there.rdma else TCP


def judged(report: LinkReport, ucx_tls: str, block_bytes: int) -> LinkReport:
    """Return a measured link with why it is slower than it should be, and the cure; or that this is not sure yet.

    ``ucx_tls`` is what the operator allows UCX; empty for its own choice. ``block_bytes``: of one block.
    """
    warning, cure = _wrong_lane(report, ucx_tls)
    settled = True
    if not warning:
        doubt = _low_rate(report) if report.same_host else _slow_direction(report, block_bytes)
        settled = not doubt[0] or report.measured >= SURE_AFTER
        warning, cure = doubt if settled else ("", "")
    return replace(report, warning=warning, cure=cure, settled=settled)


def _wrong_lane(report: LinkReport, ucx_tls: str) -> tuple[str, str]:
    if report.lane in _SLOWER.get(report.expected_lane, ()):
        expected = _EXPECTED[report.expected_lane]
        warning = f"blocks go by {report.lane} where {report.expected_lane} was expected: {expected.why}"
        own_cure = expected.nixl_cure if report.transport == "nixl" else ""
        return warning, _left_out(ucx_tls, expected.names) or own_cure or expected.cure
    return "", ""


def _low_rate(report: LinkReport) -> tuple[str, str]:
    if report.large_in_bytes_per_s >= SLOW_SHARE * report.copy_bytes_per_s:
        return "", ""
    rate, copy_rate = report.large_in_bytes_per_s / 1e9, report.copy_bytes_per_s / 1e9
    warning = f"blocks move at {rate:.2f} GB/s at best within a machine that copies at {copy_rate:.1f} GB/s"
    return warning, _ALLOW_READS if report.lane == SHARED_MEMORY else _GIVE_CORES


def _slow_direction(report: LinkReport, block_bytes: int) -> tuple[str, str]:
    """Return why blocks come slower than they would go, where they do. Within one machine both are one memory."""
    in_s, out_s = block_s(report, block_bytes), block_out_s(report, block_bytes)
    if not out_s or in_s <= DIRECTIONS_DIFFER * out_s:
        return "", ""
    rates = block_bytes / in_s / 1e9, block_bytes / out_s / 1e9
    return f"blocks come at {rates[0]:.2f} GB/s over a link that carries {rates[1]:.2f} GB/s the other way", _EVEN_OUT


def _left_out(ucx_tls: str, needed: str) -> str:
    """Return the cure where the operator's own choice of transports leaves out all of those that are needed."""
    chosen = [name.strip() for name in ucx_tls.split(",")]
    if not ucx_tls or "all" in chosen or any(name in chosen for name in needed.split(",")):
        return ""
    return f'[transfer] ucx_tls = "{ucx_tls}" leaves {needed} out: add them, or leave the key out'
