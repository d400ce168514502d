"""The compiled CPU kernel: flash attention (https://arxiv.org/abs/2205.14135) straight over the block-major pool.

One *item* of work is one key head and one *tile*: some consecutive rows of one sequence. All query heads of the key
head's group are computed together (row by row: the tile's *vectors*), so that every key and value is read from memory
once a tile. Keys pass in strips of `STRIP_KEYS`; for each vector a running maximum, a running sum and the weighted sum
of values are kept. Everything is computed in float32.

Few vectors read keys and values where they lie, many from a copy of the strip, widened once for all of them and small
enough for the nearest cache. Where it is to be *exact*, both compute the same sums in the same order; and strips always
begin at multiples of their size. So what a row gets depends on its own sequence alone, to the last bit: not on its
company, nor on how its prompt was cut. Otherwise the scores of many vectors are summed dimension after dimension, over
keys that were turned, which is faster. What lies past a sequence's end has no effect.
"""

import math
from typing import NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from inference_engine.code_builder import CHUNK_GROUPS, GROUP, LANES, LOWEST, TILE_ROWS
from inference_engine.number_formats import narrow, wide
from inference_engine.thread_team import Seat, take
from inference_engine.vector_code import blend, dots
from inference_engine.vector_rows import address_of, fetch_early, narrow_folded, soften, widen_folded

STRIP_KEYS = 64
_STRIP_VECTORS = STRIP_KEYS // LANES

FEW_VECTORS = 2 * TILE_ROWS
"""Up to here a copy of the keys costs more than it saves."""
_TILES_FOR_EACH = 2  # of a thread, from which an item is all heads of a tile
_LOWEST = np.float32(LOWEST)

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]
Numbers = npt.NDArray[np.uint16] | Floats
"""bfloat16 as words, or float32."""


class Work(NamedTuple):
    """What one thread attends with; ``padded`` is head_dim, rounded up to whole groups."""

    queries: Floats  # [vectors, padded]
    totals: Floats  # [vectors, padded]
    scores: Floats  # [vectors, STRIP_KEYS]
    highest: Floats  # [vectors]
    sums: Floats  # [vectors]
    keys: Floats  # [STRIP_KEYS, padded]
    turned: Floats  # [padded, STRIP_KEYS]: the keys
    values: Floats  # [STRIP_KEYS, padded]


class Reach(NamedTuple):
    """Some rows of one sequence, and the heads that they are computed for."""

    first_row: int
    rows: int
    position: int  # of the first row in its sequence
    window: int
    first_head: int  # of the key heads
    heads: int
    group: int  # query heads of a key head


class Works(NamedTuple):
    """The `Work` of all threads of a team, with one dimension more before the others."""

    queries: Floats
    totals: Floats
    scores: Floats
    highest: Floats
    sums: Floats
    keys: Floats
    turned: Floats
    values: Floats


def make_works(threads: int, tile_rows: int, heads: int, kv_heads: int, head_dim: int) -> Works:
    """Return memory for tiles of up to this many rows, with this many query and key heads."""
    vectors, padded = max(tile_rows * (heads // kv_heads), FEW_VECTORS * kv_heads), -(-head_dim // GROUP) * GROUP
    return Works(
        queries=np.zeros((threads, vectors, padded), np.float32),
        totals=np.zeros((threads, vectors, padded), np.float32),
        scores=np.zeros((threads, vectors, STRIP_KEYS), np.float32),
        highest=np.zeros((threads, vectors), np.float32),
        sums=np.zeros((threads, vectors), np.float32),
        keys=np.zeros((threads, STRIP_KEYS, padded), np.float32),
        turned=np.zeros((threads, padded, STRIP_KEYS), np.float32),
        values=np.zeros((threads, STRIP_KEYS, padded), np.float32),
    )


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _own_work(works: Works, part: int) -> Work:
    return Work(
        works.queries[part],
        works.totals[part],
        works.scores[part],
        works.highest[part],
        works.sums[part],
        works.keys[part],
        works.turned[part],
        works.values[part],
    )


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _take_queries(query: Numbers, reach: Reach, folded: bool, work: Work) -> None:
    """Copy a tile's queries, scaled, head after head and row after row, and begin their sums."""
    head_dim = query.shape[2]
    scale = np.float32(1.0 / math.sqrt(head_dim))
    vector = 0
    for head in range(reach.first_head, reach.first_head + reach.heads):
        for row in range(reach.first_row, reach.first_row + reach.rows):
            for member in range(head * reach.group, (head + 1) * reach.group):
                source, target = query[row, member], work.queries[vector]
                if folded:
                    widen_folded(address_of(source), address_of(target), head_dim // GROUP)
                else:
                    for dimension in range(head_dim):
                        target[dimension] = wide(source[dimension])
                for dimension in range(head_dim):
                    target[dimension] *= scale
                for dimension in range(target.shape[0]):
                    work.totals[vector, dimension] = np.float32(0.0)
                work.highest[vector] = _LOWEST
                work.sums[vector] = np.float32(0.0)
                vector += 1


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _give_output(output: Numbers, reach: Reach, folded: bool, work: Work) -> None:
    """Write the totals over the sums, in the order of `_take_queries`."""
    head_dim = output.shape[2]
    vector = 0
    for head in range(reach.first_head, reach.first_head + reach.heads):
        for row in range(reach.first_row, reach.first_row + reach.rows):
            for member in range(head * reach.group, (head + 1) * reach.group):
                target, total = output[row, member], work.totals[vector]
                inverse = np.float32(1.0) / work.sums[vector]
                if folded:
                    narrow_folded(address_of(total), inverse, address_of(target), head_dim // GROUP)
                else:
                    for dimension in range(head_dim):
                        target[dimension] = narrow(total[dimension] * inverse, output)
                vector += 1


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _score(keys: Numbers, address: int, width: int, first: int, count: int, column: int, work: Work) -> None:  # noqa: PLR0913, PLR0917  # compiled
    """Set the scores of ``count`` vectors from ``first`` on, with ``width`` keys (whole fours) from ``address`` on.

    ``keys`` has their type and, as its last dimensions, their shape; ``column`` is the first key's place in the strip.
    """
    stride, score_stride, key_stride = work.queries.shape[1] * 4, STRIP_KEYS * 4, keys.strides[keys.ndim - 2]
    groups = keys.shape[keys.ndim - 1] // GROUP
    left, output = address_of(work.queries), address_of(work.scores) + column * 4
    for vector in range(first, first + count, TILE_ROWS):
        rows = min(TILE_ROWS, first + count - vector)
        source, target = left + vector * stride, output + vector * score_stride
        for index in range(0, width, 4):
            right = address + index * key_stride
            dots(rows, 4, keys, source, stride, right, key_stride, groups, target + index * 4, score_stride)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _add_values(values: Numbers, address: int, width: int, first: int, count: int, column: int, work: Work) -> None:  # noqa: PLR0913, PLR0917  # compiled
    """Add ``width`` values, weighted, to the totals; see `_score`."""
    stride, score_stride, value_stride = work.totals.shape[1] * 4, STRIP_KEYS * 4, values.strides[values.ndim - 2]
    groups, number_bytes = values.shape[values.ndim - 1] // GROUP, values.itemsize
    weights, output = address_of(work.scores) + column * 4, address_of(work.totals)
    paired = groups - groups % CHUNK_GROUPS
    for vector in range(first, first + count, TILE_ROWS):
        rows = min(TILE_ROWS, first + count - vector)
        left, target = weights + vector * score_stride, output + vector * stride
        for group in range(0, paired, CHUNK_GROUPS):
            source, place = address + group * GROUP * number_bytes, target + group * GROUP * 4
            blend(rows, CHUNK_GROUPS, values, left, score_stride, source, value_stride, width, place, stride)
        for group in range(paired, groups):
            source, place = address + group * GROUP * number_bytes, target + group * GROUP * 4
            blend(rows, 1, values, left, score_stride, source, value_stride, width, place, stride)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _weigh(reach: Reach, strip: int, width: int, work: Work) -> None:
    """Turn the scores of the ``width`` keys from ``strip`` on into weights."""
    scores, highest, sums, totals = (
        address_of(work.scores), address_of(work.highest), address_of(work.sums), address_of(work.totals),
    )  # fmt: skip
    length = work.totals.shape[1] // LANES
    vector = 0
    for _ in range(reach.heads):
        own = reach.position - strip  # the row's own key, perhaps past the strip
        for _ in range(reach.rows):
            high = min(width, own + 1)
            low = max(0, own - reach.window + 1) if reach.window > 0 else 0
            for _ in range(reach.group):
                soften(
                    _STRIP_VECTORS, scores + vector * STRIP_KEYS * 4, low, high, highest + vector * 4,
                    sums + vector * 4, totals + vector * length * LANES * 4, length,
                )  # fmt: skip
                vector += 1
            own += 1


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _first_seen(reach: Reach, strip: int) -> int:
    """Return the place in a strip of the first key that any row sees: the blocks before it may be another's by now."""
    return max(0, reach.position - reach.window + 1 - strip) if reach.window > 0 else 0


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _strip_in_place(pool: Numbers, layer: int, table: Ints, strip: int, width: int, reach: Reach, work: Work) -> None:  # noqa: PLR0913, PLR0917  # compiled
    """Score and add a strip of few vectors. The heads of a block lie side by side and are read side by side."""
    block_size, end, first = pool.shape[4], reach.position + reach.rows, _first_seen(reach, strip)
    head_bytes, each = pool.strides[3], reach.rows * reach.group
    for kind in range(2):
        start = address_of(pool) + layer * pool.strides[1] + kind * pool.strides[2] + reach.first_head * head_bytes
        if kind == 1:
            _weigh(reach, strip, width, work)
        for column in range(first // block_size * block_size, width, block_size):
            index = (strip + column) // block_size
            place = start + table[index] * pool.strides[0]
            ahead = start + table[index + 1] * pool.strides[0] if (index + 1) * block_size < end else 0
            count = min(block_size, width - column)
            for head in range(reach.heads):
                if ahead > 0:
                    fetch_early(ahead + head * head_bytes, head_bytes)
                address = place + head * head_bytes
                if kind == 0:
                    _score(pool, address, (count + 3) // 4 * 4, head * each, each, column, work)
                else:
                    _add_values(pool, address, count, head * each, each, column, work)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _copy_strip(part: Numbers, table: Ints, strip: int, first: int, width: int, folded: bool, copy: Floats) -> None:  # noqa: PLR0913, PLR0917  # compiled
    """Widen keys or values, ``part`` being a layer's of one head ``[blocks, block_size, head_dim]``; the rest is 0."""
    block_size, head_dim = part.shape[1], part.shape[2]
    for index in range(first):
        for dimension in range(copy.shape[1]):
            copy[index, dimension] = np.float32(0.0)
    for index in range(first, width):
        block, offset = table[(strip + index) // block_size], (strip + index) % block_size
        source = part[block, offset]
        if folded:
            widen_folded(address_of(source), address_of(copy[index]), head_dim // GROUP)
        else:
            for dimension in range(head_dim):
                copy[index, dimension] = wide(source[dimension])
    for index in range(width, STRIP_KEYS):
        for dimension in range(copy.shape[1]):
            copy[index, dimension] = np.float32(0.0)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _score_turned(vectors: int, work: Work) -> None:
    """Set the scores of a whole strip of copied keys, dimension after dimension."""
    padded = work.queries.shape[1]
    for dimension in range(padded):
        for index in range(STRIP_KEYS):
            work.turned[dimension, index] = work.keys[index, dimension]
    for vector in range(vectors):
        for index in range(STRIP_KEYS):
            work.scores[vector, index] = np.float32(0.0)
    queries, turned, scores = address_of(work.queries), address_of(work.turned), address_of(work.scores)
    for vector in range(0, vectors, TILE_ROWS):
        rows = min(TILE_ROWS, vectors - vector)
        for column in range(0, STRIP_KEYS, CHUNK_GROUPS * GROUP):
            blend(
                rows, CHUNK_GROUPS, work.turned, queries + vector * padded * 4, padded * 4, turned + column * 4,
                STRIP_KEYS * 4, padded, scores + (vector * STRIP_KEYS + column) * 4, STRIP_KEYS * 4,
            )  # fmt: skip


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _strip_copied(  # noqa: PLR0913, PLR0917  # compiled
    pool: Numbers, layer: int, table: Ints, strip: int, width: int, reach: Reach, exact: bool, work: Work
) -> None:
    """Score and add a strip of many vectors, or of any number where heads or blocks have odd sizes, for one head."""
    folded, vectors = pool.itemsize == 2 and pool.shape[5] % GROUP == 0, reach.rows * reach.group
    first = _first_seen(reach, strip)
    _copy_strip(pool[:, layer, 0, reach.first_head], table, strip, first, width, folded, work.keys)
    _copy_strip(pool[:, layer, 1, reach.first_head], table, strip, first, width, folded, work.values)
    if exact or vectors <= FEW_VECTORS:
        _score(work.keys, address_of(work.keys), STRIP_KEYS, 0, vectors, 0, work)
    else:
        _score_turned(vectors, work)
    _weigh(reach, strip, width, work)
    _add_values(work.values, address_of(work.values), width, 0, vectors, 0, work)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def attend_tiles(  # noqa: PLR0913, PLR0917  # compiled
    seat: Seat,
    phase: int,
    query: Numbers,  # [rows, heads, head_dim]
    pool: Numbers,  # [blocks, layers, 2, kv_heads, block_size, head_dim]
    layer: int,
    window: int,
    tiles: Ints,  # [tiles, 4]: sequence, first row, rows, position of the first row
    tables: Ints,  # [sequences, blocks]
    output: Numbers,  # [rows, heads, head_dim]
    exact: bool,
    works: Works,
) -> None:
    """Compute items until none is left, beside other threads. The last tiles, which read most, go first."""
    kv_heads, block_size, whole = pool.shape[3], pool.shape[4], pool.shape[5] % GROUP == 0
    folded = pool.itemsize == 2 and whole
    group, work = query.shape[1] // kv_heads, _own_work(works, seat.part)
    fits = whole and block_size % 4 == 0 and STRIP_KEYS % block_size == 0
    step = kv_heads if tiles.shape[0] >= _TILES_FOR_EACH * seat.threads else 1  # heads of an item
    items = tiles.shape[0] * (kv_heads // step)
    item = items - 1 - take(seat, phase)
    while item >= 0:
        sequence, first_row, rows, position = tiles[item * step // kv_heads]
        in_place = fits and rows * group <= FEW_VECTORS
        heads = step if in_place else 1
        end = position + rows
        begin = max(0, position - window + 1) // STRIP_KEYS * STRIP_KEYS if window > 0 else 0
        for first_head in range(item * step % kv_heads, item * step % kv_heads + step, heads):
            reach = Reach(first_row, rows, position, window, first_head, heads, group)
            _take_queries(query, reach, folded, work)
            for strip in range(begin, end, STRIP_KEYS):
                width = min(STRIP_KEYS, end - strip)
                if in_place:
                    _strip_in_place(pool, layer, tables[sequence], strip, width, reach, work)
                else:
                    _strip_copied(pool, layer, tables[sequence], strip, width, reach, exact, work)
            _give_output(output, reach, folded, work)
        item = items - 1 - take(seat, phase)
