"""How likely a guess is to come true: of one request as far as it is known, of all requests where it is not.

A guess is a trial; those after the first that failed are none, since they were never compared. Old trials count less
and less, by trials and by steps: what was hopeless is hoped for again after a while.
"""

from dataclasses import dataclass, field
from enum import Enum


class GuessKind(Enum):
    """Where a guess comes from, with the chance that one has before anything is known of it."""

    SHORT_MATCH = 0.3
    """Two or three tokens stood in the text before as they stand at its end."""
    MATCH = 0.6
    LONG_MATCH = 0.85
    """Eight or more."""
    DRAFT_MODEL = 0.75


LONG_MATCH_TOKENS = 8
MATCH_TOKENS = 4

HIGHEST_CHANCE = 0.98
KEPT_PER_TRIAL = 0.93
"""Of one request: about the last 14 trials count."""
KEPT_PER_STEP = 0.995
POOL_KEPT_PER_TRIAL = 0.985
POOL_KEPT_PER_STEP = 0.999
OWN_WEIGHT = 3.0
"""As how many trials of a request the pool's chance counts."""
POOL_WEIGHT = 6.0
"""As how many trials of the pool the kind's first chance counts."""


def kind_of_match(matched: int) -> GuessKind:
    """Return the kind of a guess of prompt look-up by how many tokens agreed."""
    if matched >= LONG_MATCH_TOKENS:
        return GuessKind.LONG_MATCH
    return GuessKind.MATCH if matched >= MATCH_TOKENS else GuessKind.SHORT_MATCH


@dataclass(slots=True)
class _Tally:
    trials: float = 0.0
    hits: float = 0.0
    step: int = 0

    def age(self, step: int, kept_per_step: float) -> None:
        kept: float = kept_per_step ** (step - self.step)
        self.trials *= kept
        self.hits *= kept
        self.step = step

    def add(self, guessed: int, accepted: int, kept_per_trial: float) -> None:
        trials = min(guessed, accepted + 1)
        kept: float = kept_per_trial**trials
        self.trials = self.trials * kept + trials
        self.hits = self.hits * kept + accepted


@dataclass(slots=True)
class Acceptance:
    """What is known of one request's guesses."""

    pool: "AcceptancePool"
    _tallies: dict[GuessKind, _Tally] = field(default_factory=dict)

    def chance(self, kind: GuessKind, step: int) -> float:
        """Return the chance of one more guess, given that those before it came true."""
        expected = self.pool.chance(kind, step)
        tally = self._tallies.get(kind)
        if tally is None:
            return expected
        tally.age(step, KEPT_PER_STEP)
        return min(HIGHEST_CHANCE, (OWN_WEIGHT * expected + tally.hits) / (OWN_WEIGHT + tally.trials))

    def learn(self, kind: GuessKind, step: int, *, guessed: int, accepted: int) -> None:
        """Take in that the first ``accepted`` of ``guessed`` guesses came true."""
        tally = self._tallies.setdefault(kind, _Tally(step=step))
        tally.age(step, KEPT_PER_STEP)
        tally.add(guessed, accepted, KEPT_PER_TRIAL)
        self.pool.learn(kind, step, guessed=guessed, accepted=accepted)


class AcceptancePool:
    """What is known of all requests' guesses."""

    def __init__(self) -> None:
        self._tallies = {kind: _Tally() for kind in GuessKind}

    def chance(self, kind: GuessKind, step: int) -> float:
        """Return the chance of a guess of a request of which nothing is known."""
        tally = self._tallies[kind]
        tally.age(step, POOL_KEPT_PER_STEP)
        return min(HIGHEST_CHANCE, (POOL_WEIGHT * kind.value + tally.hits) / (POOL_WEIGHT + tally.trials))

    def learn(self, kind: GuessKind, step: int, *, guessed: int, accepted: int) -> None:
        """As `Acceptance.learn`."""
        tally = self._tallies[kind]
        tally.age(step, POOL_KEPT_PER_STEP)
        tally.add(guessed, accepted, POOL_KEPT_PER_TRIAL)
