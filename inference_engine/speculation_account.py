"""What speculation may lose: seconds, counted against plain decoding, step by step.

Every step that checks guesses is settled at what it was worth: the time in which plain steps would have written as
much, less the time it took. Losses come out of the *stake*, which cannot be overdrawn by more than one step and is
filled by gains, and by a small part of the time of plain steps. So whatever the guesses, the machine or the
estimates do, speculation costs at most that part of the time, and the first stake.

A draft model also reads prompts, which pays only later. That is *lent*: gains repay it before they fill the stake, and
nothing is lent beyond a limit. What is never repaid is lost once.
"""

STAKE_STEPS = 6.0
"""The stake's limit, and what it is at the start, in plain steps."""
EARNED_SHARE = 0.006
"""Part of a plain step's time that goes to the stake."""
LENT_STEPS = 12.0
"""The limit of what is lent, in plain steps."""


class SpeculationAccount:
    """Stake and debt, in seconds."""

    def __init__(self) -> None:
        self._stake_s: float | None = None
        self._debt_s = 0.0

    def stake_s(self, plain_s: float) -> float:
        """Return what may be lost now, where a plain step takes ``plain_s``."""
        full = STAKE_STEPS * plain_s
        self._stake_s = full if self._stake_s is None else min(self._stake_s, full)
        return self._stake_s

    def is_full(self, plain_s: float) -> bool:
        """Whether the stake is near its limit: there is something to try with."""
        return self.stake_s(plain_s) >= STAKE_STEPS * plain_s * 0.75

    def may_lend(self, seconds: float, plain_s: float) -> bool:
        """Whether so much can be lent."""
        return self._debt_s + seconds <= LENT_STEPS * plain_s

    def lend(self, seconds: float) -> None:
        """Count a loan that was made."""
        self._debt_s += seconds

    def earn(self, elapsed_s: float, plain_s: float) -> None:
        """Take in a plain step."""
        self.settle(elapsed_s * EARNED_SHARE, plain_s)

    def settle(self, gained_s: float, plain_s: float) -> None:
        """Take in a gain, or a loss, which is a negative one."""
        stake_s = self.stake_s(plain_s)
        repaid_s = min(max(gained_s, 0.0), self._debt_s)
        self._debt_s -= repaid_s
        self._stake_s = min(stake_s + gained_s - repaid_s, STAKE_STEPS * plain_s)
