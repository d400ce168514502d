"""Guesses in a decode worker's steps: who gets how many, what became of them.

Guesses take what a step has left: of the token budget after answers and prompts, of the blocks what nobody else needs.
They never preempt, and blocks that were reserved for guesses which failed go back after the step.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from decode_worker.answer import Answer, Stage
from decode_worker.guess_source import GuessSource
from decode_worker.step_share import StepShare
from inference_engine.acceptance import Acceptance
from inference_engine.block_pool import NoFreeBlocks
from inference_engine.speculation_control import Offer, SpeculationControl, StepReport
from inference_engine.step import DraftSlice, StepResult


@dataclass(slots=True)
class SpeculationCounts:
    """Since the worker's start."""

    answer_steps: int = 0
    """Steps of answers that write: one answer in one step."""
    written: int = 0
    """Tokens written in them."""
    guessed: int = 0
    accepted: int = 0
    draft_s: float = 0.0


class Speculation:
    """The guesses of all answers. Without a source there are none. ``most``: guesses of one answer in one step."""

    def __init__(
        self, source: GuessSource | None = None, control: SpeculationControl | None = None, most: int = 8
    ) -> None:
        self.counts = SpeculationCounts()
        self._source = source
        self._control = control or SpeculationControl()
        self._most = most
        self._acceptances: dict[Answer, Acceptance] = {}

    @property
    def held_blocks(self) -> int:
        """Blocks that a draft model's pool holds for answers."""
        return 0 if self._source is None else self._source.held_blocks

    def plan(self, shares: Sequence[StepShare], room: int) -> tuple[DraftSlice, ...]:
        """Give the answers of a step guesses, ``room`` in all at most; return what a draft model computes before it.

        Every share must have the blocks for its sure tokens.
        """
        source, writers = self._source, [share for share in shares if share.writes]
        if source is None or not writers or not self._control.wants_guesses(len(writers)):
            return ()
        for share in writers:
            kind, most = source.offer(share.answer, min(self._most, share.answer.left - 1))
            share.offer = Offer(self._acceptance(share.answer), kind, most)
        counts = self._control.choose([share.offer for share in writers if share.offer], room)
        for share, count in zip(writers, counts, strict=True):
            share.guessed = _reserve(share, count)
        return source.take(shares, self._control)

    def step_done(self, shares: Sequence[StepShare], drafts: Sequence[DraftSlice], result: StepResult) -> None:
        """Learn from the step. To be called before its answers take what was written."""
        for draft, guessed in zip(drafts, result.guessed, strict=True):
            shares[draft.place].guessed = guessed
        written = [part.token_ids for share, part in zip(shares, result.slices, strict=True) if share.writes]
        self.counts.answer_steps += len(written)
        self.counts.written += sum(map(len, written))
        if self._source is None:
            return
        if written:
            report = _report(shares, drafts, result, written)
            self.counts.guessed += report.guesses
            self.counts.draft_s += report.draft_s
            self._control.step_took(report)
        for share, drawn in zip(shares, result.slices, strict=True):
            if share.answer.stage is Stage.ENDED or share.offer is None:
                continue
            if share.guessed:
                accepted = len(drawn.token_ids) - 1
                self._control.answer_took(share.offer, share.guessed, accepted)
                self.counts.accepted += accepted
            self._source.settle(share, drawn.token_ids)

    def give_back(self, answer: Answer) -> None:
        """Give back what a draft model holds for an answer, and forget one that has ended."""
        if self._source is not None:
            self._source.give_back(answer)
            if answer.stage is Stage.ENDED:
                self._source.forget(answer)
                self._acceptances.pop(answer, None)

    def _acceptance(self, answer: Answer) -> Acceptance:
        known = self._acceptances.get(answer)
        if known is None:
            known = self._acceptances[answer] = self._control.new_request()
        return known


def _reserve(share: StepShare, guesses: int) -> int:
    """Reserve blocks for guesses, and return for how many there are some."""
    sequence = share.answer.sequence
    while guesses:
        try:
            sequence.reserve(sequence.computed + share.count + guesses)
        except NoFreeBlocks:
            guesses -= 1
        else:
            break
    return guesses


def _report(
    shares: Sequence[StepShare], drafts: Sequence[DraftSlice], result: StepResult, written: Sequence[Sequence[int]]
) -> StepReport:
    """Return what is to be learned from a step in which the answers that write got the tokens ``written``."""
    guessing = [draft for draft in drafts if draft.guesses]
    return StepReport(
        batch=len(written),
        guesses=sum(share.guessed for share in shares),
        written=sum(map(len, written)),
        elapsed_s=result.elapsed_s,
        draft_s=result.draft_s,
        rounds=max((draft.guesses for draft in guessing), default=0),
        drafting=len(guessing),
        caught_up=sum(len(draft.token_ids) for draft in drafts) - len(guessing),
        alone=len(written) == len(shares),
    )
