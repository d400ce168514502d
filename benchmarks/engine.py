"""How fast one engine reads prompts and writes answers: against `transformers`, and against what the machine can do.

The bench model in bfloat16 on two threads. Both sides do the same fixed work: the KV of the context is there before
the clock starts (random numbers: their values do not change the time), prefills draw one token, decode steps write one
token a sequence, greedily. `transformers` uses its default attention (SDPA); its decode steps are measured with a
growing and with a static cache, and the faster one counts.
"""

import logging
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.nn import functional

from benchmarks import report
from benchmarks.bench_model import make_bench_model
from cluster_core.sampling import Sampling
from inference_engine.engine import Engine
from inference_engine.model_folder import open_model_folder
from inference_engine.settings import EngineSettings, ModelSettings
from inference_engine.step import SequenceSlice, StepPlan

THREADS = 2
PROMPT_TOKENS = 1024
PREFILL_BATCHES = (1, 8)
SHORT_CONTEXT = 16
DECODES = ((1, SHORT_CONTEXT), (8, SHORT_CONTEXT), (32, SHORT_CONTEXT), (32, 1024))
STEPS = 8
"""Decode steps in one measurement."""
CASES = (
    "engine.prefill.1x1024",
    "engine.prefill.8x1024",
    "engine.prefill.1x1024.gemm",
    "engine.decode.batch1",
    "engine.decode.batch8",
    "engine.decode.batch32",
    "engine.decode.batch32.context1024",
    "engine.decode.batch1.weights",
)
_GREEDY = Sampling(temperature=0.0, top_p=1.0, top_k=0, seed=0, max_tokens=1, stop_token_ids=frozenset())

Measurement = Callable[[], float]


class Ours:
    """Baton's engine; sequence i of a batch owns a run of consecutive blocks."""

    def __init__(self, folder: Path) -> None:
        settings = EngineSettings(dtype="bfloat16", threads=THREADS)
        sequences, context = DECODES[-1]
        self._blocks_each = -(-(context + STEPS) // settings.block_size_tokens)
        model = open_model_folder(ModelSettings(path=str(folder)))
        self._engine = Engine.load(model, settings, sequences * self._blocks_each)
        self._engine.memory.storage.normal_()

    def prefill(self, batch: int) -> float:
        """Return prompt tokens a second, one step for the whole batch."""
        plan = StepPlan(slices=tuple(self._slice(index, [7] * PROMPT_TOKENS, 0) for index in range(batch)))
        return batch * PROMPT_TOKENS / _seconds(lambda: self._engine.step(plan))

    def decode(self, batch: int, context: int) -> float:
        """Return tokens a second."""

        def steps() -> None:
            tokens: list[int | None] = [7] * batch
            for step in range(STEPS):
                slices = tuple(self._slice(index, [token or 0], context + step) for index, token in enumerate(tokens))
                tokens = list(self._engine.step(StepPlan(slices=slices)).tokens)

        return batch * STEPS / _seconds(steps)

    def _slice(self, index: int, token_ids: list[int], start: int) -> SequenceSlice:
        table = range(index * self._blocks_each, (index + 1) * self._blocks_each)
        return SequenceSlice(token_ids=token_ids, start=start, block_table=table, draw=_GREEDY)


class Theirs:
    """The same model in `transformers`."""

    def __init__(self, folder: Path) -> None:
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        self._model = model.eval()

    def prefill(self, batch: int) -> float:
        """Return prompt tokens a second; logits of the last token alone, as ours."""
        prompt = torch.full((batch, PROMPT_TOKENS), 7)
        return batch * PROMPT_TOKENS / _seconds(lambda: self._next(prompt, transformers.DynamicCache()))

    def decode(self, batch: int, context: int, *, static: bool) -> float:
        """Return tokens a second."""
        config = self._model.config
        cache: Any = (
            transformers.StaticCache(config=config, max_cache_len=context + STEPS)
            if static
            else transformers.DynamicCache(config=config)
        )
        shape = batch, config.num_key_value_heads, context, config.head_dim
        for layer in range(config.num_hidden_layers):
            cache.update(torch.randn(shape, dtype=torch.bfloat16), torch.randn(shape, dtype=torch.bfloat16), layer)

        def steps() -> None:
            tokens = torch.full((batch, 1), 7)
            for _ in range(STEPS):
                tokens = self._next(tokens, cache)

        return batch * STEPS / _seconds(steps)

    def _next(self, token_ids: torch.Tensor, cache: Any) -> torch.Tensor:
        with torch.inference_mode():
            output = self._model(input_ids=token_ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        drawn: torch.Tensor = output.logits[:, -1].argmax(-1, keepdim=True)
        return drawn


class Limits:
    """What the same machine, library and threads do without an engine around it."""

    def __init__(self) -> None:
        hidden, inner, layers, vocabulary = 768, 2048, 12, 8192
        keys = 2 * 4 * 64
        # Queries, keys and values in one product, gate and up in one: the fewest, largest products.
        self._shapes = [(hidden + keys, hidden), (hidden, hidden), (2 * inner, hidden), (hidden, inner)]
        self._layers = layers
        weights = layers * sum(rows * columns for rows, columns in self._shapes) + vocabulary * hidden
        self._stream = torch.ones(2 * weights // 4)  # as many bytes as the weights in bfloat16

    def gemm(self, dtype: torch.dtype) -> float:
        """Return prompt tokens a second if a prefill of one prompt were its matrix products alone."""
        products = [
            (torch.randn(PROMPT_TOKENS, columns, dtype=dtype), torch.randn(rows, columns, dtype=dtype))
            for _ in range(self._layers)
            for rows, columns in self._shapes
        ]

        def multiply() -> None:
            for values, weight in products:
                functional.linear(values, weight)

        with torch.inference_mode():
            return PROMPT_TOKENS / _seconds(multiply)

    def weight_streams(self) -> float:
        """Return how often a second as many bytes as the weights have can be read (by a sum over float32)."""
        return 4 / _seconds(lambda: [self._stream.sum() for _ in range(4)])


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def measure(folder: Path, rounds: int) -> list[report.Row]:
    """Return a row for each of `CASES`."""
    torch.set_num_threads(THREADS)
    ours, theirs, limits = Ours(folder), Theirs(folder), Limits()
    rows = []
    for batch in PREFILL_BATCHES:
        case = f"engine.prefill.{batch}x{PROMPT_TOKENS}"
        measurements: list[Measurement] = [partial(ours.prefill, batch), partial(theirs.prefill, batch)]
        if batch == 1:
            measurements += [partial(limits.gemm, dtype) for dtype in (torch.bfloat16, torch.float32)]
        value, peer, *gemms = report.interleaved(case, rounds, measurements)
        rows.append(report.higher_is_better(case, value, "tokens/s", "transformers", peer))
        if gemms:
            kind = "bfloat16" if gemms[0] >= gemms[1] else "float32"
            against = f"its matrix products alone ({kind}, the faster)"
            rows.append(report.higher_is_better(f"{case}.gemm", value, "tokens/s", against, max(gemms)))
    for batch, context in DECODES:
        case = f"engine.decode.batch{batch}" + (f".context{context}" if context != SHORT_CONTEXT else "")
        measurements = [
            partial(ours.decode, batch, context),
            partial(theirs.decode, batch, context, static=False),
            partial(theirs.decode, batch, context, static=True),
        ]
        if batch == 1:
            measurements.append(limits.weight_streams)
        value, growing, static, *streams = report.interleaved(case, rounds, measurements)
        against = f"transformers ({'growing' if growing >= static else 'static'} cache, the faster)"
        rows.append(report.higher_is_better(case, value, "tokens/s", against, max(growing, static)))
        if streams:
            against = "reading the weights' bytes once a token"
            rows.append(report.higher_is_better(f"{case}.weights", value, "tokens/s", against, streams[0]))
    return rows


def main() -> None:
    """Measure and print."""
    options = report.parser(__doc__).parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # the library's own
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(make_bench_model(Path(folder) / "bench-82m"), 1 if options.quick else 6)
    report.show(rows, as_json=options.json)


if __name__ == "__main__":
    main()
