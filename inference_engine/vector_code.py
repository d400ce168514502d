"""The inner loops of the CPU's matrix products, as vectors: compiled functions call them.

A loop over a matrix that numba compiles from Python keeps its sums in memory; these keep them in registers, which is
most of the difference between them and a BLAS. Addresses and strides are bytes as int64; nothing is checked.

*Folded* numbers: 32-bit words are read and hold two bfloat16 numbers each, of which one shift makes the even and one
mask the odd ones. So what bfloat16 rows are multiplied with lies in groups of `GROUP` numbers, first the even, then the
odd of them. float32 rows need no folding; both kinds are summed in the same order of groups.

No loop's result depends on how many rows or columns are computed together, to the last bit.
"""

from collections.abc import Sequence
from typing import Any

from numba import types

from inference_engine.code_builder import (
    FLOAT,
    GROUP,
    LANES,
    TILE_COLUMNS,
    Builder,
    Value,
    by_rows,
    emitted,
    four_sums,
    load,
    long,
    loop,
    multiply_add,
    places,
    read_group,
    spread,
    store,
    vector_of,
)


@emitted
def dots(  # noqa: PLR0913, PLR0917  # three matrices
    _context: Any,
    rows: Any,
    columns: Any,
    kind: Any,
    left: Any,
    left_stride: Any,
    right: Any,
    right_stride: Any,
    groups: Any,
    output: Any,
    output_stride: Any,
) -> Any:
    """Set ``output[i, 0:4]`` to the dot products of row i of ``left`` with the ``columns`` rows of ``right``.

    ``rows`` is 1 to `TILE_ROWS`; ``columns`` is a literal 1 to 4, and the results of those that are not there are 0.
    ``left`` is float32, ``right`` has the type of the array ``kind``; rows are ``groups`` groups long.
    """
    width, number_bytes = columns.literal_value, kind.dtype.bitwidth // 8
    signature = types.void(types.int64, columns, kind, *[types.int64] * 7)
    del rows, left, left_stride, right, right_stride, groups, output, output_stride

    def generate(context: Any, builder: Builder, _signature: Any, arguments: Sequence[Value]) -> Value:
        left, left_stride, right, right_stride, groups, output, output_stride = arguments[3:]
        rights = places(builder, right, right_stride, width)

        def emit(height: int) -> None:
            lefts = places(builder, left, left_stride, height)

            def step(index: Value, sums: list[Value]) -> list[Value]:
                right_offset = builder.mul(index, long(GROUP * number_bytes))
                read = [read_group(builder, builder.add(place, right_offset), number_bytes) for place in rights]
                left_offset = builder.mul(index, long(GROUP * 4))
                added = list(sums)
                for row, place in enumerate(lefts):
                    pair = read_group(builder, builder.add(place, left_offset), 4)
                    for column, other in enumerate(read):
                        own = row * width + column
                        for half, other_half in zip(pair, other, strict=True):
                            added[own] = multiply_add(builder, half, other_half, added[own])
                return added

            sums = loop(builder, groups, [vector_of(0.0)] * (height * width), step)
            for row, target in enumerate(places(builder, output, output_stride, height)):
                own = sums[row * width : (row + 1) * width] + [vector_of(0.0)] * (TILE_COLUMNS - width)
                store(builder, four_sums(builder, own), target)

        by_rows(builder, arguments[0], emit)
        return context.get_dummy_value()

    return signature, generate


@emitted
def blend(  # noqa: PLR0913, PLR0917  # three matrices
    _context: Any,
    rows: Any,
    width_groups: Any,
    kind: Any,
    weights: Any,
    weight_stride: Any,
    values: Any,
    value_stride: Any,
    count: Any,
    output: Any,
    output_stride: Any,
) -> Any:
    """Add to row i of ``output`` the ``count`` rows of ``values``, each times its ``weights[i, ...]``.

    ``rows`` is 1 to `TILE_ROWS`, ``width_groups`` a literal, 1 or `CHUNK_GROUPS`. ``values`` have the type of the array
    ``kind``, weights and output are float32.
    """
    groups, number_bytes = width_groups.literal_value, kind.dtype.bitwidth // 8
    signature = types.void(types.int64, width_groups, kind, *[types.int64] * 7)
    del rows, weights, weight_stride, values, value_stride, count, output, output_stride

    def generate(context: Any, builder: Builder, _signature: Any, arguments: Sequence[Value]) -> Value:
        weights, weight_stride, values, value_stride, count, output, output_stride = arguments[3:]

        def emit(height: int) -> None:
            sources = places(builder, weights, weight_stride, height)
            targets = [
                builder.add(row, long(vector * 4 * LANES))
                for row in places(builder, output, output_stride, height)
                for vector in range(2 * groups)
            ]

            def step(index: Value, sums: list[Value]) -> list[Value]:
                start = builder.add(values, builder.mul(index, value_stride))
                read = [
                    half
                    for group in range(groups)
                    for half in read_group(
                        builder, builder.add(start, long(group * GROUP * number_bytes)), number_bytes
                    )
                ]
                offset = builder.mul(index, long(4))
                added = list(sums)
                for row, source in enumerate(sources):
                    weight = spread(builder, load(builder, builder.add(source, offset), FLOAT))
                    for vector, half in enumerate(read):
                        own = row * 2 * groups + vector
                        added[own] = multiply_add(builder, weight, half, added[own])
                return added

            sums = loop(builder, count, [load(builder, target) for target in targets], step)
            for value, target in zip(sums, targets, strict=True):
                store(builder, value, target)

        by_rows(builder, arguments[0], emit)
        return context.get_dummy_value()

    return signature, generate
