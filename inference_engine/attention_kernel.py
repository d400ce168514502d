"""The compiled CPU kernel: flash attention (https://arxiv.org/abs/2205.14135) straight over the block-major pool.

One *item* of work is one key head and one *tile*: up to ``TILE_QUERIES`` consecutive rows of one sequence. All query
heads of the key head's group are computed together, so that every key and value is read from memory once a tile. Keys
pass in strips of ``TILE_KEYS``; for each query a running maximum, a running sum and the weighted sum of values are
kept. Everything is computed in float32.

The pool is taken as unsigned integers of its own width: ``bits << shift`` widens bfloat16 (shift 16) and leaves float32
(shift 0) as it is, so one body serves both. What lies past a sequence's end is never read.
"""

import math

import numba
import numpy as np
import numpy.typing as npt

TILE_QUERIES = 16
TILE_KEYS = 64

_LANES = 8  # numbers that are compared side by side
_FEW_ROWS = 4  # up to here keys are not worth transposing
_LOWEST = np.float32(-1e30)
_LOG2_E = np.float32(1.4426950408889634)
_UNDERFLOW = np.float32(-86.0)  # exp of less is taken as exp of this: 4e-38

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]
Bits = npt.NDArray[np.uint32]

# No "nnan" and "ninf": broken numbers must come out as broken numbers.
_MATH = {"reassoc", "contract", "nsz", "arcp"}


@numba.njit(cache=True, nogil=True, fastmath=_MATH)
def _exponentials(scores: Floats, highest: np.float32, power_bits: Bits, powers: Floats) -> None:
    """Replace ``scores`` [TILE_KEYS] by exp(scores - highest), none of which exceeds 1.

    exp(x) is 2^n * 2^r with whole n, |r| <= 1/2: the first from its bits, the second from its Taylor series (relative
    error below 3e-7). Written so that the loop becomes vector instructions.
    """
    for index in range(TILE_KEYS):
        distance = scores[index] - highest
        exponent = max(distance, _UNDERFLOW) * _LOG2_E
        whole = np.int32(exponent - np.float32(0.5))
        rest = exponent - np.float32(whole)
        series = np.float32(0.00015403530393381608)
        series = series * rest + np.float32(0.0013333558146428443)
        series = series * rest + np.float32(0.009618129107628477)
        series = series * rest + np.float32(0.05550410866482158)
        series = series * rest + np.float32(0.2402265069591007)
        series = series * rest + np.float32(0.6931471805599453)
        series = series * rest + np.float32(1.0)
        power_bits[index] = np.uint32(whole + np.int32(127)) << np.uint32(23)
        scores[index] = series + distance * np.float32(0.0)  # a score that is no number must not get lost in max()
    for index in range(TILE_KEYS):
        scores[index] *= powers[index]


@numba.njit(cache=True, nogil=True, fastmath=_MATH)
def _score_transposed(query: Floats, keys: Floats, scores: Floats) -> None:
    """Set ``scores`` [TILE_KEYS] to query · keys, ``keys`` being ``[head_dim, TILE_KEYS]``."""
    for index in range(TILE_KEYS):
        scores[index] = np.float32(0.0)
    fours = query.shape[0] // 4 * 4
    for dimension in range(0, fours, 4):
        a, b, c, d = query[dimension], query[dimension + 1], query[dimension + 2], query[dimension + 3]
        for index in range(TILE_KEYS):
            scores[index] += (
                a * keys[dimension, index]
                + b * keys[dimension + 1, index]
                + c * keys[dimension + 2, index]
                + d * keys[dimension + 3, index]
            )
    for dimension in range(fours, query.shape[0]):
        for index in range(TILE_KEYS):
            scores[index] += query[dimension] * keys[dimension, index]


@numba.njit(cache=True, nogil=True, fastmath=_MATH)
def _peak(scores: Floats, least: np.float32, lanes: Floats) -> np.float32:
    """Return the maximum of ``least`` and ``scores`` [TILE_KEYS], taken in lanes to become vector instructions."""
    for lane in range(_LANES):
        lanes[lane] = least
    for index in range(0, TILE_KEYS, _LANES):
        for lane in range(_LANES):
            lanes[lane] = max(lanes[lane], scores[index + lane])
    peak = np.float32(lanes[0])
    for lane in range(1, _LANES):
        peak = max(peak, lanes[lane])
    return peak


@numba.njit(cache=True, nogil=True, fastmath=_MATH)
def _add_values(weights: Floats, values: Floats, low: int, high: int, output: Floats) -> None:
    """Add the ``values`` [TILE_KEYS, head_dim] at low..high, weighted, to ``output`` [head_dim]."""
    fours = low + (high - low) // 4 * 4
    for index in range(low, fours, 4):
        a, b, c, d = weights[index], weights[index + 1], weights[index + 2], weights[index + 3]
        for dimension in range(output.shape[0]):
            output[dimension] += (
                a * values[index, dimension]
                + b * values[index + 1, dimension]
                + c * values[index + 2, dimension]
                + d * values[index + 3, dimension]
            )
    for index in range(fours, high):
        weight = weights[index]
        for dimension in range(output.shape[0]):
            output[dimension] += weight * values[index, dimension]


@numba.njit(cache=True, nogil=True, fastmath=_MATH)
def attend_items(  # noqa: C901, PLR0912, PLR0913, PLR0915, PLR0917  # one loop nest; a compiled kernel is read as a whole
    query: Floats,  # [rows, heads, head_dim]
    pool: npt.NDArray[np.uint16] | Bits,  # [blocks, layers, 2, kv_heads, block_size, head_dim]
    layer: int,
    window: int,
    tiles: Ints,  # [tiles, 4]: sequence, first row, rows, position of the first row
    tables: Ints,  # [sequences, blocks]
    output: Floats,  # [rows, heads, head_dim]
    first_item: int,
    item_step: int,
) -> None:
    """Compute every ``item_step``-th item from ``first_item`` on; calls with other remainders may run meanwhile."""
    kv_heads, block_size, head_dim = pool.shape[3], pool.shape[4], pool.shape[5]
    group = query.shape[1] // kv_heads
    scale = np.float32(1.0 / math.sqrt(head_dim))
    shift = np.uint32(32 - 8 * pool.itemsize)
    most_rows = TILE_QUERIES * group
    queries = np.empty((most_rows, head_dim), np.float32)
    sums = np.empty(most_rows, np.float32)
    highest = np.empty(most_rows, np.float32)
    totals = np.empty((most_rows, head_dim), np.float32)
    scores = np.zeros(TILE_KEYS, np.float32)
    power_bits = np.zeros(TILE_KEYS, np.uint32)
    lanes = np.zeros(_LANES, np.float32)
    powers = power_bits.view(np.float32)
    key_bits = np.zeros((TILE_KEYS, head_dim), np.uint32)
    keys = key_bits.view(np.float32)
    transposed = np.zeros((head_dim, TILE_KEYS), np.float32)
    value_bits = np.zeros((TILE_KEYS, head_dim), np.uint32)
    values = value_bits.view(np.float32)
    for item in range(first_item, tiles.shape[0] * kv_heads, item_step):
        head = item % kv_heads
        sequence, first_row, row_count, position = tiles[item // kv_heads]
        vectors = row_count * group
        for vector in range(vectors):
            for dimension in range(head_dim):
                queries[vector, dimension] = (
                    query[first_row + vector // group, head * group + vector % group, dimension] * scale
                )
                totals[vector, dimension] = np.float32(0.0)
            highest[vector] = _LOWEST
            sums[vector] = np.float32(0.0)
        end = position + row_count
        begin = max(0, position - window + 1) if window > 0 else 0
        for strip in range(begin, end, TILE_KEYS):
            width = min(TILE_KEYS, end - strip)
            for index in range(width):
                block = tables[sequence, (strip + index) // block_size]
                offset = (strip + index) % block_size
                for dimension in range(head_dim):
                    key_bits[index, dimension] = np.uint32(pool[block, layer, 0, head, offset, dimension]) << shift
                for dimension in range(head_dim):
                    value_bits[index, dimension] = np.uint32(pool[block, layer, 1, head, offset, dimension]) << shift
            if vectors > _FEW_ROWS:
                for index in range(width):
                    for dimension in range(head_dim):
                        transposed[dimension, index] = keys[index, dimension]
            for vector in range(vectors):
                own = position + vector // group - strip  # the query's own place in the strip, perhaps past its end
                high = min(width, own + 1)
                low = max(0, own - window + 1) if window > 0 else 0
                if low >= high:
                    continue
                if vectors > _FEW_ROWS:
                    _score_transposed(queries[vector], transposed, scores)
                else:
                    for index in range(low, high):
                        score = np.float32(0.0)
                        for dimension in range(head_dim):
                            score += queries[vector, dimension] * keys[index, dimension]
                        scores[index] = score
                for index in range(low):
                    scores[index] = _LOWEST
                for index in range(high, TILE_KEYS):
                    scores[index] = _LOWEST
                peak = _peak(scores, highest[vector], lanes)
                _exponentials(scores, peak, power_bits, powers)
                part = np.float32(0.0)
                for index in range(low, high):
                    part += scores[index]
                if peak > highest[vector]:
                    shrink = np.float32(math.exp(highest[vector] - peak))
                    sums[vector] *= shrink
                    for dimension in range(head_dim):
                        totals[vector, dimension] *= shrink
                    highest[vector] = peak
                sums[vector] += part
                _add_values(scores, values, low, high, totals[vector])
        for vector in range(vectors):
            inverse = np.float32(1.0) / sums[vector]
            for dimension in range(head_dim):
                output[first_row + vector // group, head * group + vector % group, dimension] = (
                    totals[vector, dimension] * inverse
                )
