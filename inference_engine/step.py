"""What one engine step computes, and what comes out of it."""

from collections.abc import Sequence
from dataclasses import dataclass

from cluster_core.sampling import Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceSlice:
    """Some consecutive tokens of one sequence: a chunk of its prompt, or the one token written last."""

    token_ids: Sequence[int]
    """At least one."""
    start: int
    """Position of the first of them; the KV of every token before it is in the pool."""
    block_table: Sequence[int]
    """The sequence's blocks in order, enough to hold these tokens too. More are allowed."""
    draw: Sampling | None
    """How the token after them is drawn, at the position ``start + len(token_ids)``; None draws none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlan:
    """Slices of different sequences, at least one; their written blocks must not overlap."""

    slices: tuple[SequenceSlice, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """One entry a slice, in the plan's order."""

    tokens: tuple[int | None, ...]
    """The drawn token, None where none was asked for."""
    elapsed_s: float
