"""What lies between the matrix products on a GPU, in Triton: each kernel reads its rows once and writes them once.

Sums are kept in float32, and numbers are rounded to the model's type wherever `inference_engine.decoder` rounds them.
Only `triton_decoder` imports this file.
"""

import triton
import triton.language as tl
from triton.language import constexpr

# A kernel's arguments are its memory, its sizes and what is fixed for good; it cannot take them as one value.
# Constants are in capitals, as is the custom in Triton.
# ruff: noqa: ANN001, ANN201, N803, PLR0913, PLR0917


@triton.jit
def normalise_rows(
    hidden,  # [rows, SIZE]
    added,  # [rows, SIZE]; anything where nothing is added
    weight,  # [SIZE]
    total,  # [rows, SIZE]: takes hidden + added; anything where nothing is added
    normed,  # [rows, SIZE]: takes the sum by its root mean square, weighted
    EPSILON: constexpr,
    SIZE: constexpr,
    WIDTH: constexpr,  # SIZE, filled up to a power of two
    ADD: constexpr,
):
    """Grid: rows."""
    columns = tl.arange(0, WIDTH)
    there = columns < SIZE
    places = tl.program_id(0).to(tl.int64) * SIZE + columns
    values = tl.load(hidden + places, mask=there, other=0.0)
    number = values.dtype
    values = values.to(tl.float32)
    if ADD:
        values = (values + tl.load(added + places, mask=there, other=0.0).to(tl.float32)).to(number)
        tl.store(total + places, values, mask=there)
        values = values.to(tl.float32)
    spread = tl.rsqrt(tl.sum(values * values, 0) / SIZE + EPSILON)
    rounded = (values * spread).to(number).to(tl.float32)
    factors = tl.load(weight + columns, mask=there, other=0.0).to(tl.float32)
    tl.store(normed + places, (rounded * factors).to(number), mask=there)


@triton.jit(do_not_specialize=["layer"])
def turn_and_store(
    projected,  # [rows, HEADS + 2 * KV_HEADS, HEAD_DIM]: queries, keys, values
    cosine,  # [rows, HEAD_DIM]
    sine,  # [rows, HEAD_DIM]
    query_norm,  # [HEAD_DIM]; anything where heads are not normalised
    key_norm,  # [HEAD_DIM]; likewise
    slot_blocks,  # [rows] int64
    slot_offsets,  # [rows] int64
    query,  # [rows, HEADS, HEAD_DIM]: takes the queries, turned
    storage,  # the pool: takes the keys, turned, and the values
    layer,
    EPSILON: constexpr,
    HEADS: constexpr,
    KV_HEADS: constexpr,
    HEAD_DIM: constexpr,
    STRIDES: constexpr,  # of the pool's six dimensions, in numbers
    ALL_HEADS: constexpr,  # HEADS + 2 * KV_HEADS, filled up to a power of two
    WIDTH: constexpr,  # HEAD_DIM, likewise
    NORMALISE: constexpr,
):
    """Grid: rows."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.arange(0, ALL_HEADS)[:, None]
    dimension = tl.arange(0, WIDTH)[None, :]
    lower = dimension < HEAD_DIM // 2
    opposite = tl.where(lower, dimension + HEAD_DIM // 2, dimension - HEAD_DIM // 2)
    there = (head < HEADS + 2 * KV_HEADS) & (dimension < HEAD_DIM)
    of_head = projected + (row * (HEADS + 2 * KV_HEADS) + head) * HEAD_DIM
    plain = tl.load(of_head + dimension, mask=there, other=0.0)  # [ALL_HEADS, WIDTH]
    number = plain.dtype
    values = plain.to(tl.float32)
    others = tl.load(of_head + opposite, mask=there, other=0.0).to(tl.float32)
    if NORMALISE:
        spread = tl.rsqrt(tl.sum(values * values, 1) / HEAD_DIM + EPSILON)[:, None]
        of_query = tl.load(query_norm + dimension, mask=dimension < HEAD_DIM, other=0.0).to(tl.float32)
        of_key = tl.load(key_norm + dimension, mask=dimension < HEAD_DIM, other=0.0).to(tl.float32)
        factors = tl.where(head < HEADS, of_query, of_key)
        values = ((values * spread).to(number).to(tl.float32) * factors).to(number).to(tl.float32)
        of_query = tl.load(query_norm + opposite, mask=dimension < HEAD_DIM, other=0.0).to(tl.float32)
        of_key = tl.load(key_norm + opposite, mask=dimension < HEAD_DIM, other=0.0).to(tl.float32)
        factors = tl.where(head < HEADS, of_query, of_key)
        others = ((others * spread).to(number).to(tl.float32) * factors).to(number).to(tl.float32)
    along = tl.load(cosine + row * HEAD_DIM + dimension, mask=dimension < HEAD_DIM, other=0.0).to(tl.float32)
    across = tl.load(sine + row * HEAD_DIM + dimension, mask=dimension < HEAD_DIM, other=0.0).to(tl.float32)
    across = tl.where(lower, -across, across)
    turned = (values * along).to(number).to(tl.float32) + (others * across).to(number).to(tl.float32)
    is_value = head >= HEADS + KV_HEADS
    tl.store(query + (row * HEADS + head) * HEAD_DIM + dimension, turned.to(number), mask=there & (head < HEADS))
    slot = tl.load(slot_blocks + row) * STRIDES[0] + tl.load(slot_offsets + row) * STRIDES[4]
    kept = tl.where(is_value, plain, turned.to(number))
    part = tl.where(is_value, STRIDES[2], 0) + (head - HEADS) % KV_HEADS * STRIDES[3] + dimension * STRIDES[5]
    tl.store(storage + slot + layer.to(tl.int64) * STRIDES[1] + part, kept, mask=there & (head >= HEADS))


@triton.jit
def gate_rows(
    gate_up,  # [rows, 2 * SIZE]: gates, then what passes them
    gated,  # [rows, SIZE]
    SIZE: constexpr,
    WIDTH: constexpr,  # columns at a time
):
    """Grid: rows, strips of columns."""
    columns = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    there = columns < SIZE
    row = tl.program_id(0).to(tl.int64)
    gate = tl.load(gate_up + row * 2 * SIZE + columns, mask=there, other=0.0)
    number = gate.dtype
    gate = gate.to(tl.float32)
    passing = tl.load(gate_up + row * 2 * SIZE + SIZE + columns, mask=there, other=0.0).to(tl.float32)
    opened = (gate / (1.0 + tl.exp(-gate))).to(number).to(tl.float32)
    tl.store(gated + row * SIZE + columns, (opened * passing).to(number), mask=there)
