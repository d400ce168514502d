"""vLLM's side of the engine benchmark; runs in the interpreter that ``--vllm`` names, and knows nothing of Baton.

A line on standard input, ``prefill BATCH TOKENS`` or ``decode BATCH CONTEXT``, is answered by one on standard output:
tokens a second. Prompts are token ids and nothing is cached between requests. A decode measurement is ``STEPS`` steps
of the engine in which every sequence writes one token; its sequences stay from one measurement to the next.
"""

import contextlib
import os
import sys
import time
from typing import Any

STEPS = 8
_MOST_TOKENS = 4096
_EARLIER_STEPS = 2


class Side:
    """The engine, and the sequences that are being written."""

    def __init__(self, folder: str, threads: int) -> None:
        os.environ |= {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # its engine in this process: no messages between two
            "VLLM_CPU_KVCACHE_SPACE": "2",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": str(threads),
            "VLLM_LOGGING_LEVEL": "WARNING",
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
        }
        import torch  # noqa: PLC0415  # reads the environment
        import vllm  # noqa: PLC0415  # as torch

        torch.set_num_threads(threads)
        self._params = vllm.SamplingParams
        self._engine: Any = vllm.LLM(
            model=folder,
            dtype="bfloat16",
            enable_prefix_caching=False,
            max_model_len=_MOST_TOKENS,
            max_num_seqs=32,
            max_num_batched_tokens=8192,
        ).llm_engine
        self._running: tuple[int, int] | None = None
        self._names: list[str] = []
        self._count = 0

    def prefill(self, batch: int, tokens: int) -> float:
        """Return prompt tokens a second; every prompt draws one token."""
        self._end()
        self._add(batch, tokens, 1)
        started = time.perf_counter()
        while self._engine.has_unfinished_requests():
            self._engine.step()
        self._names = []
        return batch * tokens / (time.perf_counter() - started)

    def decode(self, batch: int, context: int) -> float:
        """Return tokens a second."""
        if self._running != (batch, context):
            self._end()
            self._add(batch, context, _MOST_TOKENS - context)
            written: set[str] = set()
            while len(written) < batch:
                written.update(output.request_id for output in self._engine.step() if output.outputs[0].token_ids)
            for _ in range(_EARLIER_STEPS):
                self._engine.step()
            self._running = batch, context
        started = time.perf_counter()
        for _ in range(STEPS):
            self._engine.step()
        return batch * STEPS / (time.perf_counter() - started)

    def _add(self, batch: int, tokens: int, max_tokens: int) -> None:
        params = self._params(temperature=0.0, max_tokens=max_tokens, ignore_eos=True, detokenize=False)
        for index in range(batch):
            self._count += 1
            name = f"{self._count}"
            prompt = {"prompt_token_ids": [(7 + index + place) % 250 for place in range(tokens)]}
            self._engine.add_request(name, prompt, params)
            self._names.append(name)

    def _end(self) -> None:
        if self._names:
            self._engine.abort_request(self._names)
            while self._engine.has_unfinished_requests():
                self._engine.step()
        self._names, self._running = [], None


def main() -> None:
    """Answer lines until there are no more."""
    folder, threads = sys.argv[1], int(sys.argv[2])
    answers = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # what vLLM prints is no answer
        side = Side(folder, threads)
        print("ready", file=answers, flush=True)
        for line in sys.stdin:
            what, batch, tokens = line.split()
            measure = side.prefill if what == "prefill" else side.decode
            print(measure(int(batch), int(tokens)), file=answers, flush=True)


if __name__ == "__main__":
    main()
