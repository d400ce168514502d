"""A small model guesses, the served model checks: both in one step of one thread.

Life of a step with drafts: the small model reads the tokens that it has not seen of each of these requests and guesses
one token; then the next one from that, for all requests together, until each has its guesses. They are put behind the
last sure token of the request's slice, and the served model computes the plan as if they had come with it.

Guesses are drawn with the request's own sampling and so with the number that the served model will draw with at that
position: where the two models agree roughly, they draw the same token, also at high temperatures.

The small model's blocks belong to a pool of its own. What it wrote for guesses that were refused is overwritten by the
tokens that stand there instead.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Generic, Protocol, TypeVar

from cluster_core.errors import InvalidField
from cluster_core.layout import KvLayout, ModelIdentity
from cluster_core.sampling import Sampling
from inference_engine.engine_loop import Stepping
from inference_engine.grammar_preparer import GrammarPreparer
from inference_engine.step import DraftSlice, SequenceSlice, StepPlan, StepResult
from inference_engine.step_faults import BrokenLogits, NothingAllowed

Memory_co = TypeVar("Memory_co", covariant=True)


class DraftEngine(Stepping, Protocol):
    """The engine of a draft model."""

    @property
    def identity(self) -> ModelIdentity:
        """The small model."""
        ...

    @property
    def layout(self) -> KvLayout:
        """The shape of its blocks."""
        ...


class MemoryEngine(Stepping, Protocol[Memory_co]):
    """What stays visible of an engine that has been given a draft model."""

    @property
    def identity(self) -> ModelIdentity:
        """The model."""
        ...

    @property
    def layout(self) -> KvLayout:
        """The shape of a block."""
        ...

    @property
    def memory(self) -> Memory_co:
        """The blocks."""
        ...

    @property
    def grammars(self) -> GrammarPreparer:
        """The grammars over the model's tokens."""
        ...


class DraftingEngine(Generic[Memory_co]):
    """An engine with a draft model: ``step`` computes `StepPlan.drafts` first. Used as `Engine` is."""

    def __init__(
        self, engine: MemoryEngine[Memory_co], draft: DraftEngine, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.identity = engine.identity
        self.layout = engine.layout
        self.memory = engine.memory
        self.grammars = engine.grammars
        self._engine = engine
        self.draft = draft
        self._clock = clock

    def step(self, plan: StepPlan) -> StepResult:
        """Guess, then compute the plan with the guesses. Raises as `Engine.step`; a guess that fails fails nobody."""
        if not plan.drafts:
            return self._engine.step(plan)
        started = self._clock()
        guesses = self._guess(plan)
        draft_s = self._clock() - started
        slices = list(plan.slices)
        for draft, tokens in zip(plan.drafts, guesses, strict=True):
            piece = slices[draft.place]
            assert not piece.drafted, "this slice has its guesses already"
            slices[draft.place] = replace(piece, token_ids=[*piece.token_ids, *tokens], drafted=len(tokens))
        result = self._engine.step(StepPlan(slices=tuple(slices)))
        guessed = tuple(len(tokens) for tokens in guesses)
        return replace(result, elapsed_s=self._clock() - started, guessed=guessed, draft_s=draft_s)

    def _guess(self, plan: StepPlan) -> list[list[int]]:
        """Return the guesses of each draft. One whose draw fails ends with the guesses it has."""
        guesses: list[list[int]] = [[] for _ in plan.drafts]
        turn = list(range(len(plan.drafts)))
        while turn:
            slices = [_slice(plan, plan.drafts[place], guesses[place]) for place in turn]
            try:
                drawn = self.draft.step(StepPlan(slices=tuple(slices))).slices
            except (BrokenLogits, NothingAllowed) as error:
                turn = [place for row, place in enumerate(turn) if row not in error.places]
                continue
            except InvalidField:
                break  # the served model will tell of whom
            going_on = []
            for place, result in zip(turn, drawn, strict=True):
                guesses[place] += result.token_ids
                if _goes_on(plan, plan.drafts[place], guesses[place]):
                    going_on.append(place)
            turn = going_on
        return guesses


def _slice(plan: StepPlan, draft: DraftSlice, guesses: Sequence[int]) -> SequenceSlice:
    """Return the small model's next slice: all it has not seen, then one guess after the other."""
    sampling = _sampling(plan, draft) if draft.guesses else None
    looks_back = sampling is not None and sampling.looks_back
    if not guesses:
        before = draft.before if looks_back else ()
        return SequenceSlice(
            token_ids=draft.token_ids, start=draft.start, block_table=draft.block_table, draw=sampling, before=before
        )
    return SequenceSlice(
        token_ids=guesses[-1:],
        start=draft.start + len(draft.token_ids) + len(guesses) - 1,
        block_table=draft.block_table,
        draw=sampling,
        before=[*draft.before, *draft.token_ids, *guesses[:-1]] if looks_back else (),
    )


def _sampling(plan: StepPlan, draft: DraftSlice) -> Sampling:
    """Return the request's sampling without what is only told."""
    sampling = plan.slices[draft.place].draw
    assert sampling is not None, "guesses are for a slice that draws"
    if sampling.logprobs is None and sampling.prompt_logprobs is None:
        return sampling
    return replace(sampling, logprobs=None, prompt_logprobs=None)


def _goes_on(plan: StepPlan, draft: DraftSlice, guesses: Sequence[int]) -> bool:
    if not guesses or len(guesses) == draft.guesses:
        return False
    return guesses[-1] not in _sampling(plan, draft).stop_token_ids
