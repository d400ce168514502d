"""What compiled functions do with whole rows of numbers, as vectors. Addresses are of bytes; nothing is checked."""

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types

from inference_engine.code_builder import (
    FLOAT,
    GROUP,
    LANES,
    LONG,
    LOWEST,
    NARROW_BYTES,
    WORD,
    WORDS,
    Builder,
    Value,
    emitted,
    load,
    long,
    loop,
    over_lanes,
    powers,
    read_group,
    spread,
    spread_word,
    store,
    vector_of,
    words_of,
)
from inference_engine.number_formats import rounded_word

_LINE_BYTES = 64  # of the caches


@emitted
def address_of(_context: Any, array: Any) -> Any:
    """Return where an array's numbers begin."""

    def generate(context: Any, builder: Builder, _signature: Any, arguments: Sequence[Value]) -> Value:
        data = context.make_array(array)(context, builder, arguments[0]).data
        return builder.ptrtoint(data, LONG)

    return types.int64(array), generate


@emitted
def fetch_early(_context: Any, address: Any, count: Any) -> Any:
    """Ask for ``count`` bytes that will be read soon."""
    del address, count

    def generate(context: Any, builder: Builder, _signature: Any, arguments: Sequence[Value]) -> Value:
        address, count = arguments
        pointer = ir.IntType(8).as_pointer()
        name = "llvm.prefetch.p0"
        function = builder.module.globals.get(name)
        if function is None:
            function = ir.Function(builder.module, ir.FunctionType(ir.VoidType(), [pointer, WORD, WORD, WORD]), name)

        def step(index: Value, carried: list[Value]) -> list[Value]:
            place = builder.inttoptr(builder.add(address, builder.mul(index, long(_LINE_BYTES))), pointer)
            options = [ir.Constant(WORD, option) for option in (0, 2, 1)]  # to read, into the second cache, data
            builder.call(function, [place, *options])
            return carried

        loop(builder, builder.sdiv(count, long(_LINE_BYTES)), [], step)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@emitted
def raise_e(_context: Any, address: Any, vectors: Any) -> Any:
    """Replace ``vectors`` · `LANES` float32 numbers by e to them."""
    del address, vectors

    def generate(context: Any, builder: Builder, _signature: Any, arguments: Sequence[Value]) -> Value:
        address, vectors = arguments

        def step(index: Value, carried: list[Value]) -> list[Value]:
            place = builder.add(address, builder.mul(index, long(4 * LANES)))
            store(builder, powers(builder, load(builder, place)), place)
            return carried

        loop(builder, vectors, [], step)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@emitted
def soften(  # noqa: PLR0913, PLR0917  # a row of scores and what is known of it so far
    _context: Any, vectors: Any, scores: Any, low: Any, high: Any, highest: Any, total: Any, output: Any, length: Any
) -> Any:
    """Take one more strip of scores into a running softmax.

    ``scores`` are ``vectors`` · `LANES` numbers, of which those at ``low`` to ``high`` may be seen. These become
    weights, e to the score less the greatest so far, the others 0. ``highest`` (the greatest before) and ``total`` (the
    weights' sum so far) are addresses of numbers; where the greatest changes, ``total`` and the ``length`` vectors of
    ``output`` are scaled.
    """
    count = vectors.literal_value
    signature = types.void(vectors, *[types.int64] * 7)
    del scores, low, high, highest, total, output, length

    def generate(context: Any, builder: Builder, _signature: Any, arguments: Sequence[Value]) -> Value:
        _, scores, low, high, highest, total, output, length = arguments

        def greater(left: Value, right: Value) -> Value:
            return builder.select(builder.fcmp_ordered(">", left, right), left, right)

        first, end = (spread_word(builder, builder.trunc(bound, WORD)) for bound in (low, high))
        places = [builder.add(scores, long(index * 4 * LANES)) for index in range(count)]
        seen, read = [], []
        for index, place in enumerate(places):
            own = ir.Constant(WORDS, list(range(index * LANES, (index + 1) * LANES)))
            seen.append(builder.and_(builder.icmp_signed(">=", own, first), builder.icmp_signed("<", own, end)))
            read.append(builder.select(seen[-1], load(builder, place), vector_of(LOWEST)))
        before = load(builder, highest, FLOAT)
        lanes = spread(builder, before)
        for vector in read:
            lanes = greater(vector, lanes)
        peak = over_lanes(builder, lanes, greater)
        level = spread(builder, peak)
        added = vector_of(0.0)
        for place, mask, vector in zip(places, seen, read, strict=True):
            weights = builder.select(mask, powers(builder, builder.fsub(vector, level)), vector_of(0.0))
            store(builder, weights, place)
            added = builder.fadd(added, weights)
        part = over_lanes(builder, added, builder.fadd)
        with builder.if_then(builder.fcmp_ordered(">", peak, before)):
            shrink = powers(builder, spread(builder, builder.fsub(before, peak)))
            scaled = builder.fmul(load(builder, total, FLOAT), builder.extract_element(shrink, ir.Constant(WORD, 0)))
            store(builder, scaled, total)
            store(builder, peak, highest)

            def step(index: Value, carried: list[Value]) -> list[Value]:
                place = builder.add(output, builder.mul(index, long(4 * LANES)))
                store(builder, builder.fmul(load(builder, place), shrink), place)
                return carried

            loop(builder, length, [], step)
        store(builder, builder.fadd(load(builder, total, FLOAT), part), total)
        return context.get_dummy_value()

    return signature, generate


@emitted
def widen_folded(_context: Any, narrow: Any, wide: Any, groups: Any) -> Any:
    """Write ``groups`` groups of bfloat16 numbers as float32, folded."""
    del narrow, wide, groups

    def generate(context: Any, builder: Builder, _signature: Any, arguments: Sequence[Value]) -> Value:
        narrow, wide, groups = arguments

        def step(index: Value, carried: list[Value]) -> list[Value]:
            read = read_group(builder, builder.add(narrow, builder.mul(index, long(GROUP * 2))), NARROW_BYTES)
            place = builder.add(wide, builder.mul(index, long(GROUP * 4)))
            for half, value in enumerate(read):
                store(builder, value, builder.add(place, long(half * 4 * LANES)))
            return carried

        loop(builder, groups, [], step)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


@emitted
def narrow_folded(_context: Any, wide: Any, factor: Any, narrow: Any, groups: Any) -> Any:
    """Write ``groups`` groups of folded float32 numbers, times ``factor``, as bfloat16."""
    del wide, factor, narrow, groups

    def generate(context: Any, builder: Builder, _signature: Any, arguments: Sequence[Value]) -> Value:
        wide, factor, narrow, groups = arguments
        scale = spread(builder, factor)

        def step(index: Value, carried: list[Value]) -> list[Value]:
            pair = read_group(builder, builder.add(wide, builder.mul(index, long(GROUP * 4))), 4)
            even, odd = (rounded_word(builder, builder.fmul(half, scale), words_of) for half in pair)
            words = builder.or_(builder.lshr(even, words_of(16)), builder.and_(odd, words_of(0xFFFF0000)))
            store(builder, words, builder.add(narrow, builder.mul(index, long(GROUP * 2))))
            return carried

        loop(builder, groups, [], step)
        return context.get_dummy_value()

    return types.void(types.int64, types.float32, types.int64, types.int64), generate


@emitted
def fold(_context: Any, plain: Any, folded: Any, groups: Any) -> Any:
    """Write ``groups`` groups of float32 numbers folded."""
    del plain, folded, groups

    def generate(context: Any, builder: Builder, _signature: Any, arguments: Sequence[Value]) -> Value:
        plain, folded, groups = arguments

        def step(index: Value, carried: list[Value]) -> list[Value]:
            offset = builder.mul(index, long(GROUP * 4))
            halves = read_group(builder, builder.add(plain, offset), 4)
            for parity in range(2):
                mask = ir.Constant(WORDS, list(range(parity, GROUP, 2)))
                place = builder.add(builder.add(folded, offset), long(parity * 4 * LANES))
                store(builder, builder.shuffle_vector(*halves, mask), place)
            return carried

        loop(builder, groups, [], step)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate
