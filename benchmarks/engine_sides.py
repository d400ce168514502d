"""Who takes part in `baton bench engine` on the CPU: our engine, `transformers`, vLLM, and what the machine can do."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.nn import functional

from benchmarks.peer_process import CHECKOUT, PeerProcess, running_command
from cluster_core.sampling import Sampling
from inference_engine.engine import Engine
from inference_engine.model_folder import open_model_folder
from inference_engine.settings import EngineSettings, ModelSettings
from inference_engine.step import SequenceSlice, StepPlan

THREADS = 2
STEPS = 8
"""Decode steps in one measurement."""
_VLLM_TIMEOUT_S = 900.0
_GREEDY = Sampling(temperature=0.0, top_p=1.0, top_k=0, seed=0, max_tokens=1, stop_token_ids=frozenset())


@dataclass(frozen=True, slots=True, kw_only=True)
class Decode:
    """Sequences that write one token each a step."""

    batch: int
    context: int


def seconds(work: Callable[[], object]) -> float:
    """Return how long the work takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


class Ours:
    """Baton's engine; sequence i of a batch owns a run of consecutive blocks."""

    def __init__(self, folder: Path, sequences: int, tokens_each: int, *, batch_invariant: bool = False) -> None:
        settings = EngineSettings(dtype="bfloat16", threads=THREADS, batch_invariant=batch_invariant)
        self._blocks_each = -(-tokens_each // settings.block_size_tokens)
        model = open_model_folder(ModelSettings(path=str(folder)))
        self._engine = Engine.load(model, settings, sequences * self._blocks_each)
        self._engine.memory.storage.normal_()

    def prefill(self, batch: int, tokens: int) -> float:
        """Return prompt tokens a second, one step for the whole batch."""
        plan = StepPlan(slices=tuple(self._slice(index, [7] * tokens, 0) for index in range(batch)))
        return batch * tokens / seconds(lambda: self._engine.step(plan))

    def prefill_by_steps(self, prompts: int, tokens: int, *, chunk: int, budget: int) -> float:
        """Return prompt tokens a second, at most ``chunk`` of a prompt and ``budget`` in all in a step."""
        pieces = [
            self._slice(index, [7] * min(chunk, tokens - start), start)
            for start in range(0, tokens, chunk)
            for index in range(prompts)
        ]
        at_once = max(1, budget // chunk)
        plans = [StepPlan(slices=tuple(pieces[start : start + at_once])) for start in range(0, len(pieces), at_once)]
        return prompts * tokens / seconds(lambda: [self._engine.step(plan) for plan in plans])

    def step_beside(self, case: Decode, chunk: int) -> float:
        """Return the seconds of a step that writes answers and reads ``chunk`` tokens of a prompt."""
        writing = [self._slice(index, [7], case.context) for index in range(case.batch)]
        reading = [self._slice(case.batch, [7] * chunk, case.context)] if chunk else []
        plan = StepPlan(slices=(*writing, *reading))
        return seconds(lambda: [self._engine.step(plan) for _ in range(STEPS)]) / STEPS

    def decode(self, case: Decode) -> float:
        """Return tokens a second."""

        def steps() -> None:
            tokens = [7] * case.batch
            for step in range(STEPS):
                slices = tuple(self._slice(index, [token], case.context + step) for index, token in enumerate(tokens))
                tokens = [drawn.token_ids[0] for drawn in self._engine.step(StepPlan(slices=slices)).slices]

        return case.batch * STEPS / seconds(steps)

    def _slice(self, index: int, token_ids: list[int], start: int) -> SequenceSlice:
        table = range(index * self._blocks_each, self._engine.memory.total_blocks)
        return SequenceSlice(token_ids=token_ids, start=start, block_table=table, draw=_GREEDY)


class Theirs:
    """The same model in `transformers`, in one type of numbers."""

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        self._model = model.eval()
        self._dtype = dtype

    def prefill(self, batch: int, tokens: int) -> float:
        """Return prompt tokens a second; logits of the last token alone, as ours."""
        prompt = torch.full((batch, tokens), 7)
        return batch * tokens / seconds(lambda: self._next(prompt, transformers.DynamicCache()))

    def decode(self, case: Decode, *, static: bool) -> float:
        """Return tokens a second."""
        config = self._model.config
        cache: Any = (
            transformers.StaticCache(config=config, max_cache_len=case.context + STEPS)
            if static
            else transformers.DynamicCache(config=config)
        )
        shape = case.batch, config.num_key_value_heads, case.context, config.head_dim
        for layer in range(config.num_hidden_layers):
            cache.update(torch.randn(shape, dtype=self._dtype), torch.randn(shape, dtype=self._dtype), layer)

        def steps() -> None:
            tokens = torch.full((case.batch, 1), 7)
            for _ in range(STEPS):
                tokens = self._next(tokens, cache)

        return case.batch * STEPS / seconds(steps)

    def _next(self, token_ids: torch.Tensor, cache: Any) -> torch.Tensor:
        with torch.inference_mode():
            output = self._model(input_ids=token_ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        drawn: torch.Tensor = output.logits[:, -1].argmax(-1, keepdim=True)
        return drawn


class Vllm:
    """The same model in vLLM, in a process of the interpreter that has it."""

    def __init__(self, process: PeerProcess) -> None:
        self._process = process
        process.hear(_VLLM_TIMEOUT_S)

    def prefill(self, batch: int, tokens: int) -> float:
        """Return prompt tokens a second."""
        return self._ask(f"prefill {batch} {tokens}")

    def decode(self, case: Decode) -> float:
        """Return tokens a second."""
        return self._ask(f"decode {case.batch} {case.context}")

    def _ask(self, line: str) -> float:
        self._process.say(line)
        return float(self._process.hear(_VLLM_TIMEOUT_S))


@contextmanager
def vllm_of(python: Path, folder: Path) -> Iterator[Vllm]:
    """Run vLLM until the block ends."""
    command = [str(python), str(CHECKOUT / "benchmarks" / "vllm_side.py"), str(folder), str(THREADS)]
    environment = {"PATH": f"{python.parent}:/usr/bin:/bin", "HOME": str(Path.home())}
    with running_command(command, log=folder / "vllm.log", environment=environment) as process:
        yield Vllm(PeerProcess(process, "vLLM"))


class Limits:
    """What the same machine, library and threads do without an engine around it."""

    def __init__(self) -> None:
        hidden, inner, layers, vocabulary = 768, 2048, 12, 8192
        keys = 2 * 4 * 64
        # Queries, keys and values in one product, gate and up in one: the fewest, largest products.
        self._shapes = [(hidden + keys, hidden), (hidden, hidden), (2 * inner, hidden), (hidden, inner)]
        self._layers = layers
        self._weights_bytes = 2 * (layers * sum(rows * columns for rows, columns in self._shapes) + vocabulary * hidden)
        self._token_bytes = 2 * layers * keys
        self._stream = torch.ones((self._weights_bytes + 32 * 1024 * self._token_bytes) // 4)

    def gemm(self, tokens: int, dtype: torch.dtype) -> float:
        """Return prompt tokens a second if a prefill of one prompt were its matrix products alone."""
        products = [
            (torch.randn(tokens, columns, dtype=dtype), torch.randn(rows, columns, dtype=dtype))
            for _ in range(self._layers)
            for rows, columns in self._shapes
        ]

        def multiply() -> None:
            for values, weight in products:
                functional.linear(values, weight)

        with torch.inference_mode():
            return tokens / seconds(multiply)

    def streams(self, case: Decode) -> float:
        """Return tokens a second if a step only read the bytes of weights and KV (by a sum over float32)."""
        numbers = (self._weights_bytes + case.batch * case.context * self._token_bytes) // 4
        part = self._stream[:numbers]
        return 4 * case.batch / seconds(lambda: [part.sum() for _ in range(4)])
