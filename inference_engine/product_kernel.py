"""Rows times weights that are read once, as they lie in memory: bfloat16 is widened in registers.

Every dot product is summed in the same order however many rows and outputs are computed together, so a row's result
does not depend on its company, to the last bit.
"""

import numba
import numpy as np

from inference_engine.attention_kernel import Floats, Numbers
from inference_engine.code_builder import GROUP, TILE_COLUMNS, TILE_ROWS
from inference_engine.thread_team import Seat, take
from inference_engine.vector_code import dots
from inference_engine.vector_rows import address_of, fetch_early, fold

FOLDED, PLAIN = True, False
"""How `arrange` leaves rows: for `multiply`, or as they are, for torch."""
_CHUNK_OUTPUTS = 32
"""Outputs that a thread takes at a time."""
_BLOCK_ROWS = 96
"""Rows that stay in the second cache while a chunk's weights pass."""

_PAGE_BYTES = 4096  # the processor looks ahead by itself within a page only


def padded_to(length: int, multiple: int) -> int:
    """Return the length, rounded up."""
    return -(-length // multiple) * multiple


@numba.njit(cache=True, nogil=True, error_model="numpy")
def multiply(seat: Seat, phase: int, values: Floats, rows: int, weight: Numbers, sums: Floats) -> None:  # compiled
    """Set ``sums`` ``[rows, outputs]`` to ``values`` · ``weight``ᵀ, beside other threads.

    ``values`` ``[rows, inputs]`` come from `arrange`; ``weight`` is ``[outputs, inputs]``, and inputs are whole groups.
    Rows of ``sums`` have room for whole fours.
    """
    outputs, groups = weight.shape[0], weight.shape[1] // GROUP
    left_stride, right_stride, sum_stride = values.strides[0], weight.strides[0], sums.strides[0]
    left, right, target = address_of(values), address_of(weight), address_of(sums)
    first = take(seat, phase) * _CHUNK_OUTPUTS
    while first < outputs:
        end = min(outputs, first + _CHUNK_OUTPUTS)
        fours = end - (end - first) % TILE_COLUMNS
        for block in range(0, rows, _BLOCK_ROWS):
            count = min(_BLOCK_ROWS, rows - block)
            tiles = -(-count // TILE_ROWS)
            height = -(-count // tiles)
            early = TILE_COLUMNS * right_stride // tiles if tiles > 1 and right_stride < _PAGE_BYTES else 0
            for column in range(first, end, TILE_COLUMNS):
                place = right + column * right_stride
                ahead = place + TILE_COLUMNS * right_stride
                for row in range(block, block + count, height):
                    if early > 0:
                        fetch_early(ahead, early)
                        ahead += early
                    few = min(height, block + count - row)
                    source, output = left + row * left_stride, target + row * sum_stride + column * 4
                    if column < fours:
                        dots(few, 4, weight, source, left_stride, place, right_stride, groups, output, sum_stride)
                    else:
                        for one in range(end - fours):
                            dots(
                                few, 1, weight, source, left_stride, place + one * right_stride, right_stride,
                                groups, output + one * 4, sum_stride,
                            )  # fmt: skip
        first = take(seat, phase) * _CHUNK_OUTPUTS


@numba.njit(cache=True, nogil=True, error_model="numpy")
def arrange(line: Floats, length: int, weight: Numbers, folded: bool, target: Floats) -> None:
    """Copy ``line`` to ``target`` as `multiply` takes it; what the target has beyond ``length`` becomes 0."""
    size = target.shape[0]
    for index in range(length, size):
        line[index] = np.float32(0.0)
    if folded and weight.itemsize == 2:
        fold(address_of(line), address_of(target), size // GROUP)
    else:
        for index in range(size):
            target[index] = line[index]
