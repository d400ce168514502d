"""Which attention an engine computes with: the fastest that its device, numbers and installed libraries allow."""

from importlib.util import find_spec

import torch

from cluster_core.errors import PartUnavailable
from inference_engine.attention import AttentionBackend
from inference_engine.attention_compiled import CompiledAttention
from inference_engine.attention_reference import ReferenceAttention
from inference_engine.kv_pool import KvPool
from inference_engine.settings import EngineSettings


def make_attention(settings: EngineSettings, memory: KvPool) -> AttentionBackend:
    """Return the back end that the settings name. Raises `PartUnavailable` when its library is not installed."""
    match _chosen(settings, memory.storage.device):
        case "compiled":
            return CompiledAttention(memory, settings.threads or torch.get_num_threads())
        case "varlen":
            from inference_engine.attention_varlen import VarlenAttention  # noqa: PLC0415  # seconds, and CUDA alone

            return VarlenAttention(memory)
        case "triton":
            if not has_triton():
                message = "engine.attention: triton is not installed; torch for CUDA brings it, or take auto"
                raise PartUnavailable(message)
            from inference_engine.attention_triton import TritonAttention  # noqa: PLC0415  # no part of CPU installs

            return TritonAttention(memory)
        case _:
            return ReferenceAttention(memory)


def uses_triton(settings: EngineSettings) -> bool:
    """Tell whether our kernels compute what lies between the matrix products."""
    return settings.device.startswith("cuda") and settings.attention in {"auto", "triton"} and has_triton()


def uses_graphs(settings: EngineSettings) -> bool:
    """Tell whether decode steps are replayed as CUDA graphs: our kernels, and a pool with a spare block."""
    return settings.cuda_graphs and uses_triton(settings)


def has_triton() -> bool:
    """Tell whether Triton is installed, without loading it."""
    return find_spec("triton") is not None


def _chosen(settings: EngineSettings, device: torch.device) -> str:
    if settings.attention != "auto":
        return settings.attention
    if device.type != "cuda":
        return "compiled"
    narrow = settings.dtype == "bfloat16"
    if narrow:
        from inference_engine.attention_varlen import follows_block_tables  # noqa: PLC0415  # as above

        if follows_block_tables(device):
            return "varlen"
    if has_triton():
        return "triton"
    return "varlen" if narrow else "reference"
