"""How probable a token was, and what else could have stood in its place."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprobs:
    """Natural logarithms of probabilities, of the model's own distribution: before bias, penalties and temperature."""

    token_id: int
    logprob: float
    rank: int
    """1 is the most probable token."""
    top: tuple[tuple[int, float], ...] = ()
    """The most probable tokens and theirs, best first."""
