"""Why a block may not be reused. A block has a set of holds and is free when the set is empty.

Two lifetimes can own one block, a request and a writer: aborting the request removes the request's hold and never the
writer's, so late bytes can only reach blocks that nobody else was given.
"""

from dataclasses import dataclass

from cluster_core.identity import Attempt, RequestId


@dataclass(frozen=True, slots=True)
class RequestHold:
    """A running request reads or writes the block."""

    request_id: RequestId
    attempt: Attempt
    submission: int = 0
    """Numbers the worker's submissions: a client may use an id again before the blocks of its first use are back."""
    fetching: bool = False
    """Whether it waits for other workers to fill the block: apart from the blocks that it reads or writes itself."""


@dataclass(frozen=True, slots=True)
class LeaseHold:
    """The block was promised to an importer."""

    request_id: RequestId
    attempt: Attempt
    loan: int = 0
    """0 for what the request's prefill exports; else the number of a loan from the cache, which lives by itself."""


@dataclass(frozen=True, slots=True)
class WriterHold:
    """Bytes from another worker may still land in the block."""

    tag: int


@dataclass(frozen=True, slots=True)
class CacheHold:
    """The prefix cache knows the block. The only hold that an allocation may take away."""


Hold = RequestHold | LeaseHold | WriterHold | CacheHold
