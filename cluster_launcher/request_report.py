"""All there is to tell of one answered request, gathered from the client's stream and the router. No printing."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Unpack

from cluster_core.errors import NotServed, PartUnavailable
from cluster_core.handoff import HandoffReport
from cluster_core.logprobs import TokenLogprobs
from cluster_rpc.answers import AttemptView, Candidate, Chunk, Completion
from cluster_rpc.client import BatonClient
from cluster_rpc.generate_request import GenerateOptions, Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestReport:
    """One request. Durations in seconds; those of ``completion.timings`` are the router's."""

    title: str
    text: str
    token_ids: tuple[int, ...]
    completion: Completion
    gaps_s: tuple[float, ...]
    """Between chunks that carried tokens, as this client saw them."""
    attempts: tuple[AttemptView, ...]
    """Empty when the router no longer remembers."""
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs | None, ...] = ()

    @property
    def handoff(self) -> HandoffReport | None:
        """What was handed over in the attempt that finished, if anything was."""
        return self.attempts[-1].handoff if self.attempts else None

    @property
    def itl_median_s(self) -> float:
        """The median gap between tokens, 0 for answers of fewer than two chunks."""
        return statistics.median(self.gaps_s) if self.gaps_s else 0.0

    def as_json(self) -> dict[str, Any]:
        """Return the report as plain values."""
        completion = self.completion
        timings = completion.timings
        told: dict[str, Any] = {}
        if self.logprobs:
            told["logprobs"] = [_logprobs_json(one) for one in self.logprobs]
        if self.prompt_logprobs:
            told["prompt_logprobs"] = [one and _logprobs_json(one) for one in self.prompt_logprobs]
        return {
            "title": self.title,
            "index": completion.index,
            "request_id": completion.request_id,
            "text": self.text,
            "token_ids": list(self.token_ids),
            "finish_reason": completion.finish_reason,
            "prompt_tokens": completion.prompt_tokens,
            "completion_tokens": completion.completion_tokens,
            "cached_tokens": completion.cached_tokens,
            "seed": completion.seed,
            "queue_s": timings.queue_s,
            "prefill_s": timings.prefill_s,
            "ttft_s": timings.ttft_s,
            "handover_s": timings.handover_s,
            "itl_median_s": self.itl_median_s,
            "tpot_s": timings.tpot_s,
            "total_s": timings.total_s,
            "attempts": [_attempt_json(attempt) for attempt in self.attempts],
            **told,
        }


async def run_request(
    client: BatonClient,
    prompt: Prompt,
    *,
    title: str,
    on_text: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
    **options: Unpack[GenerateOptions],
) -> RequestReport:
    """Do as `run_choices`, for a request that asks for one answer."""
    (report,) = await run_choices(client, prompt, title=title, on_text=on_text, clock=clock, **options)
    return report


async def run_choices(
    client: BatonClient,
    prompt: Prompt,
    *,
    title: str,
    on_text: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
    **options: Unpack[GenerateOptions],
) -> tuple[RequestReport, ...]:
    """Send ``prompt``, hand each piece of text to ``on_text`` as it comes, and ask the router why and how.

    Returns one report an answer.
    """
    chunks: list[tuple[float, Chunk]] = []
    async for chunk in client.generate(prompt, **options):
        chunks.append((clock(), chunk))
        if chunk.text:
            on_text(chunk.text)
    completions = [chunk.completion for _, chunk in chunks if chunk.completion is not None]
    assert completions, "a stream that ends well ends with a completion"
    try:
        attempts = await client.get_placement(completions[0].request_id)
    except (NotServed, PartUnavailable):
        attempts = ()
    prompt_logprobs = tuple(told for _, chunk in chunks for told in chunk.prompt_logprobs)
    reports = []
    for completion in sorted(completions, key=lambda one: one.index):
        own = [(arrival, chunk) for arrival, chunk in chunks if chunk.index == completion.index]
        arrivals = [arrival for arrival, chunk in own if chunk.token_ids]
        report = RequestReport(
            title=title,
            text="".join(chunk.text for _, chunk in own),
            token_ids=tuple(token for _, chunk in own for token in chunk.token_ids),
            completion=completion,
            gaps_s=tuple(later - earlier for earlier, later in pairwise(arrivals)),
            attempts=attempts,
            logprobs=tuple(told for _, chunk in own for told in chunk.logprobs),
            prompt_logprobs=prompt_logprobs,
        )
        reports.append(report)
    return tuple(reports)


def where(candidate: Candidate) -> str:
    """Say where a candidate puts a request: ``prefill-0 → decode-1`` or ``decode-1 alone``."""
    if candidate.prefill_worker is None:
        return f"{candidate.decode_worker} alone"
    return f"{candidate.prefill_worker} → {candidate.decode_worker}"


def gigabytes_per_s(handoff: HandoffReport) -> float:
    """Return the rate of a hand-over's bytes, 0 when nothing moved or it was too quick to tell."""
    return handoff.bytes_per_s / 1e9


def _attempt_json(attempt: AttemptView) -> dict[str, Any]:
    handoff, fetch = attempt.handoff, attempt.fetch
    return {
        "attempt": attempt.attempt,
        "rung": attempt.rung,
        "outcome": attempt.outcome,
        "kept_of_failed": attempt.kept_of_failed,
        "placed": where(attempt.chosen),
        "chosen": _candidate_json(attempt.chosen),
        "candidates": [_candidate_json(candidate) for candidate in attempt.candidates],
        "handoff": None
        if handoff is None
        else {
            "moved_blocks": handoff.moved_blocks,
            "kept_blocks": handoff.kept_blocks,
            "moved_bytes": handoff.moved_bytes,
            "exact_bytes": handoff.exact_bytes,
            "wire_format": handoff.wire_format,
            "wire_share": handoff.wire_share,
            "messages": handoff.messages,
            "transfer_s": handoff.transfer_s,
            "unsure_s": handoff.unsure_s,
            "overlapped_s": handoff.overlapped_s,
            "exposed_s": handoff.exposed_s,
            "gigabytes_per_s": gigabytes_per_s(handoff),
            "transport": handoff.transport,
            "link": attempt.link,
        },
        "fetch": None
        if fetch is None
        else {
            "lender": fetch.lender,
            "asked_blocks": fetch.asked_blocks,
            "moved_blocks": fetch.moved_blocks,
            "moved_bytes": fetch.moved_bytes,
            "transfer_s": fetch.transfer_s,
            "elapsed_s": fetch.elapsed_s,
            "failure": fetch.failure,
        },
        "spans": [{"name": span.name, "start_s": span.start_s, "end_s": span.end_s} for span in attempt.spans],
    }


def _candidate_json(candidate: Candidate) -> dict[str, Any]:
    return {
        "prefill_worker": candidate.prefill_worker,
        "decode_worker": candidate.decode_worker,
        "total_s": candidate.total_s,
        "terms": dict(candidate.terms),
        "prefill_cached_tokens": candidate.prefill_cached_tokens,
        "decode_cached_tokens": candidate.decode_cached_tokens,
        "fetch_worker": candidate.fetch_worker,
        "fetch_blocks": candidate.fetch_blocks,
    }


def _logprobs_json(token: TokenLogprobs) -> dict[str, Any]:
    return {
        "token_id": token.token_id,
        "logprob": token.logprob,
        "rank": token.rank,
        "top": [{"token_id": token_id, "logprob": logprob} for token_id, logprob in token.top],
    }
