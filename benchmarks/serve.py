"""What a client of a real cluster sees: time to the first token, the hand-over, tokens a second.

One prefill and one decode worker with the bench model, one thread each, started by `baton up`. Split placement (every
request is handed over) is compared with local placement (the decode worker reads the prompt itself) on the same
workers, in turn; the hand-over with its aim and with one memcpy of the same KV. Every prompt has a salt of its own, so
that nothing is cached unless a case asks for it.
"""

import asyncio
import itertools
import random
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks import report
from benchmarks.serving_cluster import Routers, serving
from cluster_rpc.client import BatonClient

PROMPT_TOKENS = (512, 1024, 3000)
ANSWER_TOKENS = 16
CACHED_PROMPT_TOKENS = 1024
AIM_PROMPT_TOKENS, AIM_S = 512, 0.010
STREAMS, STREAM_PROMPT_TOKENS, STREAM_TOKENS = 8, 128, 64
TOKEN_KV_BYTES = 12 * 1024
RESOLUTION_S = 1e-4
"""A hand-over hidden behind the prefill is the difference of two equal gaps, and may come out below 0: this stands for
all that cannot be told from the jitter of a decode step."""
WORDS = 8190
"""Token ids below this are plain words of the bench model."""
CASES = (
    *(f"serve.ttft.{tokens}" for tokens in PROMPT_TOKENS),
    *(f"serve.{what}.{tokens}.memcpy" for tokens in PROMPT_TOKENS for what in ("handover", "second_gap")),
    f"serve.handover.{AIM_PROMPT_TOKENS}.aim",
    f"serve.second_gap.{AIM_PROMPT_TOKENS}.aim",
    f"serve.ttft.{CACHED_PROMPT_TOKENS}.cached",
    f"serve.streams.{STREAMS}",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What one request took, in seconds."""

    ttft_s: float
    second_gap_s: float
    """From the first token to the second, less the median gap between later tokens."""
    handover_s: float
    """The same as the router says it."""
    transfer_s: float = 0.0
    exposed_s: float = 0.0


class Asker:
    """Sends requests to one router."""

    def __init__(self, client: BatonClient, *, split: bool) -> None:
        self._client = client
        self._split = split
        self._salts = itertools.count()
        self._random = random.Random(1)  # noqa: S311  # prompts, not secrets

    async def ask_new(self, prompt_tokens: int) -> Seen:
        """Send a prompt that nobody has seen."""
        return await self.ask(self.new_prompt(prompt_tokens), self.new_salt())

    def new_prompt(self, tokens: int) -> list[int]:
        """Draw a prompt."""
        return [self._random.randrange(WORDS) for _ in range(tokens)]

    def new_salt(self) -> str:
        """Return a salt that shares no cached block with anybody."""
        return f"{'split' if self._split else 'local'} {next(self._salts)}"

    async def ask(self, prompt: list[int], salt: str) -> Seen:
        """Send ``prompt``; check that it went where it should."""
        arrivals: list[float] = []  # of each token
        started = time.perf_counter()
        completion = None
        async for chunk in self._client.generate(
            prompt, max_tokens=ANSWER_TOKENS, temperature=0.0, ignore_eos=True, cache_salt=salt
        ):
            arrivals += [time.perf_counter()] * len(chunk.token_ids)
            completion = chunk.completion
        assert completion is not None, "an answer ends with a completion"
        attempt = (await self._client.get_placement(completion.request_id))[-1]
        assert (attempt.chosen.prefill_worker is not None) == self._split, "the router chose another placement"
        gaps = [later - earlier for earlier, later in itertools.pairwise(arrivals)]
        return Seen(
            ttft_s=arrivals[0] - started,
            second_gap_s=gaps[0] - statistics.median(gaps[1:]),
            handover_s=completion.timings.handover_s,
            transfer_s=attempt.handoff.transfer_s if attempt.handoff else 0.0,
            exposed_s=attempt.handoff.exposed_s if attempt.handoff else 0.0,
        )

    async def tokens_per_s(self) -> float:
        """Return the tokens that `STREAMS` streams write in a second, their prompts' reading included."""

        async def stream() -> int:
            answer = await self._client.generate_text(
                self.new_prompt(STREAM_PROMPT_TOKENS),
                max_tokens=STREAM_TOKENS,
                temperature=0.0,
                ignore_eos=True,
                cache_salt=self.new_salt(),
            )
            return len(answer.token_ids)

        started = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            streams = [group.create_task(stream()) for _ in range(STREAMS)]
        return sum(each.result() for each in streams) / (time.perf_counter() - started)


async def _first_and_second(asker: Asker) -> tuple[float, float]:
    """Return the times to the first token of a new prompt and of the same prompt again."""
    prompt, salt = asker.new_prompt(CACHED_PROMPT_TOKENS), asker.new_salt()
    first = await asker.ask(prompt, salt)
    again = await asker.ask(prompt, salt)
    return first.ttft_s, again.ttft_s


def _memcpy_s(tokens: int) -> float:
    """Return the seconds that one copy of the KV of ``tokens`` tokens takes, from and to memory that is not cached."""
    source = np.full((8, tokens * TOKEN_KV_BYTES), 1, np.uint8)
    target = np.full_like(source, 2)  # written before the clock runs: no page is missing then
    started = time.perf_counter()
    np.copyto(target, source)
    return (time.perf_counter() - started) / len(source)


def _median(seen: list[Seen], field: str) -> float:
    values: list[float] = [getattr(each, field) for each in seen]
    return statistics.median(values)


async def _latency_rows(split: Asker, local: Asker, rounds: int) -> list[report.Row]:
    rows = []
    for tokens in PROMPT_TOKENS:
        samples: tuple[list[Seen], list[Seen]] = [], []
        copies = []
        for position in report.turns(f"prompts of {tokens} tokens", rounds, 2):
            samples[position].append(await (split, local)[position].ask_new(tokens))
            copies.append(_memcpy_s(tokens))
        ours, others = samples
        ttft_s, other_s = _median(ours, "ttft_s"), _median(others, "ttft_s")
        rows.append(_in_ms(f"serve.ttft.{tokens}", ttft_s, "local placement", other_s))
        for what in ("handover", "second_gap"):
            taken_s = _median(ours, f"{what}_s")
            copied_s = statistics.median(copies)
            rows.append(_in_ms(f"serve.{what}.{tokens}.memcpy", taken_s, "memcpy of the prompt's KV", copied_s))
            if tokens == AIM_PROMPT_TOKENS:
                rows.append(_in_ms(f"serve.{what}.{tokens}.aim", taken_s, f"aim: {1000 * AIM_S:g} ms", AIM_S))
        report.progress.print(
            f"{tokens} tokens: transfer {1000 * _median(ours, 'transfer_s'):.1f} ms, "
            f"of which after the prefill {1000 * _median(ours, 'exposed_s'):.1f} ms"
        )
    return rows


def _in_ms(case: str, value_s: float, against: str, against_s: float) -> report.Row:
    return report.lower_is_better(case, 1000 * max(value_s, RESOLUTION_S), "ms", against, 1000 * against_s)


async def _cached_row(split: Asker, rounds: int) -> report.Row:
    pairs = [await _first_and_second(split) for _ in report.turns("cached prompts", rounds, 1)]
    first_s, again_s = (statistics.median(side) for side in zip(*pairs, strict=True))
    return _in_ms(f"serve.ttft.{CACHED_PROMPT_TOKENS}.cached", again_s, "the first request", first_s)


async def _streams_row(split: Asker, local: Asker, rounds: int) -> report.Row:
    measurements: tuple[Callable[[], Awaitable[float]], ...] = split.tokens_per_s, local.tokens_per_s
    rates: tuple[list[float], list[float]] = [], []
    for position in report.turns(f"{STREAMS} streams", rounds, 2):
        rates[position].append(await measurements[position]())
    ours, other = (statistics.median(each) for each in rates)
    return report.higher_is_better(f"serve.streams.{STREAMS}", ours, "tokens/s", "local placement", other)


async def measure(routers: Routers, *, quick: bool) -> list[report.Row]:
    """Return a row for each of `CASES`."""
    async with AsyncExitStack() as exits:
        split = Asker(await exits.enter_async_context(BatonClient(routers.split)), split=True)
        local = Asker(await exits.enter_async_context(BatonClient(routers.local)), split=False)
        for asker in (split, local):
            await asker.ask_new(64)
        rows = await _latency_rows(split, local, 1 if quick else 5)
        rows.append(await _cached_row(split, 1 if quick else 5))
        rows.append(await _streams_row(split, local, 1 if quick else 5))
    return rows


def main() -> None:
    """Measure and print."""
    options = report.parser(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report.progress.print("starting a cluster")
        with serving(Path(folder)) as routers:
            rows = asyncio.run(measure(routers, quick=options.quick))
            report.progress.print("ending it")
    report.show(rows, as_json=options.json)


if __name__ == "__main__":
    main()
