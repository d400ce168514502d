"""bfloat16 for numba, which does not know it: 16-bit words that are widened when read and rounded when stored."""

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types

from inference_engine.code_builder import emitted

_HALF, _WORD, _FLOAT = ir.IntType(16), ir.IntType(32), ir.FloatType()


def _word(number: int) -> Any:
    return ir.Constant(_WORD, number)


@emitted
def wide(_context: Any, number: Any) -> Any:
    """Return a number of an array, bfloat16 or float32, as float32."""

    def generate(_: Any, builder: Any, _signature: Any, arguments: Sequence[Any]) -> Any:
        if number != types.uint16:
            return arguments[0]
        return builder.bitcast(builder.shl(builder.zext(arguments[0], _WORD), _word(16)), _FLOAT)

    return types.float32(number), generate


@emitted
def narrow(_context: Any, number: Any, array: Any) -> Any:
    """Return a float32 as a number of ``array``'s kind: bfloat16 rounded to nearest, ties to even, or as it is."""
    del number

    def generate(_: Any, builder: Any, _signature: Any, arguments: Sequence[Any]) -> Any:
        if array.dtype != types.uint16:
            return arguments[0]
        return builder.trunc(builder.lshr(rounded_word(builder, arguments[0], _word), _word(16)), _HALF)

    return array.dtype(types.float32, array), generate


@emitted
def rounded(_context: Any, number: Any, array: Any) -> Any:
    """Return a float32 as ``array`` would hold it, still as float32."""
    del number

    def generate(_: Any, builder: Any, _signature: Any, arguments: Sequence[Any]) -> Any:
        if array.dtype != types.uint16:
            return arguments[0]
        return builder.bitcast(builder.and_(rounded_word(builder, arguments[0], _word), _word(0xFFFF0000)), _FLOAT)

    return types.float32(types.float32, array), generate


def rounded_word(builder: Any, number: Any, constant: Callable[[int], Any]) -> Any:
    """Return the word of ``number`` whose upper half is its bfloat16; what is no number stays none.

    ``number`` may be a vector; ``constant`` makes words of its shape.
    """
    word = builder.bitcast(number, constant(0).type)
    odd = builder.and_(builder.lshr(word, constant(16)), constant(1))
    nearest = builder.add(builder.add(word, constant(0x7FFF)), odd)
    return builder.select(builder.fcmp_unordered("uno", number, number), word, nearest)
