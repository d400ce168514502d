"""Bounds on what arrives from a peer. Each function returns the value as our type or raises `InvalidField`.

Numbers are bounded before anything uses them as a size, an index or a loop count.
"""

import math
import re
from collections.abc import Sequence
from typing import NoReturn

from cluster_core.errors import InvalidField
from cluster_core.hash_chain import HASH_BYTES
from cluster_core.identity import Attempt, Incarnation, RequestId, WorkerId

MAX_BLOCKS = 1 << 20
"""Blocks that one message may name: far above any context, far below what hurts."""
MAX_TOKENS = 1 << 22
MAX_CHOICES = 64
"""Answers that one request may have: more than the router lets a client ask for."""
MAX_BINDINGS = 1024
"""Decode workers that one attempt may be given to, one after the other."""
MAX_REASON_BYTES = 2048
MAX_SPAN_S = 1e7
DIGEST_BYTES = 16

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_ORDER_ID = re.compile(_REQUEST_ID.pattern + r"(~[0-9]{1,2})?")
_WORKER_ID = re.compile(r"[a-z0-9-]{1,63}")


def refuse(field: str, reason: str) -> NoReturn:
    """Raise `InvalidField`."""
    raise InvalidField(field, reason)


def require(condition: bool, field: str, reason: str) -> None:
    """Raise `InvalidField` unless ``condition`` holds."""
    if not condition:
        refuse(field, reason)


def request_id(value: str, field: str = "request_id") -> RequestId:
    """1 to 64 of the characters that an id may have."""
    if not _REQUEST_ID.fullmatch(value):
        refuse(field, "must be 1 to 64 characters of A-Z a-z 0-9 . _ -")
    return RequestId(value)


def order_id(value: str, field: str = "request_id") -> RequestId:
    """Check an id as router and workers use it among themselves: perhaps with a choice's number behind a ``~``."""
    if not _ORDER_ID.fullmatch(value):
        refuse(field, "must be 1 to 64 characters of A-Z a-z 0-9 . _ -, perhaps with a ~ and a choice's number")
    return RequestId(value)


def worker_id(value: str, field: str) -> WorkerId:
    """1 to 63 of the characters that a worker's name may have."""
    if not _WORKER_ID.fullmatch(value):
        refuse(field, "must be 1 to 63 characters of a-z 0-9 -")
    return WorkerId(value)


def incarnation(value: int, field: str) -> Incarnation:
    """Any number but 0."""
    if value == 0:
        refuse(field, "must not be 0")
    return Incarnation(value)


def attempt(value: int) -> Attempt:
    """1 or more."""
    if value == 0:
        refuse("attempt", "must be at least 1")
    return Attempt(value)


def seconds(value: float, field: str) -> float:
    """Finite and not negative."""
    if not math.isfinite(value) or value < 0:
        refuse(field, f"must be a finite number of seconds, at least 0, not {value}")
    return value


def signed_seconds(value: float, field: str) -> float:
    """Seconds into the future or, negative, into the past; never so many that sums of them are not numbers."""
    if not abs(value) <= MAX_SPAN_S:
        refuse(field, f"must be a number of seconds from -{MAX_SPAN_S:g} to {MAX_SPAN_S:g}, not {value}")
    return value


def exact_bytes(value: bytes, size: int, field: str) -> bytes:
    """Exactly ``size`` bytes."""
    if len(value) != size:
        refuse(field, f"must be {size} bytes long, not {len(value)}")
    return value


def root_hash(value: bytes) -> bytes:
    """As long as every hash of the chain."""
    return exact_bytes(value, HASH_BYTES, "root_hash")


def at_most(count: int, limit: int, field: str) -> None:
    """Refuse more than ``limit`` items or bytes."""
    if count > limit:
        refuse(field, f"must not be longer than {limit}, is {count}")


def positions(values: Sequence[int], field: str) -> tuple[int, ...]:
    """Each position once, none beyond `MAX_BLOCKS`."""
    at_most(len(values), MAX_BLOCKS, field)
    found = tuple(values)
    if len(set(found)) != len(found):
        refuse(field, "must not name a position twice")
    if found and max(found) >= MAX_BLOCKS:
        refuse(field, f"must be below {MAX_BLOCKS}")
    return found
