"""Chooses where a request is served: filter, score every candidate in seconds, take the least. Pure.

A candidate is a pair (prefill worker, decode worker) or one decode worker that does both:

    split = queue(P) + prefill(P) + [transfer(D) - overlap] + queue(D) + first step(D) + harm(D)
    local = queue(D) + prefill(D) + first step(D) + harm(D)

Blocks move while the prefill is running, so only what is left of the transfer afterwards counts, and the part that
has nothing to do with bytes. Harm is what the request takes from the streams that run on D: a step that grows, and
for a local prefill the time in which none of them gets a token. Except for what transfer and prefill share, the terms
of a pair are its workers' own, so they are computed once a worker and a pair costs three additions.
"""

import heapq
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from cluster_core.identity import Incarnation, Role, WorkerId
from cluster_core.placement import Local, Placement, Split
from router.cost_model import (
    Coefficients,
    RequestSize,
    WorkerView,
    cached_tokens,
    coefficients_of,
    decode_queue_s,
    prefill_harm_s,
    prefill_queue_s,
    prefill_s,
    stream_harm_s,
    transfer_s,
)
from router.settings import RouterSettings

KEPT_CANDIDATES = 16
TIE_EPSILON = 1e-3
"""Candidates within this share of the best one count as equal: predictions are no better than that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A placement and its predicted time, term by term."""

    placement: Placement
    total_s: float
    terms: tuple[tuple[str, float], ...]
    prefill_cached_tokens: int
    decode_cached_tokens: int
    prefill_tokens: int
    """Tokens that the worker which reads the prompt would compute."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The chosen candidate, and the best of all, best first."""

    chosen: Candidate
    candidates: tuple[Candidate, ...]


def choose(
    size: RequestSize,
    views: Sequence[WorkerView],
    excluded: Collection[Incarnation],
    settings: RouterSettings,
    pick: Callable[[int], int],
) -> Choice | None:
    """Return the placement with the least predicted time, or None when no decode worker can take the request.

    ``views`` are workers that are alive, compatible and not draining. Those ``excluded`` failed this request before and
    come into question only when nobody else does. Of n candidates that tie, the one at ``pick(n)`` is taken.
    """
    fitting = [view for view in views if _fits(size, view)]
    trusted = [view for view in fitting if view.record.incarnation not in excluded]
    candidates = _scored(size, trusted, settings) or _scored(size, fitting, settings)
    if not candidates:
        return None
    best = heapq.nsmallest(KEPT_CANDIDATES, candidates, key=lambda scored: scored[0])
    limit = best[0][0] * (1 + TIE_EPSILON)
    tied = sum(1 for total_s, _ in best if total_s <= limit)
    kept = [build() for _, build in best]
    chosen = kept[pick(tied) if tied > 1 else 0]
    return Choice(chosen=chosen, candidates=tuple(kept))


def can_ever_fit(size: RequestSize, views: Sequence[WorkerView]) -> bool:
    """Say whether some decode worker's whole pool holds the request. True while none is known: one may come."""
    decode = [view for view in views if view.record.role is Role.DECODE]
    return not decode or any(_fits(size, view) for view in decode)


def _fits(size: RequestSize, view: WorkerView) -> bool:
    """Say whether the worker's empty pool would hold the request, as the worker itself will ask."""
    layout = view.record.layout
    if view.record.role is Role.DECODE:
        needed = layout.blocks_for_answers(size.prompt_tokens, size.max_tokens, size.choices)
    else:
        needed = layout.blocks_for(size.prompt_tokens)
    return needed <= view.record.total_blocks


_Scored = tuple[float, Callable[[], Candidate]]


def _scored(size: RequestSize, views: Sequence[WorkerView], settings: RouterSettings) -> list[_Scored]:
    speeds = coefficients_of(views, settings)
    prefill = [_reader(size, view, speeds) for view in views if view.record.role is Role.PREFILL]
    decode = [_writer(size, view, speeds, settings) for view in views if view.record.role is Role.DECODE]
    local = [_local(size, writer, settings) for writer in decode]
    if settings.placement == "local" or not prefill or (size.max_tokens == 1 and local):
        return local
    pairs = [
        _split(reader, writer)
        for reader in prefill
        for writer in decode
        if reader.view.record.transport == writer.view.record.transport
    ]
    return pairs if pairs and settings.placement == "split" else pairs + local


@dataclass(frozen=True, slots=True)
class _Reader:
    """A prefill worker's terms."""

    view: WorkerView
    queue_s: float
    prefill_s: float
    cached_tokens: int
    prefill_tokens: int


@dataclass(frozen=True, slots=True)
class _Writer:
    """A decode worker's terms."""

    view: WorkerView
    queue_s: float
    step_s: float
    stream_harm_s: float
    fixed_s: float
    bytes_s: float
    prefill_s: float
    cached_tokens: int
    prefill_tokens: int


def _reader(size: RequestSize, view: WorkerView, speeds: Mapping[WorkerId, Coefficients]) -> _Reader:
    speed = speeds[view.record.worker_id]
    cached = cached_tokens(size, view)
    return _Reader(
        view, prefill_queue_s(view, speed), prefill_s(size, view, speed), cached, size.prompt_tokens - cached
    )


def _writer(
    size: RequestSize, view: WorkerView, speeds: Mapping[WorkerId, Coefficients], settings: RouterSettings
) -> _Writer:
    speed = speeds[view.record.worker_id]
    fixed_s, bytes_s = transfer_s(size, view, speed)
    cached = cached_tokens(size, view)
    return _Writer(
        view,
        decode_queue_s(size, view, speed, settings),
        speed.decode_step_s,
        settings.harm_weight * stream_harm_s(view, speed, settings),
        fixed_s,
        bytes_s,
        prefill_s(size, view, speed),
        cached,
        size.prompt_tokens - cached,
    )


def _split(reader: _Reader, writer: _Writer) -> _Scored:
    exposed_s = writer.fixed_s + max(0.0, writer.bytes_s - reader.prefill_s)
    total_s = reader.queue_s + reader.prefill_s + exposed_s + writer.queue_s + writer.step_s + writer.stream_harm_s

    def build() -> Candidate:
        return Candidate(
            placement=Split(prefill=reader.view.record.worker_id, decode=writer.view.record.worker_id),
            total_s=total_s,
            terms=(
                ("prefill queue", reader.queue_s),
                ("prefill", reader.prefill_s),
                ("transfer", exposed_s),
                ("decode queue", writer.queue_s),
                ("first step", writer.step_s),
                ("harm", writer.stream_harm_s),
            ),
            prefill_cached_tokens=reader.cached_tokens,
            decode_cached_tokens=writer.cached_tokens,
            prefill_tokens=reader.prefill_tokens,
        )

    return total_s, build


def _local(size: RequestSize, writer: _Writer, settings: RouterSettings) -> _Scored:
    first_step_s = writer.step_s if size.max_tokens > 1 else 0.0
    harm_s = writer.stream_harm_s + settings.harm_weight * prefill_harm_s(writer.view, writer.prefill_s, settings)
    total_s = writer.queue_s + writer.prefill_s + first_step_s + harm_s

    def build() -> Candidate:
        return Candidate(
            placement=Local(worker=writer.view.record.worker_id),
            total_s=total_s,
            terms=(
                ("decode queue", writer.queue_s),
                ("prefill", writer.prefill_s),
                ("first step", first_step_s),
                ("harm", harm_s),
            ),
            prefill_cached_tokens=0,
            decode_cached_tokens=writer.cached_tokens,
            prefill_tokens=writer.prefill_tokens,
        )

    return total_s, build
