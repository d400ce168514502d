"""Chooses where a request is served: filter, score every candidate in seconds, take the least. Pure.

A candidate is a pair (prefill worker, decode worker) or one decode worker that does both:

    split = queue(P) + fetch(P) + prefill(P) + [transfer(P, D) - overlap] + queue(D) + first step(D) + harm(D)
    local = queue(D) + fetch(D) + prefill(D) + first step(D) + harm(D)

Blocks move while the prefill is running, so only what is left of the transfer afterwards counts, and the part that
has nothing to do with bytes. Whoever reads the prompt may first fetch what another worker's cache holds of it, where
that is faster than computing it (`router.loans`); prefill is the rest. Harm is what the request takes from the streams
that run on D: a step that grows, and for a local prefill the time in which none of them gets a token. Except for the
transfer, which goes over the pair's own link beside the prefill, the terms of a pair are its workers' own: they are
computed once a worker, and a pair costs a look-up and a few additions.
"""

import heapq
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from math import inf

from cluster_core.identity import Incarnation, Role, WorkerId
from cluster_core.placement import Local, Placement, Split
from router.cost_model import (
    Coefficients,
    RequestSize,
    WorkerView,
    coefficients_of,
    decode_queue_s,
    handover_speed,
    missing_bytes,
    prefill_harm_s,
    prefill_queue_s,
    stream_harm_s,
)
from router.loans import Loan, Reading, reading_of
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
    loan: Loan | None = None
    """What it would fetch before."""

    @property
    def own_s(self) -> float:
        """What the request itself waits for its next token: without what it takes from others."""
        return self.total_s - sum(seconds for name, seconds in self.terms if name == "harm")


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
    left_s: float = inf,
) -> Choice | None:
    """Return the placement with the least predicted time, or None when no decode worker can take the request.

    ``views`` are workers that are alive, compatible and not draining. Those ``excluded`` failed this request before:
    prefill workers among them do not come into question, since a decode worker can read the prompt too, and decode
    workers only when there is no other. What would not give its next token within ``left_s`` seconds comes into
    question only where nothing would. Of candidates that tie, those move the fewest bytes whose decode worker has most
    of the prompt; of n of them, the one at ``pick(n)`` is taken.
    """
    fitting = [view for view in views if _fits(size, view)]
    trusted = [view for view in fitting if view.record.incarnation not in excluded]
    candidates = _scored(size, trusted, settings)
    if not candidates:
        trusted_readers = [view for view in trusted if view.record.role is Role.PREFILL]
        writers = [view for view in fitting if view.record.role is Role.DECODE]
        candidates = _scored(size, [*trusted_readers, *writers], settings)
    if not candidates:
        return None
    if min(total_s for total_s, _ in candidates) > left_s:
        candidates = [scored for scored in candidates if scored[1]().own_s <= left_s] or candidates
    best = heapq.nsmallest(KEPT_CANDIDATES, candidates, key=lambda scored: scored[0])
    limit = best[0][0] * (1 + TIE_EPSILON)
    kept = [build() for _, build in best]
    tied = [candidate for candidate in kept if candidate.total_s <= limit]
    most = max(candidate.decode_cached_tokens for candidate in tied)
    tied = [candidate for candidate in tied if candidate.decode_cached_tokens == most]
    chosen = tied[pick(len(tied)) if len(tied) > 1 else 0]
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
    reading: Reading


@dataclass(frozen=True, slots=True)
class _Writer:
    """A decode worker's terms."""

    view: WorkerView
    queue_s: float
    step_s: float
    stream_harm_s: float
    speed: Coefficients
    missing_bytes: int
    reading: Reading


def _reader(size: RequestSize, view: WorkerView, speeds: Mapping[WorkerId, Coefficients]) -> _Reader:
    speed = speeds[view.record.worker_id]
    return _Reader(view, prefill_queue_s(view, speed), reading_of(size, view, speed))


def _writer(
    size: RequestSize, view: WorkerView, speeds: Mapping[WorkerId, Coefficients], settings: RouterSettings
) -> _Writer:
    speed = speeds[view.record.worker_id]
    return _Writer(
        view,
        decode_queue_s(size, view, speed, settings),
        speed.decode_step_s,
        settings.harm_weight * stream_harm_s(view, speed, settings),
        speed,
        missing_bytes(size, view),
        reading_of(size, view, speed),
    )


def _split(reader: _Reader, writer: _Writer) -> _Scored:
    reading = reader.reading
    fixed_s, bytes_per_s = handover_speed(writer.view, reader.view.record.worker_id, writer.speed)
    exposed_s = fixed_s + max(0.0, writer.missing_bytes / bytes_per_s - reading.prefill_s)
    read_s = reader.queue_s + reading.fetch_s + reading.prefill_s
    total_s = read_s + exposed_s + writer.queue_s + writer.step_s + writer.stream_harm_s

    def build() -> Candidate:
        return Candidate(
            placement=Split(prefill=reader.view.record.worker_id, decode=writer.view.record.worker_id),
            total_s=total_s,
            terms=(
                ("prefill queue", reader.queue_s),
                *_fetch_term(reading),
                ("prefill", reading.prefill_s),
                ("transfer", exposed_s),
                ("decode queue", writer.queue_s),
                ("first step", writer.step_s),
                ("harm", writer.stream_harm_s),
            ),
            prefill_cached_tokens=reading.cached_tokens,
            decode_cached_tokens=writer.reading.cached_tokens,
            prefill_tokens=reading.prefill_tokens,
            loan=reading.loan,
        )

    return total_s, build


def _local(size: RequestSize, writer: _Writer, settings: RouterSettings) -> _Scored:
    reading = writer.reading
    first_step_s = writer.step_s if size.max_tokens > 1 else 0.0
    harm_s = writer.stream_harm_s + settings.harm_weight * prefill_harm_s(writer.view, reading.prefill_s, settings)
    total_s = writer.queue_s + reading.fetch_s + reading.prefill_s + first_step_s + harm_s

    def build() -> Candidate:
        return Candidate(
            placement=Local(worker=writer.view.record.worker_id),
            total_s=total_s,
            terms=(
                ("decode queue", writer.queue_s),
                *_fetch_term(reading),
                ("prefill", reading.prefill_s),
                ("first step", first_step_s),
                ("harm", harm_s),
            ),
            prefill_cached_tokens=0,
            decode_cached_tokens=reading.cached_tokens,
            prefill_tokens=reading.prefill_tokens,
            loan=reading.loan,
        )

    return total_s, build


def _fetch_term(reading: Reading) -> tuple[tuple[str, float], ...]:
    return () if reading.loan is None else (("fetch", reading.fetch_s),)
