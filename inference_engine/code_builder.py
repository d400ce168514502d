"""How machine code is written down for numba to call: vectors of numbers, loops over them, and their sums.

A function that is `emitted` builds LLVM's intermediate code for a call of it from a compiled function.
"""

from collections.abc import Callable, Sequence
from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba.extending import intrinsic

from inference_engine import kernel_cache

assert kernel_cache  # imported for what it does

LANES = 16 if llvmlite.binding.get_host_cpu_features().get("avx512f") else 8
GROUP = 2 * LANES
"""Numbers that a step of a loop takes from each row."""
TILE_ROWS = 6 if LANES == 16 else 2
TILE_COLUMNS = 4
"""Rows by columns of sums that fit the registers."""
CHUNK_GROUPS = 2
"""Groups of a row that `blend` keeps in registers."""
LOWEST = -1e30
"""Less than any score."""
NARROW_BYTES = 2  # a bfloat16

WORD, LONG, FLOAT = ir.IntType(32), ir.IntType(64), ir.FloatType()
VECTOR, WORDS = ir.VectorType(FLOAT, LANES), ir.VectorType(WORD, LANES)

_LOG2_E = 1.4426950408889634
_SERIES = (0.00015403530393381608, 0.0013333558146428443, 0.009618129107628477, 0.05550410866482158)
_SERIES_END = (0.2402265069591007, 0.6931471805599453, 1.0)
_ROUNDER = 1.5 * 2**23  # adding it leaves a whole number in the low bits
_ROUNDER_BITS = 0x4B400000

Builder = Any
Value = Any


def emitted(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let compiled functions call ``function``, which gives the call's signature and writes its code."""
    call: Any = intrinsic(prefer_literal=True)(function)
    made: Callable[..., Any] = call
    return made


def long(number: int) -> Value:
    """Return a 64-bit constant."""
    return ir.Constant(LONG, number)


def vector_of(number: float) -> Value:
    """Return a vector of one constant."""
    return ir.Constant(VECTOR, [number] * LANES)


def words_of(number: int) -> Value:
    """Return words of one constant."""
    return ir.Constant(WORDS, [number] * LANES)


def load(builder: Builder, address: Value, kind: Any = VECTOR) -> Value:
    """Read a value of this kind from memory."""
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=2)


def store(builder: Builder, value: Value, address: Value) -> None:
    """Write a value to memory."""
    builder.store(value, builder.inttoptr(address, value.type.as_pointer()), align=2)


def _call(builder: Builder, name: str, *arguments: Value) -> Value:
    function = builder.module.globals.get(name)
    if function is None:
        kind = ir.FunctionType(VECTOR, [argument.type for argument in arguments])
        function = ir.Function(builder.module, kind, name)
    return builder.call(function, arguments)


def multiply_add(builder: Builder, left: Value, right: Value, addend: Value) -> Value:
    """Return left · right + addend, rounded once."""
    return _call(builder, f"llvm.fma.v{LANES}f32", left, right, addend)


def spread(builder: Builder, scalar: Value) -> Value:
    """Return a vector of one number."""
    first = builder.insert_element(ir.Constant(VECTOR, ir.Undefined), scalar, ir.Constant(WORD, 0))
    return builder.shuffle_vector(first, first, words_of(0))


def spread_word(builder: Builder, scalar: Value) -> Value:
    """Return words of one number."""
    first = builder.insert_element(ir.Constant(WORDS, ir.Undefined), scalar, ir.Constant(WORD, 0))
    return builder.shuffle_vector(first, first, words_of(0))


def read_group(builder: Builder, address: Value, number_bytes: int) -> tuple[Value, Value]:
    """Read a group: its even and odd numbers where they are narrow, its first and second half where they are not."""
    if number_bytes == NARROW_BYTES:
        words = load(builder, address, WORDS)
        even = builder.bitcast(builder.shl(words, words_of(16)), VECTOR)
        return even, builder.bitcast(builder.and_(words, words_of(0xFFFF0000)), VECTOR)
    return load(builder, address), load(builder, builder.add(address, long(4 * LANES)))


def places(builder: Builder, address: Value, stride: Value, count: int) -> list[Value]:
    """Return the addresses of the first ``count`` rows."""
    return [builder.add(address, builder.mul(stride, long(index))) for index in range(count)]


def loop(
    builder: Builder, count: Value, carried: Sequence[Value], body: Callable[[Value, list[Value]], list[Value]]
) -> list[Value]:
    """Run ``body(index, carried)`` ``count`` times, perhaps never; return what is carried out of the last turn."""
    before = builder.basic_block
    inside, after = builder.append_basic_block("turn"), builder.append_basic_block("after")
    builder.cbranch(builder.icmp_signed(">", count, long(0)), inside, after)
    builder.position_at_end(inside)
    index = builder.phi(LONG)
    index.add_incoming(long(0), before)
    incoming = [builder.phi(value.type) for value in carried]
    for phi, value in zip(incoming, carried, strict=True):
        phi.add_incoming(value, before)
    outgoing = body(index, incoming)
    following = builder.add(index, long(1))
    index.add_incoming(following, builder.basic_block)
    for phi, value in zip(incoming, outgoing, strict=True):
        phi.add_incoming(value, builder.basic_block)
    last = builder.basic_block
    builder.cbranch(builder.icmp_signed("<", following, count), inside, after)
    builder.position_at_end(after)
    results = []
    for value, out in zip(carried, outgoing, strict=True):
        phi = builder.phi(value.type)
        phi.add_incoming(value, before)
        phi.add_incoming(out, last)
        results.append(phi)
    return results


def by_rows(builder: Builder, rows: Value, emit: Callable[[int], None]) -> None:
    """Write code for each number of rows up to `TILE_ROWS`, and a jump to the one that is right."""
    after = builder.append_basic_block("done")
    cases = [builder.append_basic_block(f"rows{height}") for height in range(1, TILE_ROWS + 1)]
    jump = builder.switch(rows, cases[-1])
    for height, case in enumerate(cases, start=1):
        if height < TILE_ROWS:
            jump.add_case(long(height), case)
        builder.position_at_end(case)
        emit(height)
        builder.branch(after)
    builder.position_at_end(after)


def over_lanes(builder: Builder, lanes: Value, combine: Callable[[Value, Value], Value]) -> Value:
    """Return what all lanes are together, halves combined with halves."""
    width = LANES
    while width > 1:
        width //= 2
        mask = ir.Constant(WORDS, [(lane + width) % LANES for lane in range(LANES)])
        lanes = combine(lanes, builder.shuffle_vector(lanes, lanes, mask))
    return builder.extract_element(lanes, ir.Constant(WORD, 0))


def four_sums(builder: Builder, vectors: Sequence[Value]) -> Value:
    """Return the sums of four vectors' lanes as one vector of four."""

    def paired(left: Value, right: Value, low: Sequence[int], high: Sequence[int]) -> Value:
        masks = [
            ir.Constant(WORDS, [lane + place for lane in range(0, LANES, 4) for place in places])
            for places in (low, high)
        ]
        return builder.fadd(*(builder.shuffle_vector(left, right, mask) for mask in masks))

    first = [
        paired(vectors[place], vectors[place + 1], (0, LANES, 1, LANES + 1), (2, LANES + 2, 3, LANES + 3))
        for place in (0, 2)
    ]
    sums = paired(first[0], first[1], (0, 1, LANES, LANES + 1), (2, 3, LANES + 2, LANES + 3))
    lanes = LANES
    while lanes > TILE_COLUMNS:
        lanes //= 2
        halves = [
            builder.shuffle_vector(
                sums, sums, ir.Constant(ir.VectorType(WORD, lanes), list(range(first, first + lanes)))
            )
            for first in (0, lanes)
        ]
        sums = builder.fadd(*halves)
    return sums


def powers(builder: Builder, exponents: Value) -> Value:
    """Return e to each exponent, clamped to -86..88: 2^n · 2^r with whole n; relative error below 3e-7.

    What is no number stays none.
    """
    low, high = vector_of(-86.0), vector_of(88.0)
    clamped = builder.select(builder.fcmp_ordered("<", exponents, low), low, exponents)
    clamped = builder.select(builder.fcmp_ordered(">", clamped, high), high, clamped)
    scaled = builder.fmul(clamped, vector_of(_LOG2_E))
    shifted = builder.fadd(scaled, vector_of(_ROUNDER))
    rest = builder.fsub(scaled, builder.fsub(shifted, vector_of(_ROUNDER)))
    series = vector_of(_SERIES[0])
    for coefficient in (*_SERIES[1:], *_SERIES_END):
        series = multiply_add(builder, series, rest, vector_of(coefficient))
    whole = builder.sub(builder.bitcast(shifted, WORDS), words_of(_ROUNDER_BITS - 127))
    return builder.fmul(series, builder.bitcast(builder.shl(whole, words_of(23)), VECTOR))
