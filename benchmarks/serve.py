"""What a client of a real cluster sees: time to the first token, the hand-over, tokens a second.

One prefill and one decode worker with the bench model, one thread each, started by `baton up`. Split placement (every
request is handed over) is compared with local placement (the decode worker reads the prompt itself) on the same
workers, in turn; the hand-over with its aims and with one memcpy of the same KV. Every prompt has a salt of its own, so
that nothing is cached unless a case asks for it.
"""

import asyncio
import math
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks import report
from benchmarks.asker import STREAMS, Asker, Seen
from benchmarks.serving_cluster import Routers, serving
from cluster_rpc.client import BatonClient

CACHED_PROMPT_TOKENS = 1024
MEDIAN_AIM_S, P99_AIM_S = 0.005, 0.020
EXPOSED_AIM_PERCENT = 1.0
PENALTY_AIM = 1.1
"""What the gap before the second token may be of the gaps after it."""
FIRST_AIM = 1.5
"""What the first request after a start may take of what the hundredth takes."""
FIRST_PROMPT_TOKENS, FIRST_ANSWER_TOKENS = 64, 8
"""Of a small request: what only the first one does would be hidden in a long prefill."""
TOKEN_KV_BYTES = 12 * 1024
AT_ONCE, AT_ONCE_PROMPT_TOKENS, AT_ONCE_ANSWER_TOKENS = 8, 512, 16
VLLM_AT_ONCE_S = 0.476
"""From the first token to the second of `AT_ONCE` requests at once: vLLM with NIXL, one prefill and one decode worker,
this model on such a machine; measured before, not in the same run."""
RESOLUTION_S = 1e-4
"""A hand-over hidden behind the prefill is the difference of two equal gaps, and may come out below 0: this stands for
all that cannot be told from the jitter of a decode step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompts:
    """Requests of one length."""

    tokens: int
    answer_tokens: int
    requests: int
    """How many are handed over. The p99 of fewer than 100 is the longest of them."""
    shows_exposed: bool = False


PROMPTS = (
    Prompts(tokens=512, answer_tokens=16, requests=50),
    Prompts(tokens=1024, answer_tokens=64, requests=20, shows_exposed=True),
    Prompts(tokens=3000, answer_tokens=64, requests=10, shows_exposed=True),
)
LOCAL_REQUESTS = 3
"""Requests of each length that are not handed over."""
CASES = (
    "serve.first_request",
    *(f"serve.ttft.{prompts.tokens}" for prompts in PROMPTS),
    *(
        f"serve.{what}.{prompts.tokens}.{against}"
        for prompts in PROMPTS
        for what in ("handover", "second_gap")
        for against in ("memcpy", "median", "p99")
    ),
    *(f"serve.second_gap.{prompts.tokens}.jitter" for prompts in PROMPTS),
    *(f"serve.second_token.{prompts.tokens}" for prompts in PROMPTS),
    *(f"serve.exposed.{prompts.tokens}" for prompts in PROMPTS if prompts.shows_exposed),
    f"serve.ttft.{CACHED_PROMPT_TOKENS}.cached",
    f"serve.first_gap.{AT_ONCE}_at_once",
    f"serve.streams.{STREAMS}",
)


def p99(values: Sequence[float]) -> float:
    """Return the value that 99 of 100 do not exceed: of fewer than 100, the largest."""
    return sorted(values)[math.ceil(0.99 * len(values)) - 1]


async def _first_request_row(split: Asker, requests: int) -> report.Row:
    """Compare the very first request of a cluster with its hundredth: the median of the last tenth of a hundred."""
    taken = [
        (await split.ask_new(FIRST_PROMPT_TOKENS, FIRST_ANSWER_TOKENS)).total_s
        for _ in report.turns("the first request, and those after it", requests, 1)
    ]
    later_s = statistics.median(taken[-max(1, requests // 10) :])
    row = _in_ms("serve.first_request", taken[0], f"the {requests}th", later_s)
    return row.aiming_at(1 / FIRST_AIM)


async def _first_and_second(asker: Asker) -> tuple[float, float]:
    """Return the times to the first token of a new prompt and of the same prompt again."""
    prompt, salt = asker.new_prompt(CACHED_PROMPT_TOKENS), asker.new_salt()
    first = await asker.ask(prompt, salt, FIRST_ANSWER_TOKENS)
    again = await asker.ask(prompt, salt, FIRST_ANSWER_TOKENS)
    return first.ttft_s, again.ttft_s


def _memcpy_s(tokens: int) -> float:
    """Return the seconds that one copy of the KV of ``tokens`` tokens takes, from and to memory that is not cached."""
    source = np.full((8, tokens * TOKEN_KV_BYTES), 1, np.uint8)
    target = np.full_like(source, 2)  # written before the clock runs: no page is missing then
    started = time.perf_counter()
    np.copyto(target, source)
    return (time.perf_counter() - started) / len(source)


def _values(seen: list[Seen], field: str) -> list[float]:
    return [getattr(each, field) for each in seen]


async def _length_rows(split: Asker, local: Asker, prompts: Prompts, *, quick: bool) -> list[report.Row]:
    """Return the rows of one length of prompts. Local requests and copies are spread over those handed over."""
    requests, others = (1, 1) if quick else (prompts.requests, LOCAL_REQUESTS)
    ours: list[Seen] = []
    theirs: list[Seen] = []
    copies: list[float] = []
    for _ in report.turns(f"prompts of {prompts.tokens} tokens", requests, 1):
        if len(theirs) * requests <= len(ours) * others:
            theirs.append(await local.ask_new(prompts.tokens, prompts.answer_tokens))
            copies.append(_memcpy_s(prompts.tokens))
        ours.append(await split.ask_new(prompts.tokens, prompts.answer_tokens))
    tokens = prompts.tokens
    ttft_s, other_s = (statistics.median(_values(side, "ttft_s")) for side in (ours, theirs))
    rows = [_in_ms(f"serve.ttft.{tokens}", ttft_s, "local placement", other_s)]
    for what in ("handover", "second_gap"):
        rows += _handover_rows(f"serve.{what}.{tokens}", _values(ours, f"{what}_s"), statistics.median(copies))
    jitter = "the same of a gap in which nothing is handed over"
    slowest_s, quiet_s = (p99(_values(ours, field)) for field in ("second_gap_s", "jitter_s"))
    rows.append(_in_ms(f"serve.second_gap.{tokens}.jitter", slowest_s, jitter, max(quiet_s, RESOLUTION_S)))
    gap_s, later_s = (statistics.median(_values(ours, field)) for field in ("first_gap_s", "later_gap_s"))
    rows.append(_in_ms(f"serve.second_token.{tokens}", gap_s, "the gaps after it", later_s).aiming_at(1 / PENALTY_AIM))
    if prompts.shows_exposed:
        rows.append(_exposed_row(f"serve.exposed.{tokens}", ours))
    transfer_s = statistics.median(_values(ours, "transfer_s"))
    exposed_s = statistics.median(_values(ours, "exposed_s"))
    report.progress.print(
        f"{tokens} tokens, {requests} requests: blocks under way for {1000 * transfer_s:.1f} ms, "
        f"exposed after the prefill {1000 * exposed_s:.2f} ms"
    )
    return rows


def _handover_rows(case: str, taken: list[float], copied_s: float) -> list[report.Row]:
    median_s = statistics.median(taken)
    return [
        _in_ms(f"{case}.memcpy", median_s, "memcpy of the prompt's KV", copied_s),
        _in_ms(f"{case}.median", median_s, f"aim: {1000 * MEDIAN_AIM_S:g} ms", MEDIAN_AIM_S).aiming_at(1.0),
        _in_ms(f"{case}.p99", p99(taken), f"aim: {1000 * P99_AIM_S:g} ms", P99_AIM_S).aiming_at(1.0),
    ]


def _exposed_row(case: str, seen: list[Seen]) -> report.Row:
    """Return the share of the requests' time between the end of the prefill and the blocks' being there to be read."""
    percent = statistics.median(100 * max(each.exposed_s, RESOLUTION_S) / each.total_s for each in seen)
    against = f"aim: {EXPOSED_AIM_PERCENT:g} % of the request"
    return report.lower_is_better(case, percent, "%", against, EXPOSED_AIM_PERCENT).aiming_at(1.0)


def _in_ms(case: str, value_s: float, against: str, against_s: float) -> report.Row:
    return report.lower_is_better(case, 1000 * max(value_s, RESOLUTION_S), "ms", against, 1000 * against_s)


async def _cached_row(split: Asker, rounds: int) -> report.Row:
    pairs = [await _first_and_second(split) for _ in report.turns("cached prompts", rounds, 1)]
    first_s, again_s = (statistics.median(side) for side in zip(*pairs, strict=True))
    return _in_ms(f"serve.ttft.{CACHED_PROMPT_TOKENS}.cached", again_s, "the first request", first_s)


async def _at_once_row(split: Asker, rounds: int) -> report.Row:
    """Return the row of the gap before the second token where several prompts come, and are handed over, at once."""
    gaps: list[float] = []
    for _ in report.turns(f"{AT_ONCE} prompts at once", rounds, 1):
        asked = (split.ask_new(AT_ONCE_PROMPT_TOKENS, AT_ONCE_ANSWER_TOKENS) for _ in range(AT_ONCE))
        gaps += _values(await asyncio.gather(*asked), "first_gap_s")
    against = f"aim: vLLM's {1000 * VLLM_AT_ONCE_S:g} ms"
    row = _in_ms(f"serve.first_gap.{AT_ONCE}_at_once", statistics.median(gaps), against, VLLM_AT_ONCE_S)
    return row.aiming_at(1.0)


async def _streams_row(split: Asker, local: Asker, rounds: int) -> report.Row:
    measurements: tuple[Callable[[], Awaitable[float]], ...] = split.tokens_per_s, local.tokens_per_s
    rates: tuple[list[float], list[float]] = [], []
    for position in report.turns(f"{STREAMS} streams", rounds, 2):
        rates[position].append(await measurements[position]())
    ours, other = (statistics.median(each) for each in rates)
    return report.higher_is_better(f"serve.streams.{STREAMS}", ours, "tokens/s", "local placement", other)


async def measure(routers: Routers, *, quick: bool) -> list[report.Row]:
    """Return a row for each of `CASES`. The cluster must be fresh: the first request is the first of all."""
    async with AsyncExitStack() as exits:
        split = Asker(await exits.enter_async_context(BatonClient(routers.split)), split=True)
        local = Asker(await exits.enter_async_context(BatonClient(routers.local)), split=False)
        rows = [await _first_request_row(split, 10 if quick else 100)]
        await local.ask_new(FIRST_PROMPT_TOKENS, FIRST_ANSWER_TOKENS)
        for prompts in PROMPTS:
            rows += await _length_rows(split, local, prompts, quick=quick)
        rows.append(await _cached_row(split, 1 if quick else 3))
        rows.append(await _at_once_row(split, 1 if quick else 5))
        rows.append(await _streams_row(split, local, 1 if quick else 3))
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
