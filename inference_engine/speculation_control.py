"""How many guesses of each answer a step checks: as many as make the most tokens a second, often none.

A guess costs a row of the step whether it comes true or not, and it counts only if all guesses before it do. With the
chance a of each, g guesses bring (1 - a^(g+1)) / (1 - a) tokens instead of one (Leviathan et al., 2023, equation 1). So
the guesses of all answers of a step are taken in the order of their chances a, a^2, a^3, ..., and of all lengths of
that list the one is chosen with the most expected tokens a second, by the times that steps were measured to take.

Nothing is chosen that gains less than `LEAST_GAIN`, or that could cost more than the account allows. Where nothing
gains, a step is risked now and then, when the account is full: requests, load and estimates change.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from inference_engine.acceptance import Acceptance, AcceptancePool, GuessKind
from inference_engine.speculation_account import SpeculationAccount
from inference_engine.step_times import LEVELS, DraftTimes, StepTimes, level_of

LEAST_GAIN = 1.04
PLAIN_EVERY = 64
"""After so many steps with guesses comes a plain one, so that what they are compared with stays known."""
TRY_EVERY = 48
"""Steps between two that are risked."""
FIRST_TRY = 4
"""Guesses of the first step that checks any. Later ones try up to twice what was measured."""
LONGEST_REST = 3
"""Steps without a look for guesses after one in which none were worth while: looking costs a part in a hundred too. In
batches of many answers, more."""
LARGEST_LOSS = 4.0
"""A step counts as at most so many plain ones when it is settled: machines stumble in plain steps too."""

_IS_LEVEL = frozenset(LEVELS)


@dataclass(frozen=True, slots=True)
class Offer:
    """What one answer of a step has to be checked. Every answer that writes makes one, of 0 guesses too."""

    acceptance: Acceptance
    kind: GuessKind
    most: int
    """How many guesses there are."""

    @property
    def to_come(self) -> bool:
        """Whether there are none because the draft model has not read what they would follow."""
        return self.kind is GuessKind.DRAFT_MODEL and not self.most


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """What became of a step."""

    batch: int
    """Answers that wrote, at least one."""
    guesses: int
    """Guesses that were checked, of all of them."""
    written: int
    """Tokens that they wrote together."""
    elapsed_s: float
    draft_s: float = 0.0
    """The part of it that the draft model took."""
    rounds: int = 0
    """Guesses that the draft model made one after another."""
    drafting: int = 0
    """Answers for which it guessed."""
    caught_up: int = 0
    """Tokens that it read beyond one an answer."""
    alone: bool = True
    """Whether the step read no prompts beside the answers."""


@dataclass(frozen=True, slots=True)
class _Choice:
    guesses: int = 0
    gain: float = 1.0


class SpeculationControl:
    """Learns and chooses. Pure: its only time is what reports say."""

    def __init__(self) -> None:
        self._step = 0
        self._tried_at = -TRY_EVERY
        self._rest_until = 0
        self._rest = 0
        self._since_plain: dict[int, int] = {}
        self._times = StepTimes()
        self._draft = DraftTimes()
        self._account = SpeculationAccount()
        self._pool = AcceptancePool()

    def new_request(self) -> Acceptance:
        """Return what is known of a request that begins to write."""
        return Acceptance(self._pool)

    def wants_guesses(self, batch: int) -> bool:
        """Whether it is worth while to look for guesses for a step that writes ``batch`` answers."""
        plain_s = self._times.plain_s(batch)
        if plain_s is None or self._step < self._rest_until:
            return False
        if self._since_plain.get(level_of(batch), 0) >= PLAIN_EVERY:
            return False
        return self._account.stake_s(plain_s) > 0.0

    def choose(self, offers: Sequence[Offer], room: int) -> list[int]:
        """Return how many guesses of each offer to check, ``room`` in all at most; call `wants_guesses` before."""
        batch = len(offers)
        plain_s = self._times.plain_s(batch)
        assert plain_s is not None, "ask whether guesses are wanted"
        chances = self._chances(offers)[: max(room, 0)]
        best = self._best(offers, chances, self._account.stake_s(plain_s))
        if best.gain < LEAST_GAIN:
            best = self._risked(offers, chances, plain_s)
        to_come = any(offer.to_come for offer in offers) and self.promised_gain(batch) >= LEAST_GAIN
        if best.guesses or to_come:
            self._rest = 0
        else:
            self._rest = min(2 * self._rest + 1, max(LONGEST_REST, batch // 2))
            self._rest_until = self._step + 1 + self._rest
        counts = [0] * batch
        for _, place in chances[: best.guesses]:
            counts[place] += 1
        return counts

    def promised_gain(self, batch: int) -> float:
        """Return the gain of guesses of a draft model for ``batch`` answers of which nothing else is known."""
        if self._times.plain_s(batch) is None:
            return 1.0
        offers = [Offer(self.new_request(), GuessKind.DRAFT_MODEL, FIRST_TRY)] * batch
        return self._best(offers, self._chances(offers), float("inf"), FIRST_TRY * batch).gain

    def may_catch_up(self, batch: int, gain: float, *, tokens: int, to_write: int) -> bool:
        """Whether the draft model may read ``tokens`` of a request that writes ``to_write`` tokens more at most.

        ``gain`` is the one promised.
        """
        plain_s = self._times.plain_s(batch)
        if plain_s is None or gain < LEAST_GAIN:
            return False
        cost_s = self._draft.reading_s(tokens, plain_s)
        saved_s = (1.0 - 1.0 / gain) * to_write * plain_s / batch
        return cost_s <= saved_s / 2 and self._account.may_lend(cost_s, plain_s)

    def step_took(self, report: StepReport) -> None:
        """Learn from a step. The acceptances of its requests are told to them, with `answer_took`."""
        self._step += 1
        compute_s = report.elapsed_s - report.draft_s
        level = level_of(report.batch)
        if report.alone:
            self._times.learn(report.batch, report.guesses, compute_s)
            self._since_plain[level] = self._since_plain.get(level, 0) + 1 if report.guesses else 0
        plain_s = self._times.plain_s(report.batch)
        if plain_s is None:
            return
        reading_s = self._draft.learn(report.draft_s, report.rounds, report.drafting, report.caught_up)
        self._account.lend(reading_s)
        if not report.guesses:
            self._account.earn(compute_s, plain_s)
            return
        extra_s = compute_s if report.alone else self._times.checking_s(report.batch, report.guesses)
        took_s = min(extra_s, LARGEST_LOSS * plain_s) + report.draft_s - reading_s
        self._account.settle(report.written * plain_s / report.batch - took_s, plain_s)

    def answer_took(self, offer: Offer, guessed: int, accepted: int) -> None:
        """Learn how an answer's guesses did."""
        offer.acceptance.learn(offer.kind, self._step, guessed=guessed, accepted=accepted)

    def _chances(self, offers: Sequence[Offer]) -> list[tuple[float, int]]:
        """Return what each guess brings, and whose it is, the best first. An answer's guesses stay in order."""
        chances: list[tuple[float, int]] = []
        for place, offer in enumerate(offers):
            if offer.most:
                each = offer.acceptance.chance(offer.kind, self._step)
                chances += [(each**count, place) for count in range(1, offer.most + 1)]
        chances.sort(reverse=True)
        return chances

    def _best(
        self, offers: Sequence[Offer], chances: Sequence[tuple[float, int]], stake_s: float, least_most: int = FIRST_TRY
    ) -> _Choice:
        """Return the number of guesses that gains the most, of those that cost no more than ``stake_s`` if all fail.

        More than ``least_most`` only where that has been tried.
        """
        batch = len(offers)
        plain_s = self._times.checking_s(batch, 0)
        most = min(len(chances), max(least_most, 2 * self._times.most_measured(batch)))
        expected, rounds = float(batch), 0
        counts = [0] * batch
        best = _Choice()
        for guesses, (chance, place) in enumerate(chances[:most], start=1):
            expected += chance
            counts[place] += 1
            if offers[place].kind is GuessKind.DRAFT_MODEL:
                rounds = max(rounds, counts[place])
            if guesses not in _IS_LEVEL and guesses != most:
                continue
            time_s = self._times.checking_s(batch, guesses) + rounds * self._draft.round_s(batch, plain_s)
            gain = expected * plain_s / (time_s * batch)
            if time_s - plain_s <= stake_s and (gain > best.gain or not best.guesses):
                best = _Choice(guesses, gain)
        return best

    def _risked(self, offers: Sequence[Offer], chances: Sequence[tuple[float, int]], plain_s: float) -> _Choice:
        """Return what to risk although it promises nothing; mostly nothing."""
        if self._step - self._tried_at < TRY_EVERY or not self._account.is_full(plain_s):
            return _Choice()
        risked = self._best(offers, chances, self._account.stake_s(plain_s) / 2)
        if risked.guesses:
            self._tried_at = self._step
        return risked
