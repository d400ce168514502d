"""What one engine step computes, and what comes out of it."""

from collections.abc import Sequence
from dataclasses import dataclass

from cluster_core.logprobs import TokenLogprobs
from cluster_core.sampling import Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceSlice:
    """Some consecutive tokens of one sequence: a chunk of its prompt, the one token written last, or that and a draft.

    A draft is tokens that somebody guesses the answer goes on with. The step draws after the last sure token and after
    each guess, and stops at the first guess that was not drawn: what it returns is what plain decoding would have
    drawn, token for token.
    """

    token_ids: Sequence[int]
    """At least one; the last ``drafted`` of them are guesses."""
    start: int
    """Position of the first of them; the KV of every token before it is in the pool."""
    block_table: Sequence[int]
    """The sequence's blocks in order, enough to hold these tokens too. More are allowed."""
    draw: Sampling | None
    """How the token after them is drawn, at the position ``start + len(token_ids)``; None draws none."""
    drafted: int = 0
    """Fewer than there are tokens; 0 where nothing is drawn."""
    before: Sequence[int] = ()
    """All tokens before ``start``, where ``draw.looks_back``; empty elsewhere."""
    prompt_logprobs: int | None = None
    """How many alternatives are told for each of ``token_ids`` but the first, and for ``following``; None: nothing."""
    following: int | None = None
    """The prompt's next token, where its logprob is to be told too and the slice is not the prompt's last."""
    forks: tuple[int, ...] = ()
    """Seeds of further tokens to be drawn where ``draw`` draws, in all else as it says; only where nothing is drafted.
    They are the first tokens of answers that share this sequence's tokens."""

    @property
    def first_read(self) -> int:
        """Index in ``token_ids`` of the first token whose logits are needed; those of all after it are too."""
        if self.prompt_logprobs is not None:
            return 0
        return len(self.token_ids) - (0 if self.draw is None else 1 + self.drafted)


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftSlice:
    """What a draft model computes for one slice of a plan, before the model does: `inference_engine.draft_model`."""

    place: int
    """Of the slice, in the plan's order. It ends with the last sure token; the guesses are put behind that."""
    token_ids: Sequence[int]
    """Sure tokens that the draft model has not seen, at least one; all that are left, where it is to guess."""
    start: int
    block_table: Sequence[int]
    """In the draft model's own pool, enough for these tokens and for all guesses but the last."""
    guesses: int
    """How many tokens to guess; 0 only reads ``token_ids``."""
    before: Sequence[int] = ()
    """As in `SequenceSlice`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlan:
    """Slices of different sequences, at least one; their written blocks must not overlap."""

    slices: tuple[SequenceSlice, ...]
    drafts: tuple[DraftSlice, ...] = ()
    """For different slices; only where the engine has a draft model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceResult:
    """What a step drew for one slice."""

    token_ids: tuple[int, ...] = ()
    """Empty where nothing was asked for; elsewhere one more than the guesses that came true, or fewer where one of
    them is a stop token, which is then the last."""
    logprobs: tuple[TokenLogprobs, ...] = ()
    """Of each of ``token_ids``, where they were asked for."""
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    """Of ``token_ids[1:]`` of the slice and of ``following``, where they were asked for."""
    fork_token_ids: tuple[int, ...] = ()
    """One for each of the slice's ``forks``."""
    fork_logprobs: tuple[TokenLogprobs, ...] = ()
    """Of each of ``fork_token_ids``, where they were asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """One entry a slice, in the plan's order."""

    slices: tuple[SliceResult, ...]
    elapsed_s: float
    guessed: tuple[int, ...] = ()
    """How many tokens were guessed for each of the plan's ``drafts``: what was asked for, or fewer."""
    draft_s: float = 0.0
    """The part of ``elapsed_s`` that the draft model took."""
