"""What a draw needs beside torch's own operations: host numbers on the device, and maxima and orders of rows.

Rows that lie in the host's memory are searched and sorted by numpy, which takes a tenth of torch's time for that. On a
device nothing here waits for it.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

Int64Array = npt.NDArray[np.int64]

_CACHED_NUMBERS = 1 << 18
"""A host works on so many at a time, so that what it makes of them stays in its cache."""


def on_device(
    values: Sequence[float] | npt.NDArray[np.generic], dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """Return the numbers as a tensor there."""
    tensor = torch.as_tensor(values, dtype=dtype)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def on_host(values: torch.Tensor) -> bool:
    """Tell whether numpy can be used."""
    return not values.is_cuda


def row_parts(rows: int, values: torch.Tensor) -> list[slice]:
    """Return the parts in which rows as long as those of ``values`` are best worked on."""
    size = max(1, _CACHED_NUMBERS // values.shape[1]) if on_host(values) else max(1, rows)
    return [slice(first, first + size) for first in range(0, rows, size)]


def row_maxima(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the greatest value of each row and its column, of equal ones the first; NaN is greater than any."""
    if not on_host(values):
        greatest, columns = values.max(dim=-1)
        return greatest, columns
    columns = torch.from_numpy(values.numpy().argmax(axis=-1))
    return values.gather(1, columns[:, None])[:, 0], columns


def greatest_of_rows(values: torch.Tensor, count: int) -> torch.Tensor:
    """Return the ``count`` greatest values of each row, the greatest first."""
    columns = values.shape[1]
    if not on_host(values):
        return values.topk(count, dim=-1).values if count < columns else values.sort(dim=-1, descending=True).values
    array = values.numpy()
    if count < columns:
        array = np.partition(array, columns - count, axis=-1)[:, columns - count :]
    return torch.from_numpy(np.sort(array, axis=-1)[:, ::-1].copy())


def row_sums(values: torch.Tensor) -> torch.Tensor:
    """Return each row's sum, in float64, the same in any company."""
    wide = values.double()
    return torch.from_numpy(wide.numpy().sum(axis=-1)) if on_host(wide) else wide.sum(dim=-1)


def leading(values: torch.Tensor, least: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Tell which are the ``counts`` ``[rows]`` greatest of each row of ``values``; of equal ones the first are.

    ``least`` ``[rows, 1]`` are the smallest of them.
    """
    chosen = values >= least
    if on_host(values) and torch.equal(chosen.sum(dim=-1), counts):
        return chosen
    level = values == least  # more are equal to the last one than there is room for
    above = chosen & ~level
    missing = counts - above.sum(dim=-1)
    return above | (level & (level.cumsum(dim=-1) <= missing[:, None]))
