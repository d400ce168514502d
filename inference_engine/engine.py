"""The engine: a model, its memory, and one method that computes a step."""

import time
from collections.abc import Callable

import torch

from cluster_core.errors import PartUnavailable
from cluster_core.layout import KvLayout, ModelIdentity
from inference_engine.attention import AttentionBackend
from inference_engine.attention_compiled import CompiledAttention
from inference_engine.attention_reference import ReferenceAttention
from inference_engine.batch import build_batch
from inference_engine.decoder import Decoder
from inference_engine.kv_pool import DTYPES, KvPool
from inference_engine.model_folder import ModelFolder, layout_of
from inference_engine.sampler import BrokenLogits, Draw, draw_tokens
from inference_engine.settings import EngineSettings
from inference_engine.step import StepPlan, StepResult
from inference_engine.weights import load_weights


class Engine:
    """Computes steps one at a time. Any thread may call it, but only one at once."""

    def __init__(
        self, folder: ModelFolder, memory: KvPool, decoder: Decoder, layout: KvLayout, clock: Callable[[], float]
    ) -> None:
        self.identity: ModelIdentity = folder.identity
        self.layout = layout
        self.eos_token_ids = folder.eos_token_ids
        self.memory = memory
        self._decoder = decoder
        self._clock = clock

    @staticmethod
    def load(
        folder: ModelFolder,
        settings: EngineSettings,
        total_blocks: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> "Engine":
        """Read the weights and reserve the memory.

        Raises `ModelFolderError` when the weights cannot be read, `PartUnavailable` when the device is not there or
        cannot hold the blocks. Sets the number of torch's threads for the whole process.
        """
        device = _open_device(settings.device)
        if settings.threads:
            torch.set_num_threads(settings.threads)
        layout = layout_of(folder.config, settings)
        with torch.inference_mode():
            weights = load_weights(folder, DTYPES[settings.dtype], device)
        memory = _reserve(layout, total_blocks, device)
        decoder = Decoder(folder.config, weights, memory, _make_attention(settings, memory))
        return Engine(folder, memory, decoder, layout, clock)

    def step(self, plan: StepPlan) -> StepResult:
        """Compute the plan's tokens, write their KV, draw what is to be drawn.

        Raises `BrokenLogits`, whose ``places`` are the slices of the plan for which the model's output is not finite;
        the KV is written all the same.
        """
        started = self._clock()
        draws = [
            (index, Draw(sampling=piece.draw, position=piece.start + len(piece.token_ids)))
            for index, piece in enumerate(plan.slices)
            if piece.draw is not None
        ]
        with torch.inference_mode():
            batch = build_batch(plan, self.layout.block_size_tokens, self.memory.storage.device)
            logits = self._decoder.logits(batch)
            try:
                drawn = draw_tokens(logits, [draw for _, draw in draws]) if draws else []
            except BrokenLogits as error:
                raise BrokenLogits(tuple(draws[row][0] for row in error.places)) from None
        tokens: list[int | None] = [None] * len(plan.slices)
        for (index, _), token in zip(draws, drawn, strict=True):
            tokens[index] = token
        return StepResult(tokens=tuple(tokens), elapsed_s=self._clock() - started)

    def close(self) -> None:
        """End the engine's threads. The memory goes with the object."""
        self._decoder.attention.close()


def _open_device(name: str) -> torch.device:
    device = torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            message = f"engine.device: {name} is not there, torch sees {count} CUDA devices; use cpu or another number"
            raise PartUnavailable(message)
        device = torch.device("cuda", device.index or 0)
        torch.cuda.set_device(device)
    return device


def _reserve(layout: KvLayout, total_blocks: int, device: torch.device) -> KvPool:
    try:
        return KvPool(layout, total_blocks, device)
    except (RuntimeError, MemoryError) as error:
        wanted = total_blocks * layout.block_bytes / 2**30
        message = f"total_blocks: {total_blocks} blocks take {wanted:.1f} GiB, which {device} does not have; lower it"
        raise PartUnavailable(message) from error


def _make_attention(settings: EngineSettings, memory: KvPool) -> AttentionBackend:
    kind = settings.attention
    if kind == "auto":
        on_cuda = memory.storage.is_cuda
        kind = "compiled" if not on_cuda else "varlen" if settings.dtype == "bfloat16" else "reference"
    match kind:
        case "compiled":
            return CompiledAttention(memory, settings.threads or torch.get_num_threads())
        case "varlen":
            from inference_engine.attention_varlen import VarlenAttention  # noqa: PLC0415  # seconds, and CUDA alone

            return VarlenAttention(memory)
        case _:
            return ReferenceAttention(memory)
