"""GPUs by name, with the figures that decide capacity. The only place that knows them; add a line for another one."""

from dataclasses import dataclass

_GB = 10**9
_DGX_B200 = "NVIDIA DGX B200 data sheet, an eighth of the system's"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU as its maker states it."""

    name: str
    memory_bytes: int
    bandwidth_bytes_per_s: float
    source: str


def _gpu(name: str, memory_gb: int, bandwidth_gb_per_s: int, source: str) -> Gpu:
    return Gpu(
        name=name, memory_bytes=memory_gb * _GB, bandwidth_bytes_per_s=float(bandwidth_gb_per_s * _GB), source=source
    )


GPUS = {
    gpu.name: gpu
    for gpu in (
        _gpu("L4-24", 24, 300, "NVIDIA L4 data sheet"),
        _gpu("A10-24", 24, 600, "NVIDIA A10 data sheet"),
        _gpu("L40S-48", 48, 864, "NVIDIA L40S data sheet"),
        _gpu("A100-40", 40, 1555, "NVIDIA A100 data sheet, 40 GB"),
        _gpu("A100-80", 80, 2039, "NVIDIA A100 data sheet, 80 GB SXM"),
        _gpu("H100-80", 80, 3350, "NVIDIA H100 data sheet, SXM"),
        _gpu("H200-141", 141, 4800, "NVIDIA H200 data sheet, SXM"),
        _gpu("B200-180", 180, 8000, _DGX_B200),
    )
}
"""From the least memory to the most within a generation."""
