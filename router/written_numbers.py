"""The numbers that clients write, as they wrote them, within their bounds."""

import math
import struct

from cluster_rpc.field_checks import refuse, require

EXACT = 1e6
"""Whole numbers below this are written in at most six digits: they arrive as they were sent."""


def written_number(value: float) -> float:
    """Return the number that the client wrote: 0.7, where the wire's 32 bits say 0.699999988.

    It is the shortest decimal that the same 32 bits stand for, so no request means anything else by it.
    """
    if not math.isfinite(value) or (value.is_integer() and abs(value) < EXACT):
        return value
    candidates = (float(f"{value:.{digits}g}") for digits in range(6, 10))
    return next((number for number in candidates if _float32(number) == value), value)


def number_between(value: float, lowest: float, highest: float, field: str, meaning: str = "") -> float:
    """Return a number of ``lowest`` to ``highest``; ``meaning`` is added to the refusal of any other."""
    number = written_number(value)
    if not lowest <= number <= highest:
        refuse(field, f"is {number}: must be {lowest:g} to {highest:g}{meaning}")
    return number


def number_above_zero(value: float, highest: float, field: str) -> float:
    """Return a number above 0 and at most ``highest``; 0 means that none is given, which means 1."""
    number = written_number(value)
    if not 0 <= number <= highest:
        refuse(field, f"is {number}: must be above 0 and at most {highest:g} (unset means 1)")
    return number or 1.0


def count_between(value: int, lowest: int, highest: int, field: str) -> int:
    """Return a whole number of ``lowest`` to ``highest``."""
    require(lowest <= value <= highest, field, f"is {value}: must be {lowest} to {highest}")
    return value


def _float32(number: float) -> float:
    (value,) = struct.unpack("f", struct.pack("f", number))
    return float(value)
