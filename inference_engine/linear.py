"""Matrix products, as this machine does them best."""

import torch
from torch.nn import functional

from inference_engine.weights import Projection

_ROWS_WORTH_WIDENING = 64


def linear(values: torch.Tensor, projection: Projection) -> torch.Tensor:
    """Return ``values`` ``[rows, inputs]`` through the projection, ``[rows, outputs]``, of the same type.

    A CPU without bfloat16 instructions multiplies many rows three times faster in float32, the cost of widening the
    weights included; sums are kept in float32 either way and rounded once.
    """
    weight, bias = projection.weight, projection.bias
    if (
        _NARROW_IS_SLOW
        and values.dtype == torch.bfloat16
        and len(values) >= _ROWS_WORTH_WIDENING
        and not values.is_cuda
    ):
        wide_bias = None if bias is None else bias.float()
        return functional.linear(values.float(), weight.float(), wide_bias).to(values.dtype)
    return functional.linear(values, weight, bias)


def _narrow_is_slow() -> bool:
    found = torch.cpu.get_capabilities()
    return not (found.get("avx512_bf16") or found.get("amx_bf16") or found.get("bf16"))


_NARROW_IS_SLOW = _narrow_is_slow()
