"""The engine: a model, its memory, and one method that computes a step."""

import time
from collections.abc import Callable

import torch

from cluster_core.errors import PartUnavailable
from cluster_core.layout import KvLayout, ModelIdentity
from inference_engine.attention_capped import CappedAttention
from inference_engine.attention_choice import make_attention, uses_graphs, uses_triton
from inference_engine.batch import build_batch
from inference_engine.compiled_decoder import make_decoder
from inference_engine.cuda_graphs import GraphedDecoder
from inference_engine.grammar_masks import GrammarMasks
from inference_engine.hf_config import HfConfig
from inference_engine.implementation import Implementation
from inference_engine.kv_pool import DTYPES, KvPool
from inference_engine.model_folder import ModelFolder, layout_of
from inference_engine.settings import EngineSettings
from inference_engine.step import StepPlan, StepResult
from inference_engine.step_output import read_step
from inference_engine.weights import load_weights


class Engine:
    """Computes steps one at a time. Any thread may call it, but only one at once."""

    def __init__(
        self, folder: ModelFolder, memory: KvPool, decoder: Implementation, layout: KvLayout, clock: Callable[[], float]
    ) -> None:
        self.identity: ModelIdentity = folder.identity
        self.layout = layout
        self.eos_token_ids = folder.eos_token_ids
        self.memory = memory
        self.grammars = GrammarMasks(folder.path, folder.identity.vocab_size, folder.eos_token_ids)
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
        decoder: Implementation
        if isinstance(folder.config, HfConfig):
            from inference_engine.hf_decoder import HfDecoder, load_hf_model  # noqa: PLC0415  # an optional library

            loaded = load_hf_model(folder, folder.config, settings, device)
            memory = _reserve(layout, total_blocks, device)
            attention = CappedAttention(memory) if loaded.capped else make_attention(settings, memory)
            decoder = HfDecoder(loaded, memory, attention)
        else:
            with torch.inference_mode():
                weights = load_weights(folder, DTYPES[settings.dtype], device)
            memory = _reserve(layout, total_blocks, device, 1 if uses_graphs(settings) else 0)
            attention = make_attention(settings, memory)
            if uses_triton(settings):
                from inference_engine.triton_decoder import make_triton_decoder  # noqa: PLC0415  # no part of CPU installs

                longest = folder.identity.max_context_tokens if uses_graphs(settings) else None
                decoder = make_triton_decoder(folder.config, weights, memory, attention, longest)
            else:
                invariant = settings.batch_invariant
                decoder = make_decoder(folder.config, weights, memory, attention, batch_invariant=invariant)
        return Engine(folder, memory, decoder, layout, clock)

    def step(self, plan: StepPlan) -> StepResult:
        """Compute the plan's tokens, write their KV, draw what is to be drawn.

        Raises `BrokenLogits`, whose ``places`` are the slices of the plan for which the model's output is not finite,
        or `NothingAllowed`, whose ``places`` are those whose sampling leaves no token; the KV is written all the same.
        """
        started = self._clock()
        with torch.inference_mode():
            batch = build_batch(plan, self.layout.block_size_tokens, self.memory.storage.device)
            logits = self._decoder.logits(batch)
            results = read_step(plan, logits, self.grammars)
            if logits.is_cuda and not any(result.token_ids for result in results):
                torch.cuda.synchronize()  # nothing was read: the KV must be there, and the time be told, all the same
        return StepResult(slices=results, elapsed_s=self._clock() - started)

    def prepare_decode(self, sequences: int) -> None:
        """Do now what the first decode steps of up to so many sequences would wait for: their CUDA graphs."""
        if isinstance(self._decoder, GraphedDecoder):
            self._decoder.capture_up_to(sequences)

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


def _reserve(layout: KvLayout, total_blocks: int, device: torch.device, spare_blocks: int = 0) -> KvPool:
    try:
        return KvPool(layout, total_blocks, device, spare_blocks)
    except (RuntimeError, MemoryError) as error:
        wanted = total_blocks * layout.block_bytes / 2**30
        message = f"total_blocks: {total_blocks} blocks take {wanted:.1f} GiB, which {device} does not have; lower it"
        raise PartUnavailable(message) from error
