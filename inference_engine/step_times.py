"""How long steps take, by how many answers they write and how many guesses they check: measured, not modelled.

A step's time is a staircase that depends on the machine, its kernels and the length of the contexts, so it is kept as
a table of what was measured lately. What was never measured is estimated from its neighbours, on the hopeful side: what
looks good is tried and then measured, what looks bad would never be.
"""

from bisect import bisect_right
from dataclasses import dataclass

LEVELS: tuple[int, ...] = (
    *range(9),
    10,
    12,
    14,
    16,
    20,
    24,
    28,
    32,
    40,
    48,
    56,
    64,
    80,
    96,
    112,
    128,
    160,
    192,
    256,
    384,
    512,
    1024,
)
"""The table's rows and columns. Steps between two levels count for the lower one."""

SMOOTHING = 0.15
LARGEST_RISE = 2.0
"""A measurement counts as at most so many times what was known: machines stumble, but never run too fast."""
LEAST_COUNTS = 3
"""Of so many first measurements the least counts."""
MEASURED_AT_LEAST = 2
"""Plain steps of a level before anything is compared with them."""
HOPED_PER_GUESS = 0.03
"""Part of a plain step that a guess is hoped to cost where nothing is known."""
LEAST_READ = 16
"""Tokens of which the time of reading is learned; fewer cost less than a round's time varies."""
HOPED_PER_ROUND = 0.1
"""The same of a draft model's round of guesses."""
HOPED_PER_TOKEN = 0.002
"""The same of a token that a draft model reads."""


def level_of(count: int) -> int:
    """Return the level that ``count`` counts for."""
    return LEVELS[bisect_right(LEVELS, count) - 1]


class StepTimes:
    """The table. All times are seconds."""

    def __init__(self) -> None:
        self._cells: dict[int, dict[int, _Cell]] = {}
        """By batch and guesses, both levels."""

    def learn(self, batch: int, guesses: int, elapsed_s: float) -> None:
        """Take in a step that wrote ``batch`` answers, checked ``guesses`` in all and did nothing else."""
        row = self._cells.setdefault(level_of(batch), {})
        row.setdefault(level_of(guesses), _Cell()).learn(elapsed_s)

    def plain_s(self, batch: int) -> float | None:
        """Return the time of a step without guesses, None while it is not known well enough."""
        cell = self._cells.get(level_of(batch), {}).get(0)
        return cell.seconds if cell is not None and cell.measured >= MEASURED_AT_LEAST else None

    def checking_s(self, batch: int, guesses: int) -> float:
        """Return the time of a step with ``guesses`` in all; that without them must be known."""
        level = level_of(batch)
        row = self._cells[level]
        plain = row[0].seconds
        near = row if len(row) > 1 else self._nearest(level)
        if near is None:
            return plain * (1.0 + HOPED_PER_GUESS * guesses)
        return plain * _between(near, guesses) / near[0].seconds

    def most_measured(self, batch: int) -> int:
        """Return the most guesses of a step whose time is known, of this batch or of the nearest that has any."""
        level = level_of(batch)
        row = self._cells.get(level, {})
        near = row if len(row) > 1 else self._nearest(level)
        return max(near) if near else 0

    def _nearest(self, level: int) -> "dict[int, _Cell] | None":
        """Return the row of the batch nearest to ``level`` that has checked guesses."""
        others = [other for other, cells in self._cells.items() if len(cells) > 1 and 0 in cells]
        return self._cells[min(others, key=lambda other: abs(other - level))] if others else None


class DraftTimes:
    """How long a draft model takes. All times are seconds."""

    def __init__(self) -> None:
        self._rounds: dict[int, _Cell] = {}
        """One guess for each of some answers, by their number, a level."""
        self._reading = _Cell()
        """One token of a prompt."""

    def round_s(self, answers: int, plain_s: float) -> float:
        """Return the time of one round of guesses."""
        if not self._rounds:
            return plain_s * HOPED_PER_ROUND
        level = level_of(answers)
        return self._rounds[min(self._rounds, key=lambda other: abs(other - level))].seconds

    def reading_s(self, tokens: int, plain_s: float) -> float:
        """Return the time of reading ``tokens``."""
        return tokens * (self._reading.seconds if self._reading.measured else plain_s * HOPED_PER_TOKEN)

    def learn(self, elapsed_s: float, rounds: int, answers: int, read: int) -> float:
        """Take in what the draft model did in a step; return the part of ``elapsed_s`` that went into reading."""
        if read < LEAST_READ:
            if rounds:
                self._rounds.setdefault(level_of(answers), _Cell()).learn(elapsed_s / rounds)
            return 0.0
        guessing_s = rounds * self.round_s(answers, 0.0)
        reading_s = max(0.0, elapsed_s - guessing_s)
        self._reading.learn(reading_s / read)
        return reading_s


@dataclass(slots=True)
class _Cell:
    seconds: float = 0.0
    measured: int = 0

    def learn(self, elapsed_s: float) -> None:
        if self.measured < LEAST_COUNTS:
            self.seconds = elapsed_s if not self.measured else min(self.seconds, elapsed_s)
        else:
            self.seconds += SMOOTHING * (min(elapsed_s, self.seconds * LARGEST_RISE) - self.seconds)
        self.measured += 1


def _between(row: dict[int, _Cell], guesses: int) -> float:
    """Estimate from the known numbers of guesses on both sides. Beyond the last one, a guess costs what is hoped."""
    level = level_of(guesses)
    if level in row:
        return row[level].seconds
    low = max(count for count in row if count < level)
    above = [count for count in row if count > level]
    if not above:
        return row[low].seconds + row[0].seconds * HOPED_PER_GUESS * (guesses - low)
    high = min(above)
    return row[low].seconds + (row[high].seconds - row[low].seconds) * (guesses - low) / (high - low)
