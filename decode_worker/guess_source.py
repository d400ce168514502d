"""Where guesses of an answer's next tokens come from."""

from collections.abc import Sequence
from typing import Protocol

from decode_worker.answer import Answer
from decode_worker.step_share import StepShare
from inference_engine.acceptance import GuessKind, kind_of_match
from inference_engine.prompt_lookup import NO_GUESSES, Guesses, PromptLookup
from inference_engine.speculation_control import SpeculationControl
from inference_engine.step import DraftSlice


class GuessSource(Protocol):
    """Called on the event loop, between steps: it never computes anything long."""

    @property
    def held_blocks(self) -> int:
        """Blocks of its own that answers hold."""
        ...

    def offer(self, answer: Answer, most: int) -> tuple[GuessKind, int]:
        """Return how many guesses there are of what the answer writes next, up to ``most``, and of which kind."""
        ...

    def take(self, shares: Sequence[StepShare], control: SpeculationControl) -> tuple[DraftSlice, ...]:
        """Make the first ``guessed`` of the guesses offered part of each share; fewer where that cannot be.

        Returns what the engine computes for them before the plan. ``shares`` are the slices of the plan, in order.
        """
        ...

    def settle(self, share: StepShare, token_ids: Sequence[int]) -> None:
        """Take in what an answer that still runs wrote in the step. Its sequence does not have the tokens yet."""
        ...

    def give_back(self, answer: Answer) -> None:
        """Give back the blocks that were reserved for an answer, which may come again. No step uses them now."""
        ...

    def forget(self, answer: Answer) -> None:
        """Forget an answer that has given back its blocks for good."""
        ...


class LookupGuesses:
    """A `GuessSource` that looks each answer's last tokens up in its own prompt and answer."""

    def __init__(self) -> None:
        self.held_blocks = 0
        self._lookups: dict[Answer, PromptLookup] = {}
        self._offered: dict[Answer, Guesses] = {}

    def offer(self, answer: Answer, most: int) -> tuple[GuessKind, int]:
        """As `GuessSource`."""
        lookup = self._lookups.get(answer)
        if lookup is None:
            lookup = self._lookups[answer] = PromptLookup()
        found = self._offered[answer] = lookup.guess(answer.sequence.token_ids, most)
        return kind_of_match(found.matched), len(found.token_ids)

    def take(self, shares: Sequence[StepShare], control: SpeculationControl) -> tuple[DraftSlice, ...]:  # noqa: ARG002  # the protocol's
        """As `GuessSource`."""
        for share in shares:
            if share.guessed:
                share.guesses = self._offered.get(share.answer, NO_GUESSES).token_ids[: share.guessed]
        self._offered.clear()
        return ()

    def settle(self, share: StepShare, token_ids: Sequence[int]) -> None:
        """As `GuessSource`: the index follows the sequence."""

    def give_back(self, answer: Answer) -> None:
        """As `GuessSource`: no blocks are used."""

    def forget(self, answer: Answer) -> None:
        """As `GuessSource`."""
        self._lookups.pop(answer, None)
