"""Logprobs of tokens that were drawn or read, and of what else could have stood there.

They are the model's own, of the logits as they came. Ranks and alternatives go by the logits, of equal ones the lower
token id first, so a token of rank r is the r-th of its alternatives.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from cluster_core.logprobs import TokenLogprobs
from inference_engine.row_arrays import greatest_of_rows, leading, on_device, row_parts


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """A token whose logprob is to be told."""

    row: int
    """Of the logits that it was, or could have been, drawn from."""
    token_id: int
    alternatives: int


def token_logprobs(logits: torch.Tensor, wishes: Sequence[Wish]) -> list[TokenLogprobs]:
    """Return the logprobs that are wished for, from ``logits`` ``[rows, vocabulary]``, float32.

    Those of a row that is not a number are not numbers either.
    """
    return [told for part in row_parts(len(wishes), logits) for told in _told(logits, wishes[part])]


def _told(logits: torch.Tensor, wishes: Sequence[Wish]) -> list[TokenLogprobs]:
    device, vocabulary = logits.device, logits.shape[1]
    rows = logits[on_device([wish.row for wish in wishes], torch.int64, device)]
    tokens = on_device([wish.token_id for wish in wishes], torch.int64, device)[:, None]
    own = rows.gather(1, tokens)
    ids = torch.arange(vocabulary, device=device)
    ranks = 1 + (rows > own).sum(dim=-1) + ((rows == own) & (ids < tokens)).sum(dim=-1)
    whole = torch.logsumexp(rows, dim=-1, keepdim=True)
    most = min(max(wish.alternatives for wish in wishes), vocabulary)
    sound = torch.isfinite(whole)
    best = _best(rows if bool(sound.all()) else rows.nan_to_num(), most)
    whole = whole.where(sound, torch.nan)
    columns = torch.cat(
        (
            ranks[:, None].double(),
            (own - whole).double(),
            (rows.gather(1, best) - whole).double(),
            best.double(),
        ),
        dim=1,
    )
    told = []
    for wish, (rank, logprob, *top) in zip(wishes, columns.tolist(), strict=True):
        pairs = zip(top[most : most + wish.alternatives], top[: wish.alternatives], strict=False)
        told.append(
            TokenLogprobs(
                token_id=wish.token_id,
                logprob=logprob,
                rank=int(rank),
                top=tuple((int(token), value) for token, value in pairs),
            )
        )
    return told


def _best(rows: torch.Tensor, count: int) -> torch.Tensor:
    """Return the ids of each row's ``count`` greatest values, the greatest first, of equal ones the lower id first."""
    if count == 0:
        return torch.zeros((len(rows), 0), dtype=torch.int64, device=rows.device)
    least = greatest_of_rows(rows, count)[:, -1:]
    chosen = leading(rows, least, torch.full((len(rows),), count, device=rows.device))
    ids = chosen.nonzero()[:, 1].view(len(rows), count)
    order = rows.gather(1, ids).argsort(dim=-1, descending=True, stable=True)
    return ids.gather(1, order)
