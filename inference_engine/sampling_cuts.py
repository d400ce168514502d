"""The cuts of a distribution: min-p, top-k, top-p and typical, in this order.

Each works on what the one before left, with the mass of that as its whole, and leaves at least the most probable token
(typical: the most typical one). Of equal tokens those with the lower ids stay. What stays keeps its number: the rows
need not sum to 1, before or after.
"""

from collections.abc import Sequence
from typing import Protocol

import torch

from cluster_core.sampling import Sampling
from inference_engine.row_arrays import greatest_of_rows, leading, on_device, on_host, row_sums

_HEAD = 512
"""Most nuclei are smaller, and to find so many of the greatest is cheap beside sorting all."""


def cut(probabilities: torch.Tensor, wishes: Sequence[Sampling]) -> torch.Tensor:
    """Zero what the wishes exclude, row by row of ``probabilities`` ``[rows, vocabulary]``."""
    if any(wish.min_p > 0 for wish in wishes):
        probabilities = _cut_improbable(probabilities, wishes)
    vocabulary = probabilities.shape[1]
    rows = [row for row, wish in enumerate(wishes) if 0 < wish.top_k < vocabulary or wish.top_p < 1]
    if rows:
        probabilities = _replace(probabilities, rows, _cut_tail, wishes)
    rows = [row for row, wish in enumerate(wishes) if wish.typical_p < 1]
    if rows:
        probabilities = _replace(probabilities, rows, _cut_untypical, wishes)
    return probabilities


class _Cut(Protocol):
    def __call__(self, probabilities: torch.Tensor, wishes: Sequence[Sampling]) -> torch.Tensor: ...


def _replace(probabilities: torch.Tensor, rows: list[int], cut_rows: _Cut, wishes: Sequence[Sampling]) -> torch.Tensor:
    """Cut some rows and leave the others alone."""
    if len(rows) == len(wishes):
        return cut_rows(probabilities, wishes)
    index = on_device(rows, torch.int64, probabilities.device)
    return probabilities.index_copy(0, index, cut_rows(probabilities[index], [wishes[row] for row in rows]))


def _cut_improbable(probabilities: torch.Tensor, wishes: Sequence[Sampling]) -> torch.Tensor:
    """Min-p: what has less than this share of the most probable token's probability goes."""
    shares = on_device([wish.min_p for wish in wishes], torch.float32, probabilities.device)
    least = shares[:, None] * probabilities.amax(dim=-1, keepdim=True)
    return probabilities.where(probabilities >= least, 0)


def _cut_tail(probabilities: torch.Tensor, wishes: Sequence[Sampling]) -> torch.Tensor:
    """Top-k, then top-p, which keeps the fewest tokens whose share of what top-k left is at least p.

    A host looks at the greatest tokens first and sorts whole rows only where those do not settle it. What a row comes
    to does not depend on that.
    """
    device, vocabulary = probabilities.device, probabilities.shape[1]
    limits = [min(wish.top_k or vocabulary, vocabulary) for wish in wishes]
    top_k = on_device(limits, torch.int64, device)[:, None]
    top_p = on_device([wish.top_p for wish in wishes], torch.float64, device)[:, None]
    widest = max(limits)
    head = widest if widest <= _HEAD else _HEAD if on_host(probabilities) else vocabulary
    mass = row_sums(probabilities)[:, None] * (top_k == vocabulary) if widest > _HEAD else torch.zeros_like(top_p)
    least, counts = _tail(greatest_of_rows(probabilities, head), top_k, top_p, mass)
    if head < widest:
        places = [
            row
            for row, (limit, count) in enumerate(zip(limits, counts.tolist(), strict=True))
            if limit > head and (limit < vocabulary or count >= head)
        ]
        if places:
            late = torch.tensor(places)
            ordered = greatest_of_rows(probabilities[late], vocabulary)
            least[late], counts[late] = _tail(ordered, top_k[late], top_p[late], mass[late])
    return probabilities.where(leading(probabilities, least, counts), 0)


def _tail(
    ordered: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, mass: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the least probability ``[rows, 1]`` that stays in each row, and how many tokens do, as far as is known.

    ``ordered`` are the greatest of each row. ``mass`` is the row's sum where top-k cuts nothing of a long row, 0 else.
    """
    cumulative = ordered.double().cumsum(dim=-1)
    width = ordered.shape[1]
    left = cumulative.gather(1, top_k.clamp(max=width) - 1)
    left = torch.where(mass > 0, mass, left)
    kept = (cumulative - ordered < top_p * left).sum(dim=-1, keepdim=True)
    kept = torch.where(top_p < 1, kept.clamp(min=1), top_k).minimum(top_k)
    return ordered.gather(1, kept.clamp(max=width) - 1), kept[:, 0]


def _cut_untypical(probabilities: torch.Tensor, wishes: Sequence[Sampling]) -> torch.Tensor:
    """Locally typical sampling (Meister et al., 2023).

    The fewest tokens whose information is nearest to the distribution's entropy and whose share is at least p.
    """
    mass = on_device([wish.typical_p for wish in wishes], torch.float64, probabilities.device)
    total = probabilities.sum(dim=-1, keepdim=True)
    information = -(probabilities / total).log()  # infinite for what was cut
    entropy = torch.special.entr(probabilities / total).sum(dim=-1, keepdim=True)
    order = (information - entropy).abs().argsort(dim=-1, stable=True)
    ordered = probabilities.gather(1, order)
    cumulative = ordered.double().cumsum(dim=-1)
    before = cumulative - ordered
    kept = before < mass[:, None] * cumulative[:, -1:]
    kept[:, 0] = True
    return torch.zeros_like(probabilities).scatter(1, order, ordered * kept)
