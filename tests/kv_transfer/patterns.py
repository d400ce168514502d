"""Bytes that tell which message they belong to."""

import numpy as np
from numpy.typing import NDArray


def pattern(tag: int, size: int) -> NDArray[np.uint8]:
    """Return ``size`` bytes that depend on ``tag``."""
    return ((np.arange(size) * 31 + tag) % 251).astype(np.uint8)


def pattern_rows(tag: int, size: int, count: int) -> NDArray[np.uint8]:
    """Return a matrix of ``count`` rows of ``size`` bytes: row n is ``pattern(tag + n, size)``."""
    return np.stack([pattern(tag + number, size) for number in range(count)])
