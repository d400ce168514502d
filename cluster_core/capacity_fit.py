"""What fits on a GPU: a model, a type of numbers, a block size, some ranks, and the batches that follow."""

from collections.abc import Sequence
from dataclasses import dataclass

from cluster_core.capacity import (
    ModelShape,
    held_blocks,
    is_possible_degree,
    rank_token_bytes,
    step_floor_s,
)
from cluster_core.capacity_gpus import GPUS, Gpu

_MOST_RANKS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """How a model is to be served. ``ranks`` is a degree that `is_possible_degree` allows."""

    shape: ModelShape
    weight_bytes: int
    number_bytes: int
    block_size_tokens: int
    ranks: int
    workspace_share: float
    """Part of each GPU's memory, in [0, 1), that is left to activations, the runtime and fragmentation."""

    @property
    def rank_weight_bytes(self) -> int:
        """Weights on each rank, taken as evenly split."""
        return -(-self.weight_bytes // self.ranks)

    @property
    def rank_token_bytes(self) -> int:
        """KV of a token on each rank."""
        return rank_token_bytes(self.shape, self.number_bytes, self.ranks)

    @property
    def rank_block_bytes(self) -> int:
        """A block on each rank."""
        return self.rank_token_bytes * self.block_size_tokens

    def blocks_of(self, tokens: int) -> int:
        """Blocks that a sequence of ``tokens`` tokens holds at most."""
        return held_blocks(self.shape, tokens, self.block_size_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextFit:
    """Sequences of one length on one GPU."""

    tokens: int
    blocks: int
    """Of one sequence."""
    largest_batch: int
    step_floor_s: float
    """Of that batch: no decode step can be shorter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuFit:
    """One GPU a rank. Sizes are of one rank."""

    gpu: Gpu
    workspace_bytes: int
    kv_bytes: int
    """Left for blocks; negative where not even the weights fit."""
    blocks: int
    contexts: tuple[ContextFit, ...]
    misfits: tuple[str, ...]
    """What does not fit, a line each, with its cure."""


def fit(serving: Serving, gpu: Gpu, contexts: Sequence[int]) -> GpuFit:
    """Say what of ``serving`` fits on GPUs of this kind, one a rank."""
    workspace = round(gpu.memory_bytes * serving.workspace_share)
    kv_bytes = gpu.memory_bytes - workspace - serving.rank_weight_bytes
    blocks = max(0, kv_bytes) // serving.rank_block_bytes
    fits = tuple(_context_fit(serving, gpu, blocks, tokens) for tokens in contexts)
    return GpuFit(
        gpu=gpu,
        workspace_bytes=workspace,
        kv_bytes=kv_bytes,
        blocks=blocks,
        contexts=fits,
        misfits=tuple(_misfits(serving, gpu, kv_bytes, blocks, fits)),
    )


def possible_degrees(shape: ModelShape) -> list[int]:
    """Return the numbers of ranks that the model's heads allow, up to 64."""
    return [ranks for ranks in range(1, _MOST_RANKS + 1) if is_possible_degree(shape.attention, ranks)]


def _context_fit(serving: Serving, gpu: Gpu, blocks: int, tokens: int) -> ContextFit:
    each = serving.blocks_of(tokens)
    batch = blocks // each
    kv_bytes = batch * each * serving.rank_block_bytes
    return ContextFit(
        tokens=tokens,
        blocks=each,
        largest_batch=batch,
        step_floor_s=step_floor_s(serving.rank_weight_bytes, kv_bytes, gpu.bandwidth_bytes_per_s),
    )


def _misfits(serving: Serving, gpu: Gpu, kv_bytes: int, blocks: int, contexts: Sequence[ContextFit]) -> list[str]:
    if blocks == 0:
        lacking = "weights" if kv_bytes < 0 else "weights and one block"
        need = serving.rank_weight_bytes + (serving.rank_block_bytes if kv_bytes >= 0 else 0)
        room = round(gpu.memory_bytes * (1 - serving.workspace_share))
        cure = _cure(serving, gpu, 1)
        return [f"{lacking} take {need / 1e9:.1f} GB a rank, {room / 1e9:.1f} GB are there: {cure}"]
    return [
        f"one sequence of {context.tokens} tokens needs {context.blocks} blocks, {blocks} are there: "
        f"at most {blocks * serving.block_size_tokens} tokens fit; for more, {_cure(serving, gpu, context.blocks)}"
        for context in contexts
        if context.largest_batch == 0
    ]


def _cure(serving: Serving, gpu: Gpu, blocks: int) -> str:
    """Name the fewest ranks and the GPUs with which ``blocks`` blocks fit, and the type of numbers where it is wide."""
    cures = [
        f"--tensor-parallel {ranks}"
        for ranks in possible_degrees(serving.shape)
        if ranks > serving.ranks and _blocks(serving, gpu, ranks) >= blocks
    ][:1]
    cures += [
        f"--gpu {other.name}"
        for other in sorted(GPUS.values(), key=lambda other: other.memory_bytes)
        if _blocks(serving, other, serving.ranks) >= blocks
    ][:1]
    if serving.number_bytes > 2:
        cures.append("--dtype bfloat16")
    return " or ".join(cures) or "a smaller model or quantised weights"


def _blocks(serving: Serving, gpu: Gpu, ranks: int) -> int:
    weights = -(-serving.weight_bytes // ranks)
    left = gpu.memory_bytes - round(gpu.memory_bytes * serving.workspace_share) - weights
    return max(0, left) // (rank_token_bytes(serving.shape, serving.number_bytes, ranks) * serving.block_size_tokens)
