"""The GPU's kernels, in Triton: flash attention (https://arxiv.org/abs/2205.14135) straight over the block-major pool.

One program computes one key head for one *tile*: some consecutive rows of one sequence, with all query heads of the
key head's group, so that every key and value is read once a tile. Keys pass in strips of ``STRIP``; for each query
a running maximum, a running sum and the weighted sum of values are kept in float32. Each token of a strip looks its own
block up, so a block may be of any size, and the pool may lie in memory in any order.

Where few sequences are long (decode), a tile's keys are *split*: each program takes some of the strips and leaves a
partial result, and `join_splits` weighs the parts (https://crfm.stanford.edu/2023/10/12/flashdecoding.html). How
many parts there are follows from the tile's own context alone: a row's result does not depend on its company.

Only `attention_triton` imports this file. Triton's interpreter runs it on the CPU where ``TRITON_INTERPRET=1`` is in
the environment before triton is imported.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from triton.language import constexpr

# A kernel's arguments are its memory, its sizes and what is fixed for good; it cannot take them as one value.
# Constants are in capitals, as is the custom in Triton.
# ruff: noqa: ANN001, ANN201, ANN202, N803, PLR0913, PLR0917


def factors(storage: torch.Tensor) -> Any:
    """Return the type that is multiplied: the pool's, but float32 in the interpreter, which knows no other products."""
    return tl.bfloat16 if storage.is_cuda and storage.dtype == torch.bfloat16 else tl.float32


@triton.jit
def _strips_of(position, rows, reach, STRIP: constexpr, SPLITS: constexpr, LEAST_STRIPS: constexpr):
    """Return the first strip that a tile reads, the one after the last, and how many strips one split takes."""
    first = tl.maximum(position - reach + 1, 0) // STRIP
    end = (position + rows + STRIP - 1) // STRIP
    each = tl.maximum((end - first + SPLITS - 1) // SPLITS, LEAST_STRIPS)
    return first, end, each


@triton.jit(do_not_specialize=["layer", "reach", "tile_stride", "table_stride"])
def attend_tiles(  # noqa: PLR0915  # a kernel is read as a whole
    query,  # [rows, heads, head_dim]
    storage,  # the pool
    tiles,  # [tiles, 4 or more] int32: sequence, first row, rows, position of the first row
    table,  # [sequences, blocks] int32
    output,  # [rows, heads, head_dim]; [rows, heads, SPLITS, head_dim] float32 where keys are split
    logarithms,  # [rows, heads, SPLITS] float32, where keys are split: of a part's sum of exponentials, to base 2
    layer,
    reach,  # tokens that a row sees, itself included
    tile_stride,
    table_stride,
    query_row_stride,
    query_head_stride,
    SCALE: constexpr,  # of scores, to powers of 2
    HEADS: constexpr,
    GROUP: constexpr,
    HEAD_DIM: constexpr,
    BLOCK_SIZE: constexpr,
    STRIDES: constexpr,  # of the pool's six dimensions, in numbers
    QUERIES: constexpr,  # rows times heads that a tile has room for
    STRIP: constexpr,
    WIDTH: constexpr,  # HEAD_DIM, filled up to a power of two
    SPLITS: constexpr,
    LEAST_STRIPS: constexpr,
    SPLIT: constexpr,
    FACTORS: constexpr,  # the type that is multiplied; products are summed in float32
):
    """Grid: tiles, key heads, splits (1 where keys are not split)."""
    key_head = tl.program_id(1)
    tile = tiles + tl.program_id(0) * tile_stride
    sequence, first_row, rows, position = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2), tl.load(tile + 3)
    low, high, each = _strips_of(position, rows, reach, STRIP, SPLITS, LEAST_STRIPS)
    split = tl.program_id(2)
    if SPLIT:
        low += split * each
        high = tl.minimum(low + each, high)
        if low >= high:
            return

    places = tl.arange(0, QUERIES)
    row = places // GROUP
    head = key_head * GROUP + places % GROUP
    dimensions = tl.arange(0, WIDTH)
    asked = (row < rows)[:, None] & (dimensions < HEAD_DIM)[None, :]
    from_query = ((first_row + row) * query_row_stride + head * query_head_stride)[:, None] + dimensions[None, :]
    queries = tl.load(query + from_query, mask=asked, other=0.0).to(FACTORS)  # [QUERIES, WIDTH]

    first_key, end_key = tl.maximum(position - reach + 1, 0), position + rows
    keys = storage + layer.to(tl.int64) * STRIDES[1] + key_head * STRIDES[3]
    values = keys + STRIDES[2]
    highest = tl.full((QUERIES,), float("-inf"), tl.float32)
    total = tl.full((QUERIES,), 0.0, tl.float32)
    summed = tl.full((QUERIES, WIDTH), 0.0, tl.float32)
    for strip in range(low, high):
        token = strip * STRIP + tl.arange(0, STRIP)
        there = (token >= first_key) & (token < end_key)
        block = tl.load(table + sequence * table_stride + token // BLOCK_SIZE, mask=there, other=0).to(tl.int64)
        slot = block * STRIDES[0] + (token % BLOCK_SIZE) * STRIDES[4]
        place = slot[:, None] + (dimensions * STRIDES[5])[None, :]
        stored = there[:, None] & (dimensions < HEAD_DIM)[None, :]
        key = tl.load(keys + place, mask=stored, other=0.0).to(FACTORS)  # [STRIP, WIDTH]
        scores = tl.dot(queries, tl.trans(key), input_precision="ieee") * SCALE  # [QUERIES, STRIP]
        age = (position + row)[:, None] - token[None, :]
        scores = tl.where((age >= 0) & (age < reach), scores, float("-inf"))
        risen = tl.maximum(highest, tl.max(scores, 1))
        peak = tl.where(risen == float("-inf"), 0.0, risen)  # a row that has seen nothing yet
        weights = tl.exp2(scores - peak[:, None])
        fading = tl.exp2(highest - peak)
        value = tl.load(values + place, mask=stored, other=0.0)  # [STRIP, WIDTH]
        total = total * fading + tl.sum(weights, 1)
        rounded = weights.to(value.dtype).to(FACTORS)
        summed = summed * fading[:, None] + tl.dot(rounded, value.to(FACTORS), input_precision="ieee")
        highest = risen

    unseen = total == 0.0  # a row that sees nothing of this split, or none at all
    result = summed / tl.where(unseen, 1.0, total)[:, None]
    to_row = ((first_row + row) * HEADS + head).to(tl.int64)
    if SPLIT:
        tl.store(output + ((to_row * SPLITS + split) * HEAD_DIM)[:, None] + dimensions[None, :], result, mask=asked)
        logarithm = tl.where(unseen, float("-inf"), highest + tl.log2(total))
        tl.store(logarithms + to_row * SPLITS + split, logarithm, mask=row < rows)
    else:
        to_output = (to_row * HEAD_DIM)[:, None] + dimensions[None, :]
        tl.store(output + to_output, result.to(output.dtype.element_ty), mask=asked)


@triton.jit(do_not_specialize=["reach", "tile_stride"])
def join_splits(
    parts,  # [rows, heads, SPLITS, head_dim] float32
    logarithms,  # [rows, heads, SPLITS] float32
    tiles,  # as above
    output,  # [rows, heads, head_dim]
    reach,
    tile_stride,
    HEADS: constexpr,
    HEAD_DIM: constexpr,
    STRIP: constexpr,
    WIDTH: constexpr,
    SPLITS: constexpr,  # a power of two
    LEAST_STRIPS: constexpr,
):
    """Grid: tiles, query heads."""
    tile = tiles + tl.program_id(0) * tile_stride
    first_row, rows, position = tl.load(tile + 1), tl.load(tile + 2), tl.load(tile + 3)
    first, end, each = _strips_of(position, rows, reach, STRIP, SPLITS, LEAST_STRIPS)
    split, dimensions = tl.arange(0, SPLITS), tl.arange(0, WIDTH)
    written = split < (end - first + each - 1) // each
    in_head = dimensions < HEAD_DIM
    for row in range(first_row, first_row + rows):
        place = (row * HEADS + tl.program_id(1)).to(tl.int64)
        logarithm = tl.load(logarithms + place * SPLITS + split, mask=written, other=float("-inf"))
        weights = tl.exp2(logarithm - tl.max(logarithm, 0))
        from_part = ((place * SPLITS + split) * HEAD_DIM)[:, None] + dimensions[None, :]
        part = tl.load(parts + from_part, mask=written[:, None] & in_head[None, :], other=0.0)  # [SPLITS, WIDTH]
        result = tl.sum(part * weights[:, None], 0) / tl.sum(weights, 0)
        tl.store(output + place * HEAD_DIM + dimensions, result.to(output.dtype.element_ty), mask=in_head)
