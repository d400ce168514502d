"""Copies scattered rows on a GPU in one launch, from and to wherever the GPU sees memory, in Triton.

Only `device_memory` imports this file. Triton's interpreter runs it on the CPU where ``TRITON_INTERPRET=1`` is in the
environment before triton is imported.
"""

import triton
import triton.language as tl
from triton.language import constexpr

# Constants are in capitals, as is the custom in Triton.
# ruff: noqa: ANN001, ANN201, N803


@triton.jit
def copy_rows(
    anchor,  # int64 or int8: memory that everything is addressed from, since only addresses that Triton knows as such
    # are read 16 bytes at a time
    pieces,  # [rows, 2] int64: where a row is read and written, in units from the anchor
    length,  # of a row, in units
    WIDE: constexpr,  # whether all places and the length are multiples of 16 bytes, and a unit is 8; else it is 1
    WIDTH: constexpr,  # units that one program copies
):
    """Grid: rows, parts of a row."""
    row = tl.program_id(0)
    there, here = tl.load(pieces + 2 * row), tl.load(pieces + 2 * row + 1)
    if WIDE:
        there, here = tl.multiple_of(there, 2), tl.multiple_of(here, 2)
    place = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    within = place < length
    tl.store(anchor + here + place, tl.load(anchor + there + place, mask=within), mask=within)
