"""One engine on one GPU: against what the device can do, and against `transformers`, compiled, with a static cache.

``baton bench engine --device cuda``: a model of the shape of Llama 3 8B with random bfloat16 weights. Prefills are
one step each and draw one token a prompt; decode steps follow a context whose KV is there before the clock starts and
are drawn greedily. Times are those of whole steps, from a plan in Python to tokens in Python.
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks import report
from benchmarks.large_model import (
    HEAD_PARAMETERS,
    HIDDEN,
    KV_BYTES_PER_TOKEN_AND_LAYER,
    LAYER_PARAMETERS,
    LAYERS,
    make_large_model,
)
from cluster_core.sampling import Sampling
from inference_engine.engine import Engine
from inference_engine.model_folder import open_model_folder
from inference_engine.settings import EngineSettings, ModelSettings
from inference_engine.step import SequenceSlice, StepPlan
from inference_engine.warm_up import warm_up

PREFILLS = ((1, 1024), (8, 1024), (1, 8192))
"""Prompts, and tokens of each."""
DECODE_BATCHES = (1, 4, 16)
BUSY_BATCH = 64
BUSY_AIM = 0.95
CONTEXT = 1024
STEPS = 32
PRODUCT_SIDE = 8192
_STEPS_BEFORE = 4
_READ_BYTES = 8 << 30
_TIMES = 4  # short work is done this often between two looks at the clock
CASES = (
    *(f"engine.cuda.prefill.{batch}x{tokens}{limit}" for batch, tokens in PREFILLS for limit in ("", ".product")),
    *(f"engine.cuda.decode.batch{batch}{limit}" for batch in DECODE_BATCHES for limit in ("", ".read")),
    f"engine.cuda.decode.batch{BUSY_BATCH}.busy",
)
_GREEDY = Sampling(temperature=0.0, top_p=1.0, top_k=0, seed=0, max_tokens=1, stop_token_ids=frozenset())


Measurement = Callable[[], float]


class Ours:
    """Baton's engine; sequence i of a batch owns a run of consecutive blocks."""

    def __init__(self, folder: Path) -> None:
        settings = EngineSettings(device="cuda", dtype="bfloat16")
        self._blocks_each = -(-(max(CONTEXT + STEPS, PREFILLS[0][1]) + 1) // settings.block_size_tokens)
        most_tokens = max(batch * tokens for batch, tokens in PREFILLS)
        blocks = max(BUSY_BATCH * self._blocks_each, most_tokens // settings.block_size_tokens + 1)
        self._total_blocks = blocks
        model = open_model_folder(ModelSettings(path=str(folder)))
        self._engine = warm_up(Engine.load(model, settings, blocks))
        self._engine.memory.storage.normal_()

    def prefill(self, batch: int, tokens: int) -> float:
        """Return the seconds of one step."""
        plan = StepPlan(slices=tuple(self._slice(index, [7] * tokens, 0, batch) for index in range(batch)))
        return _seconds(lambda: self._engine.step(plan))

    def decode(self, batch: int) -> float:
        """Return the seconds of one step, of `STEPS`."""
        return _seconds(lambda: self.decode_steps(batch)) / STEPS

    def decode_steps(self, batch: int) -> None:
        """Write `STEPS` tokens a sequence."""
        tokens = [7] * batch
        for step in range(STEPS):
            slices = tuple(self._slice(index, [token], CONTEXT + step, batch) for index, token in enumerate(tokens))
            tokens = [drawn.token_ids[0] for drawn in self._engine.step(StepPlan(slices=slices)).slices]

    def _slice(self, index: int, token_ids: list[int], start: int, batch: int) -> SequenceSlice:
        each = self._total_blocks if batch == 1 else self._blocks_each
        return SequenceSlice(
            token_ids=token_ids, start=start, block_table=range(index * each, (index + 1) * each), draw=_GREEDY
        )


class Theirs:
    """The same weights in `transformers`: prompts as they come, decode steps compiled over a static cache."""

    def __init__(self, folder: Path) -> None:
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        self._model = model.eval().to("cuda")
        self._compiled = torch.compile(self._next, mode="reduce-overhead", fullgraph=True)
        self._caches: dict[int, Any] = {}

    def prefill(self, batch: int, tokens: int) -> float:
        """Return the seconds of one forward pass."""
        prompt = torch.full((batch, tokens), 7, device="cuda")
        cache = transformers.DynamicCache()
        with torch.inference_mode():
            return _seconds(lambda: self._next(prompt, torch.arange(tokens, device="cuda"), cache).tolist())

    def decode(self, batch: int) -> float:
        """Return the seconds of one step, of `STEPS`; those before compile, record and settle."""
        if batch not in self._caches:  # what is recorded holds the places of its memory
            length = CONTEXT + _STEPS_BEFORE + STEPS
            self._caches[batch] = transformers.StaticCache(config=self._model.config, max_cache_len=length)
        cache = self._caches[batch]
        cache.reset()
        position = torch.arange(CONTEXT, device="cuda")
        with torch.no_grad():  # compiled code and inference mode do not mix
            tokens = self._next(torch.full((batch, CONTEXT), 7, device="cuda"), position, cache)

            def steps(first: int, count: int) -> None:
                drawn = tokens
                for step in range(first, first + count):
                    torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]  # torch's own
                    drawn = self._compiled(drawn.clone(), position[-1:] + 1 + step, cache)
                    drawn.tolist()

            steps(0, _STEPS_BEFORE)
            return _seconds(lambda: steps(_STEPS_BEFORE, STEPS)) / STEPS

    def _next(self, token_ids: torch.Tensor, position: torch.Tensor, cache: Any) -> torch.Tensor:
        output = self._model(
            input_ids=token_ids,
            position_ids=position[None].expand(len(token_ids), -1),
            cache_position=position,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        drawn: torch.Tensor = output.logits[:, -1].argmax(-1, keepdim=True)
        return drawn


class Limits:
    """What the device does without an engine around it."""

    def __init__(self) -> None:
        self._factors = [torch.randn(PRODUCT_SIDE, PRODUCT_SIDE, device="cuda", dtype=torch.bfloat16) for _ in range(2)]
        self._stream = torch.randn(_READ_BYTES // 4, device="cuda")

    def product(self) -> float:
        """Return the seconds of one product of two large square matrices."""
        left, right = self._factors
        return _seconds(lambda: [left @ right for _ in range(_TIMES)]) / _TIMES

    def read(self) -> float:
        """Return the seconds in which one byte is read, on average, by a sum over float32."""
        return _seconds(lambda: [self._stream.sum() for _ in range(_TIMES)]) / _TIMES / _READ_BYTES


def busy_share(work: Callable[[], object], trace: Path | None) -> float:
    """Return the share of the time in which the device computes or copies, as torch's profiler sees it."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        wall_s = _seconds(work)
    spans = [event.time_range for event in profiler.events() or () if event.device_type.name == "CUDA"]
    if trace is not None:
        profiler.export_chrome_trace(str(trace))
    return covered([(span.start, span.end) for span in spans]) / (wall_s * 1e6)


def covered(spans: list[tuple[float, float]]) -> float:
    """Return the length of what the spans cover together."""
    total, reached = 0.0, -float("inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def measure(folder: Path, rounds: int, layers: int = LAYERS, trace: Path | None = None) -> list[report.Row]:
    """Return a row for each of `CASES`; ``folder`` takes the model, ``trace`` the profile of the busy case."""
    report.progress.print(f"writing a model of {layers} layers")
    make_large_model(folder, layers)
    ours, theirs, limits = Ours(folder), Theirs(folder), Limits()
    rows = []
    for batch, tokens in PREFILLS:
        case = f"engine.cuda.prefill.{batch}x{tokens}"
        work: list[Measurement] = [
            partial(ours.prefill, batch, tokens),
            partial(theirs.prefill, batch, tokens),
            limits.product,
        ]
        own_s, peer_s, product_s = report.interleaved(case, rounds, work)
        rate, peer = (batch * tokens / seconds for seconds in (own_s, peer_s))
        rows.append(report.higher_is_better(case, rate, "tokens/s", "transformers", peer))
        flops, limit = 2 * layers * LAYER_PARAMETERS * batch * tokens / own_s, 2 * PRODUCT_SIDE**3 / product_s
        against = f"a matrix product of side {PRODUCT_SIDE}"
        name = f"{case}.product"
        rows.append(report.higher_is_better(name, flops / 1e12, "TFLOP/s in layers", against, limit / 1e12))
    for batch in DECODE_BATCHES:
        case = f"engine.cuda.decode.batch{batch}"
        work = [partial(ours.decode, batch), partial(theirs.decode, batch), limits.read]
        own_s, peer_s, byte_s = report.interleaved(case, rounds, work)
        against = "transformers, static cache, torch.compile"
        rows.append(report.higher_is_better(case, batch / own_s, "tokens/s", against, batch / peer_s))
        read = step_bytes(batch, layers) / own_s
        name = f"{case}.read"
        rows.append(report.higher_is_better(name, read / 1e9, "GB/s", "a sum over 8 GiB", 1 / byte_s / 1e9))
    ours.decode(BUSY_BATCH)
    share = busy_share(partial(ours.decode_steps, BUSY_BATCH), trace)
    case = f"engine.cuda.decode.batch{BUSY_BATCH}.busy"
    rows.append(report.higher_is_better(case, share, "of the time", "the aim", BUSY_AIM))
    return rows


def step_bytes(batch: int, layers: int) -> int:
    """Return the bytes that one decode step must read: weights, the tokens' embeddings, and the KV of the contexts."""
    weights = 2 * (layers * LAYER_PARAMETERS + HEAD_PARAMETERS + batch * HIDDEN)
    return weights + batch * layers * (CONTEXT + STEPS // 2) * KV_BYTES_PER_TOKEN_AND_LAYER


def _seconds(work: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - started
