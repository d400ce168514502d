"""What a worker needs to choose the next token."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Sampling of one request, complete: nothing is left to a default on the worker.

    A draw depends on ``seed`` and the position of the drawn token alone, so a request that was moved or resumed
    draws what it would have drawn undisturbed.
    """

    temperature: float
    """0 is greedy."""
    top_p: float
    top_k: int
    """0 means all tokens."""
    seed: int
    max_tokens: int
    """Tokens still to be written, at least 1."""
    stop_token_ids: frozenset[int]
    """Tokens that end the answer, the model's end-of-text tokens among them unless the client ignores those."""
