"""A plan as it is computed: from what was typed and a config.json to what fits."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster_core.capacity import ModelShape, copies_of_kv, is_possible_degree
from cluster_core.capacity_fit import GpuFit, Serving, fit, possible_degrees
from cluster_core.capacity_gpus import GPUS, Gpu
from cluster_core.errors import SettingsError
from cluster_core.layout import DTYPE_BYTES
from cluster_launcher.plan_model import read_shape

DEFAULT_GPU = "H100-80"
_DEFAULT_CONTEXTS = (1024, 4096, 16384, 32768, 131072)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """What was typed."""

    gpus: Sequence[str] = (DEFAULT_GPU,)
    dtype: str = "bfloat16"
    contexts: Sequence[int] = ()
    block_size_tokens: int = 16
    ranks: int = 1
    workspace_percent: float = 10.0
    weights_gb: float = 0.0
    prefill_tokens_per_s: float = 10_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is printed."""

    serving: Serving
    dtype: str
    contexts: tuple[int, ...]
    fits: tuple[GpuFit, ...]
    prefill_tokens_per_s: float

    @property
    def copies(self) -> int:
        """How many ranks keep the same KV."""
        return copies_of_kv(self.serving.shape.attention, self.serving.ranks)


def make_plan(model: Path, options: PlanOptions) -> Plan:
    """Compute the plan. Raises `ModelFolderError` for the model and `SettingsError` for an option."""
    _check(options)
    gpus = [_gpu(name) for name in dict.fromkeys(options.gpus or (DEFAULT_GPU,))]
    shape = read_shape(model, round(options.weights_gb * 1e9))
    _check_degree(shape, options.ranks)
    number_bytes = DTYPE_BYTES[options.dtype]
    serving = Serving(
        shape=shape,
        weight_bytes=round(options.weights_gb * 1e9) or shape.parameters * number_bytes,
        number_bytes=number_bytes,
        block_size_tokens=options.block_size_tokens,
        ranks=options.ranks,
        workspace_share=options.workspace_percent / 100,
    )
    contexts = _contexts(shape, options.contexts)
    return Plan(
        serving=serving,
        dtype=options.dtype,
        contexts=contexts,
        fits=tuple(fit(serving, gpu, contexts) for gpu in gpus),
        prefill_tokens_per_s=options.prefill_tokens_per_s,
    )


def _check(options: PlanOptions) -> None:
    refusals = (
        (options.dtype not in DTYPE_BYTES, f"--dtype {options.dtype}: write {' or '.join(DTYPE_BYTES)}"),
        (options.block_size_tokens < 1, f"--block-size {options.block_size_tokens}: write 1 or more tokens"),
        (options.ranks < 1, f"--tensor-parallel {options.ranks}: write 1 or more ranks"),
        (
            not 0 <= options.workspace_percent < 100,
            f"--workspace {options.workspace_percent:g}: write a percentage from 0 to below 100",
        ),
        (not 0 <= options.weights_gb < 1e6, f"--weights-gb {options.weights_gb:g}: write GB, above 0"),
        (
            not 0 < options.prefill_tokens_per_s < 1e12,
            f"--prefill-rate {options.prefill_tokens_per_s:g}: write tokens a second, above 0",
        ),
    )
    for wrong, message in refusals:
        if wrong:
            raise SettingsError(message)


def _gpu(name: str) -> Gpu:
    gpu = GPUS.get(name.upper())
    if gpu is None:
        message = f"--gpu {name}: known are {', '.join(GPUS)}"
        raise SettingsError(message)
    return gpu


def _check_degree(shape: ModelShape, ranks: int) -> None:
    if not is_possible_degree(shape.attention, ranks):
        possible = ", ".join(str(degree) for degree in possible_degrees(shape))
        heads = shape.attention.heads
        message = f"--tensor-parallel {ranks}: {heads} heads cannot be split so; possible are {possible}"
        raise SettingsError(message)


def _contexts(shape: ModelShape, asked: Sequence[int]) -> tuple[int, ...]:
    longest = shape.max_context_tokens
    for tokens in asked:
        if not 0 < tokens <= longest:
            message = f"--context {tokens}: the model reads 1 to {longest} tokens"
            raise SettingsError(message)
    shown = asked or [*(tokens for tokens in _DEFAULT_CONTEXTS if tokens < longest), longest]
    return tuple(sorted(set(shown)))
