"""From logits to tokens.

A draw depends on the logits, the request's sampling, the tokens before it and its position, and on nothing else: not on
the batch, the worker or the attempt. It goes, row by row and for all rows of a step together, through

1. the edits that the request wants (`inference_engine.sampling_edits`);
2. the greedy shortcut: at temperature 0 the greatest logit is drawn, of equal ones the first;
3. temperature, and the cuts min-p, top-k, top-p and typical (`inference_engine.sampling_cuts`);
4. the draw: the cumulative distribution, in the order of token ids, is walked up to a uniform number that SHA-256
   makes of seed and position, the same on every machine.

A forced token (`inference_engine.thinking`) goes through none of it. ``docs/sampling.md`` says it at length.
"""

import hashlib
import math
from collections.abc import Sequence

import torch

from inference_engine.row_arrays import on_device, row_maxima, row_parts
from inference_engine.sampling_cuts import cut
from inference_engine.sampling_edits import Draw, GrammarMasker, edit_logits
from inference_engine.step_faults import Fault, raise_faults

_WORD = (1 << 64) - 1
_COLDEST = 1e-6
"""Lower temperatures draw the same token; the lowest would be 0 in float32."""


def uniform(seed: int, position: int) -> float:
    """Return the number in [0, 1) of a seed (taken modulo 2^64) and a position."""
    text = b"baton-draw-1" + (seed & _WORD).to_bytes(8, "little") + position.to_bytes(8, "little")
    return (int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 11) / (1 << 53)


def draw_tokens(logits: torch.Tensor, draws: Sequence[Draw], masker: GrammarMasker | None = None) -> list[int]:
    """Draw one token for each row of ``logits`` ``[draws, vocabulary]``, float32.

    Raises `BrokenLogits` or `NothingAllowed`, in this order.
    """
    drawn = try_draw(logits, draws, masker)
    raise_faults(drawn)
    return [token for token in drawn if isinstance(token, int)]


def try_draw(logits: torch.Tensor, draws: Sequence[Draw], masker: GrammarMasker | None = None) -> list[int | Fault]:
    """Draw for each row of ``logits``, or tell why that cannot be done. Waits for the device once, at its end."""
    forced = [draw.forced for draw in draws]
    to_edit = [row for row, draw in enumerate(draws) if not draw.sampling.plain and forced[row] is None]
    as_they_are = [draw if draw.sampling.plain else None for draw in draws] if to_edit else draws
    raw, tokens = _choose(logits, as_they_are)
    highest = raw
    if to_edit:
        rows = on_device(to_edit, torch.int64, logits.device)
        wanted = logits[rows]
        wishes = [draws[row] for row in to_edit]
        edit_logits(wanted, wishes, masker)
        highest_left, tokens_left = _choose(wanted, wishes)
        highest, tokens = raw.index_copy(0, rows, highest_left), tokens.index_copy(0, rows, tokens_left)
    told = [raw, highest, tokens] if to_edit else [raw, tokens]
    numbers = torch.stack([row.double() for row in told]).tolist()  # token ids are exact in it
    drawn: list[int | Fault] = []
    for must, model_best, best, token in zip(forced, numbers[0], numbers[-2], numbers[-1], strict=True):
        if not math.isfinite(model_best):
            drawn.append(Fault.BROKEN)
        elif must is not None:
            drawn.append(must)
        else:
            drawn.append(Fault.NOTHING_ALLOWED if best == -math.inf else int(token))
    return drawn


def _choose(logits: torch.Tensor, draws: Sequence[Draw | None]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each row's greatest logit, and a token for each row for which a draw is given, or anything else.

    A row with a NaN has the greatest NaN.
    """
    highest, tokens = row_maxima(logits)
    sampled = [(row, draw) for row, draw in enumerate(draws) if draw is not None and draw.sampling.temperature > 0]
    for part in row_parts(len(sampled), logits):
        some = [draw for _, draw in sampled[part]]
        if len(sampled) == len(draws):
            tokens[part] = _sample(logits[part], highest[part], some)
        else:
            rows = on_device([row for row, _ in sampled[part]], torch.int64, logits.device)
            tokens[rows] = _sample(logits[rows], highest[rows], some)
    return highest, tokens


def _sample(logits: torch.Tensor, highest: torch.Tensor, draws: Sequence[Draw]) -> torch.Tensor:
    """Return a token for each row, or anything where its logits are not numbers."""
    device, wishes = logits.device, [draw.sampling for draw in draws]
    temperatures = on_device([max(wish.temperature, _COLDEST) for wish in wishes], torch.float32, device)
    cooled = (logits - highest[:, None]).div_(temperatures[:, None])
    probabilities = cut(torch.softmax(cooled, dim=-1), wishes)
    cumulative = probabilities.double().cumsum(dim=-1)
    total = cumulative[:, -1:].contiguous()
    numbers = [uniform(wish.seed, draw.position) for wish, draw in zip(wishes, draws, strict=True)]
    targets = on_device(numbers, torch.float64, device)[:, None] * total
    chosen = torch.searchsorted(cumulative, targets, right=True)
    last = torch.searchsorted(cumulative, total)  # the last token with any probability, should rounding pass it
    return torch.minimum(chosen, last)[:, 0]
