"""How fast one engine reads prompts and writes answers: against `transformers`, vLLM, and what the machine can do.

The bench model in bfloat16 on two threads. All sides do the same fixed work: prefills draw one token, decode steps
write one token a sequence, greedily. `transformers` uses its default attention (SDPA) with bfloat16 or float32 and with
a growing or a static cache: whatever is fastest at a case is what its rows compare with. With ``--device cuda`` see
`benchmarks.engine_cuda`.
"""

import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch
import transformers

from benchmarks import engine_cuda, report
from benchmarks.bench_model import make_bench_model
from benchmarks.cuda_device import require_device
from benchmarks.engine_sides import STEPS, THREADS, Decode, Limits, Ours, Theirs, Vllm, vllm_of
from benchmarks.first_token import first_token

PREFILLS = ((1, 512), (1, 1024), (8, 1024), (1, 3000))
"""Prompts, and tokens of each."""
SHORT_CONTEXT = 16
DECODES = (
    *(Decode(batch=batch, context=SHORT_CONTEXT) for batch in (1, 8, 32)),
    Decode(batch=32, context=1024),
)
PRODUCT_PREFILLS = ((1, 512), (1, 1024), (1, 3000))
"""Those that are compared with their matrix products alone."""
PRODUCT_AIM, STREAM_AIM, START_AIM_S, MEMORY_AIM_MB, VLLM_AIM = 0.55, 0.6, 3.0, 600.0, 1.3
INVARIANT_PREFILL = (1, 1024)
CHUNKS = (64, 128, 256, 512, 1024)
"""Tokens of a prompt in one step."""
CHUNKED_TOKENS = 3000
BUDGETS = (256, 512, 1024, 2048)
"""Tokens of several prompts in one step."""
BUDGET_PROMPTS = (8, 256)
BESIDE = (32, 64, 128, 256, 512)
"""Tokens of a prompt in a step that also writes answers."""
BESIDE_DECODE = Decode(batch=8, context=256)


def _prefill_case(batch: int, tokens: int) -> str:
    return f"engine.prefill.{batch}x{tokens}"


def _decode_case(decode: Decode) -> str:
    long = "" if decode.context == SHORT_CONTEXT else f".context{decode.context}"
    return f"engine.decode.batch{decode.batch}{long}"


CASES = (
    *(_prefill_case(*prefill) for prefill in PREFILLS),
    *(f"{_prefill_case(*prefill)}.gemm{aim}" for prefill in PRODUCT_PREFILLS for aim in ("", ".aim")),
    *(_decode_case(decode) for decode in DECODES),
    *(f"{_decode_case(decode)}.bytes" for decode in DECODES),
    "engine.decode.batch1.bytes.aim",
    "engine.invariant.prefill.1x1024",
    "engine.invariant.decode.batch8",
    *(f"engine.chunk.{chunk}" for chunk in CHUNKS),
    *(f"engine.budget.{budget}" for budget in BUDGETS),
    *(f"engine.beside.{chunk}" for chunk in BESIDE),
    "engine.start.aim",
    "engine.memory.aim",
)

Measurement = Callable[[], float]


class Contest:
    """The sides of one run, and the rows that it has given so far."""

    def __init__(self, folder: Path, rounds: int, vllm: Vllm | None) -> None:
        self.rows: list[report.Row] = []
        self._rounds = rounds
        self._folder = folder
        self._ours = Ours(folder, 32, 1024 + STEPS)
        self._theirs = {dtype: Theirs(folder, dtype) for dtype in (torch.bfloat16, torch.float32)}
        self._limits = Limits()
        self._vllm = vllm
        first = {_type(dtype): partial(side.prefill, *PREFILLS[0]) for dtype, side in self._theirs.items()}
        self._reader = _fastest(first)[0]

    def prefill(self, batch: int, tokens: int) -> None:
        """Compare the reading of prompts."""
        case = _prefill_case(batch, tokens)
        products: list[Measurement] = []
        if (batch, tokens) in PRODUCT_PREFILLS:
            products = [partial(self._limits.gemm, tokens, dtype) for dtype in (torch.bfloat16, torch.float32)]
        theirs = partial(self._theirs[getattr(torch, self._reader)].prefill, batch, tokens)
        vllm = [] if self._vllm is None else [partial(self._vllm.prefill, batch, tokens)]
        ours = partial(self._ours.prefill, batch, tokens)
        value, peer, *others = report.interleaved(case, self._rounds, [ours, theirs, *products, *vllm])
        self._add(case, value, f"transformers ({self._reader})", peer)
        if products:
            narrow, wide = others[:2]
            against = f"its matrix products alone ({'bfloat16' if narrow >= wide else 'float32'}, the faster)"
            self._add(f"{case}.gemm", value, against, max(narrow, wide))
            self._add(f"{case}.gemm.aim", value, f"the aim: {PRODUCT_AIM} of them", PRODUCT_AIM * max(narrow, wide))
        if vllm:
            self._add_vllm(case, value, others[-1])

    def decode(self, decode: Decode) -> None:
        """Compare the writing of answers."""
        case = _decode_case(decode)
        name, theirs = _fastest(
            {
                f"{_type(dtype)}, {'static' if static else 'growing'} cache": partial(
                    side.decode, decode, static=static
                )
                for dtype, side in self._theirs.items()
                for static in (False, True)
            }
        )
        vllm = [] if self._vllm is None else [partial(self._vllm.decode, decode)]
        measurements: list[Measurement] = [
            partial(self._ours.decode, decode),
            theirs,
            partial(self._limits.streams, decode),
            *vllm,
        ]
        value, peer, stream, *others = report.interleaved(case, self._rounds, measurements)
        self._add(case, value, f"transformers ({name})", peer)
        self._add(f"{case}.bytes", value, "reading the bytes of weights and KV once a step", stream)
        if decode.batch == 1:
            self._add(f"{case}.bytes.aim", value, f"the aim: {STREAM_AIM} of that", STREAM_AIM * stream)
        if vllm:
            self._add_vllm(case, value, others[-1])

    def invariance(self) -> None:
        """Tell what batch invariance costs."""
        invariant = Ours(self._folder, 8, 1024 + STEPS, batch_invariant=True)
        decode = DECODES[1]
        pairs: Sequence[tuple[str, Measurement, Measurement]] = (
            (
                "engine.invariant.prefill.1x1024",
                partial(invariant.prefill, *INVARIANT_PREFILL),
                partial(self._ours.prefill, *INVARIANT_PREFILL),
            ),
            ("engine.invariant.decode.batch8", partial(invariant.decode, decode), partial(self._ours.decode, decode)),
        )
        for case, ours, plain in pairs:
            value, other = report.interleaved(case, self._rounds, [ours, plain])
            self._add(case, value, "the same without batch_invariant", other)

    def portions(self) -> None:
        """Tell what it costs to read prompts in small portions, and what portions cost the answers beside them."""
        ours = self._ours
        whole = partial(ours.prefill, 1, CHUNKED_TOKENS)
        chunked = [partial(ours.prefill_by_steps, 1, CHUNKED_TOKENS, chunk=chunk, budget=chunk) for chunk in CHUNKS]
        value, *others = report.interleaved("engine.chunk", self._rounds, [whole, *chunked])
        for chunk, other in zip(CHUNKS, others, strict=True):
            self._add(f"engine.chunk.{chunk}", other, "the whole prompt in one step", value)
        budgets = [
            partial(ours.prefill_by_steps, *BUDGET_PROMPTS, chunk=BUDGET_PROMPTS[1], budget=budget)
            for budget in BUDGETS
        ]
        *others, value = report.interleaved(
            "engine.budget", self._rounds, [*budgets, partial(ours.prefill, *BUDGET_PROMPTS)]
        )
        for budget, other in zip(BUDGETS, others, strict=True):
            self._add(f"engine.budget.{budget}", other, "all prompts in one step", value)
        beside = [partial(ours.step_beside, BESIDE_DECODE, chunk) for chunk in (0, *BESIDE)]
        value, *others = report.interleaved("engine.beside", self._rounds, beside)
        for chunk, other in zip(BESIDE, others, strict=True):
            against = "a step that only writes"
            self.rows.append(report.lower_is_better(f"engine.beside.{chunk}", other * 1e3, "ms", against, value * 1e3))

    def start(self) -> None:
        """Compare the start of a process and its memory with their aims."""
        told = [first_token(self._folder, THREADS) for _ in range(min(3, self._rounds))]
        start_s, beyond_mb = min(one.start_s for one in told), min(one.beyond_mb for one in told)
        self.rows += [
            report.lower_is_better("engine.start.aim", start_s, "s", "the aim", START_AIM_S),
            report.lower_is_better("engine.memory.aim", beyond_mb, "MB", "the aim", MEMORY_AIM_MB),
        ]

    def _add(self, case: str, value: float, against: str, against_value: float) -> None:
        self.rows.append(report.higher_is_better(case, value, "tokens/s", against, against_value))

    def _add_vllm(self, case: str, value: float, theirs: float) -> None:
        self._add(f"{case}.vllm", value, "vLLM", theirs)
        self._add(f"{case}.vllm.aim", value, f"the aim: {VLLM_AIM} x vLLM", VLLM_AIM * theirs)


def _type(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _fastest(measurements: Mapping[str, Measurement]) -> tuple[str, Measurement]:
    """Return whatever was fastest when each was tried twice."""
    tried = {name: max(measure(), measure()) for name, measure in measurements.items()}
    name = max(tried, key=lambda name: tried[name])
    return name, measurements[name]


def measure(folder: Path, rounds: int, vllm: Vllm | None = None) -> list[report.Row]:
    """Return a row for each of `CASES`, and those of vLLM if it takes part."""
    torch.set_num_threads(THREADS)
    contest = Contest(folder, rounds, vllm)
    contest.start()
    for batch, tokens in PREFILLS:
        contest.prefill(batch, tokens)
    for decode in DECODES:
        contest.decode(decode)
    contest.invariance()
    contest.portions()
    return contest.rows


def main() -> None:
    """Measure and print."""
    parser = report.parser(__doc__)
    parser.add_argument("--vllm", type=Path, help="a Python interpreter that has vLLM: it takes part too")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: an 8B-shaped model on one GPU")
    parser.add_argument("--layers", type=int, default=32, help="with --device cuda: fewer where memory is short")
    parser.add_argument("--trace", type=Path, help="with --device cuda: where torch's profile of the busy case goes")
    options = parser.parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # the library's own
    rounds = 1 if options.quick else 5
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        if options.device == "cuda":
            require_device()
            rows = engine_cuda.measure(Path(name) / "bench-8b", rounds, options.layers, options.trace)
        else:
            folder = make_bench_model(Path(name) / "bench-82m")
            vllm = stack.enter_context(vllm_of(options.vllm, folder)) if options.vllm else None
            rows = measure(folder, rounds, vllm)
    report.show(rows, as_json=options.json)


if __name__ == "__main__":
    main()
