"""Names of things. Different things have different types, so that a mix-up is a type error."""

import secrets
from enum import Enum
from typing import NewType

WorkerId = NewType("WorkerId", str)
"""A worker's place in the cluster, such as ``decode-1``. A restarted worker keeps it."""

Incarnation = NewType("Incarnation", int)
"""One life of a process: a random 64-bit number, new at every start, never 0."""

RequestId = NewType("RequestId", str)

Attempt = NewType("Attempt", int)
"""One try at a request: 1, 2, ... What carries a lower number than the current one is dropped."""

BlockHash = NewType("BlockHash", bytes)
"""16 bytes that stand for a block's tokens, all tokens before them, and the salt."""


class Role(Enum):
    """What a worker does."""

    PREFILL = "prefill"
    DECODE = "decode"


def new_incarnation() -> Incarnation:
    """Draw the number of a new process life."""
    return Incarnation(secrets.randbits(64) | 1)
