"""From logits to tokens.

A draw depends on the logits, the request's sampling, its seed and the token's position, and on nothing else: not on
the batch, the worker or the attempt. The uniform number comes from SHA-256 of seed and position, so it is the same on
every machine; probabilities are cut as temperature, then top-k, then top-p; the token is found by walking the
cumulative distribution in the order of token ids.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from cluster_core.errors import ModelFolderError
from cluster_core.sampling import Sampling

_WORD = (1 << 64) - 1
_COLDEST = 1e-6
"""Lower temperatures draw the same token; the lowest would be 0 in float32."""


class BrokenLogits(ModelFolderError):
    """The model's output is not finite for these rows, or slices; the others are sound but were not drawn."""

    def __init__(self, places: tuple[int, ...]) -> None:
        super().__init__("the model's logits are not finite numbers: its weights, or the blocks it read, are broken")
        self.places = places


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """One token to be drawn."""

    sampling: Sampling
    position: int
    """Of the token to be drawn: prompt tokens count, the first is 0."""


def uniform(seed: int, position: int) -> float:
    """Return the number in [0, 1) of a seed (taken modulo 2^64) and a position."""
    text = b"baton-draw-1" + (seed & _WORD).to_bytes(8, "little") + position.to_bytes(8, "little")
    return (int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 11) / (1 << 53)


def draw_tokens(logits: torch.Tensor, draws: Sequence[Draw]) -> list[int]:
    """Draw one token for each row of ``logits`` ``[draws, vocabulary]``, float32. Raises `BrokenLogits`."""
    highest, best = logits.max(dim=-1)  # a row with a NaN has the maximum NaN
    finite = torch.isfinite(highest).tolist()
    if not all(finite):
        raise BrokenLogits(tuple(index for index, sound in enumerate(finite) if not sound))
    tokens: list[int] = best.tolist()
    sampled = [index for index, draw in enumerate(draws) if draw.sampling.temperature > 0]
    if sampled:
        rows = logits if len(sampled) == len(draws) else logits[sampled]
        drawn = _sample(rows, highest[sampled], [draws[index] for index in sampled])
        for index, token in zip(sampled, drawn, strict=True):
            tokens[index] = token
    return tokens


def _sample(logits: torch.Tensor, highest: torch.Tensor, draws: list[Draw]) -> list[int]:
    device = logits.device
    wished = [max(draw.sampling.temperature, _COLDEST) for draw in draws]
    temperatures = torch.tensor(wished, device=device)
    probabilities = torch.softmax((logits - highest[:, None]) / temperatures[:, None], dim=-1)
    if any(draw.sampling.top_k > 0 or draw.sampling.top_p < 1 for draw in draws):
        probabilities = _cut(probabilities, draws)
    cumulative = probabilities.double().cumsum(dim=-1)
    total = cumulative[:, -1:].contiguous()
    numbers = [uniform(draw.sampling.seed, draw.position) for draw in draws]
    targets = torch.tensor(numbers, dtype=torch.float64, device=device)[:, None] * total
    chosen = torch.searchsorted(cumulative, targets, right=True)
    last = torch.searchsorted(cumulative, total)  # the last token with any probability, should rounding pass it
    drawn: list[int] = torch.minimum(chosen, last)[:, 0].tolist()
    return drawn


def _cut(probabilities: torch.Tensor, draws: list[Draw]) -> torch.Tensor:
    """Zero what top-k and top-p exclude; of equally probable tokens the one with the lower id stays.

    Top-p keeps the fewest tokens whose share of what top-k left is at least p; the most probable one stays always.
    """
    device, vocabulary = probabilities.device, probabilities.shape[1]
    top_k = torch.tensor([min(draw.sampling.top_k or vocabulary, vocabulary) for draw in draws], device=device)
    top_p = torch.tensor([draw.sampling.top_p for draw in draws], dtype=torch.float64, device=device)
    ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
    ranks = torch.arange(vocabulary, device=device)
    ordered = ordered * (ranks < top_k[:, None])
    cumulative = ordered.double().cumsum(dim=-1)
    before = cumulative - ordered
    kept = before < top_p[:, None] * cumulative[:, -1:]
    kept[:, 0] = True
    whole = (top_p >= 1)[:, None]
    return torch.zeros_like(probabilities).scatter(1, order, ordered * (kept | whole))
