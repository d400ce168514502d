"""Whether the worker that reads a prompt should fetch its beginning from another worker's cache. Pure.

Fetching costs what the link costs, and spares the computing of what the other worker has and the reader lacks:

    fetch(P, L) = fixed(P, L) + bytes(L - P) / rate(P, L) - the time in which P computes what came before
    fetched if  fetch(P, L) < prefill(P, blocks of L - P)

Both are linear in the number of blocks, so all that the lender has is fetched or nothing. Of the many workers that may
hold a well-known beginning, only those with the longest are asked about: a reader costs as many look-ups of a link.
"""

import heapq
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from cluster_core.identity import Incarnation, WorkerId
from cluster_core.layout import first_block_in_window
from router.cost_model import (
    Coefficients,
    Lender,
    RequestSize,
    WorkerView,
    cached_tokens,
    link_speed,
    prefill_queue_s,
)

MOST_LENDERS = 4
"""Holders that each reader compares."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loan:
    """A fetch that pays."""

    lender: WorkerId
    blocks: int
    """Leading blocks of the prompt that the lender has."""
    fetch_s: float
    """What is left of the fetch when the reader could have begun to compute."""
    spared_s: float
    """What computing the same tokens would take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How a worker would come by a prompt's KV."""

    cached_tokens: int
    """Found in its own cache."""
    prefill_tokens: int
    """To be computed."""
    prefill_s: float
    loan: Loan | None

    @property
    def fetch_s(self) -> float:
        """Seconds before the computing can begin, for the fetch."""
        return self.loan.fetch_s if self.loan is not None else 0.0


def best_lenders(
    views: Iterable[WorkerView], stored_blocks: Mapping[WorkerId, int], excluded: Collection[Incarnation]
) -> list[Lender]:
    """Return those that hold the most, of equals those that write for the fewest; not who failed the request.

    ``views`` are workers that are alive and compatible; one that drains may still lend. ``stored_blocks`` says how many
    leading blocks of the prompt each has told of: what it is only expected to hold soon, nobody can fetch yet.
    """
    holders = [
        (view, blocks)
        for view in views
        if (blocks := stored_blocks.get(view.record.worker_id, 0)) and view.record.incarnation not in excluded
    ]
    return heapq.nlargest(MOST_LENDERS, holders, key=lambda lender: (lender[1], -lender[0].streams))


def reading_of(size: RequestSize, view: WorkerView, speed: Coefficients) -> Reading:
    """Return the faster way: to compute what the own cache lacks, or to fetch first."""
    own = cached_tokens(size, view)
    loan = _best_loan(size, view, speed) if size.lenders else None
    had = own if loan is None else loan.blocks * view.record.layout.block_size_tokens
    to_compute = size.prompt_tokens - had
    return Reading(
        cached_tokens=own,
        prefill_tokens=to_compute,
        prefill_s=to_compute * speed.prefill_s_per_token,
        loan=loan,
    )


def _best_loan(size: RequestSize, view: WorkerView, speed: Coefficients) -> Loan | None:
    """Return the loan that spares the most time; None where computing is faster. The last token is always computed."""
    name, layout = view.record.worker_id, view.record.layout
    block_tokens, block_bytes = layout.block_size_tokens, layout.block_bytes
    own_blocks, most = size.cached_blocks.get(name, 0), (size.prompt_tokens - 1) // block_tokens
    block_s, overlap_s = block_tokens * speed.prefill_s_per_token, prefill_queue_s(view, speed)
    best: Loan | None = None
    gained_s = 0.0
    for other, held in size.lenders:
        lender, blocks = other.record.worker_id, min(held, most)
        if blocks <= own_blocks or lender == name or other.record.transport != view.record.transport:
            continue
        first_read = first_block_in_window(blocks * block_tokens, layout.window_tokens, block_tokens)
        fixed_s, bytes_per_s = link_speed(view, lender, speed)
        moved_s = (blocks - max(own_blocks, first_read)) * block_bytes / bytes_per_s
        fetch_s, spared_s = max(0.0, fixed_s + moved_s - overlap_s), (blocks - own_blocks) * block_s
        if spared_s - fetch_s > gained_s:
            gained_s = spared_s - fetch_s
            best = Loan(lender=lender, blocks=blocks, fetch_s=fetch_s, spared_s=spared_s)
    return best
