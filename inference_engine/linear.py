"""Matrix products of many rows, as torch does them best on this machine."""

import torch
from torch.nn import functional

from inference_engine.attention_kernel import Floats
from inference_engine.weights import Projection

_SLICE_NUMBERS = 1 << 20
"""Weights that are widened at a time: their float32 copies stay in the caches until they are multiplied."""


def linear(values: torch.Tensor, projection: Projection) -> torch.Tensor:
    """Return ``values`` ``[rows, inputs]`` through the projection, ``[rows, outputs]``, of the same type."""
    return functional.linear(values, projection.weight, projection.bias)


class Products:
    """Products of float32 rows with weights of either type. Keeps the memory that it widens weights in."""

    def __init__(self) -> None:
        self._wide = torch.empty(0)

    def multiply(self, values: Floats, weight: torch.Tensor, sums: Floats) -> None:
        """Set ``sums`` ``[rows or more, outputs or more]`` to ``values`` ``[rows, inputs or more]`` · ``weight``ᵀ.

        ``values`` are numbers of the weight's type. Sums are kept in float32, and rounded to the weight's type at once
        where that is bfloat16 and the CPU multiplies it.
        """
        outputs, inputs = weight.shape
        rows = torch.from_numpy(values)[:, :inputs]
        target = torch.from_numpy(sums)[: len(values), :outputs]
        if weight.dtype == torch.float32:
            torch.mm(rows, weight.T, out=target)
        elif NARROW_IS_SLOW:
            height = max(1, _SLICE_NUMBERS // inputs)
            if len(self._wide) < height * inputs:
                self._wide = torch.empty(height * inputs)
            for first in range(0, outputs, height):
                part = weight[first : first + height]
                wide = self._wide[: part.numel()].view(part.shape)
                wide.copy_(part)
                torch.mm(rows, wide.T, out=target[:, first : first + height])
        else:
            target.copy_(functional.linear(rows.to(weight.dtype), weight))


def _narrow_is_slow() -> bool:
    found = torch.cpu.get_capabilities()
    return not (found.get("avx512_bf16") or found.get("amx_bf16") or found.get("bf16"))


NARROW_IS_SLOW = _narrow_is_slow()
"""A CPU without bfloat16 instructions multiplies several times faster in float32, the widening included."""
