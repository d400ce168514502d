"""From the logits of a step to what it says of each slice: tokens, those of a draft verified, and logprobs.

A draft is verified by drawing after each of its tokens as plain decoding would draw there: with that position's number,
and with the guesses so far as tokens before it. While guess and draw agree, the next row saw the tokens that plain
decoding would have seen, so its draw is plain decoding's too; what follows the first difference is waste, its faults
included. ``docs/decisions/drafts-are-redrawn.md`` tells why this is rejection sampling.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice, zip_longest

import numpy as np
import torch

from inference_engine.row_arrays import on_device
from inference_engine.sampler import try_draw
from inference_engine.sampling_edits import NO_TOKENS, Draw, GrammarMasker
from inference_engine.sampling_logprobs import Wish, token_logprobs
from inference_engine.step import SequenceSlice, SliceResult, StepPlan
from inference_engine.step_faults import BrokenLogits, Fault, raise_faults


def read_step(plan: StepPlan, logits: torch.Tensor, masker: GrammarMasker | None = None) -> tuple[SliceResult, ...]:
    """Return a result for each slice.

    ``logits`` ``[rows, vocabulary]``, float32, are those after each token of each slice from `SequenceSlice.first_read`
    on. Raises `BrokenLogits` or `NothingAllowed` with the slices in question.
    """
    rows: list[int] = []
    draws: list[Draw] = []
    ends: list[int] = []
    end = 0
    for piece in plan.slices:
        end += len(piece.token_ids) - piece.first_read
        ends.append(end)
        if piece.draw is not None:
            assert not (piece.drafted and piece.forks), "a draft cannot be forked"
            rows += (*range(end - 1 - piece.drafted, end), *([end - 1] * len(piece.forks)))
            draws += _draws(piece)
    drawn: Iterator[int | Fault] = iter(())
    if draws:
        all_in_order = rows == list(range(len(logits)))
        read = logits if all_in_order else logits[on_device(rows, torch.int64, logits.device)]
        drawn = iter(try_draw(read, draws, masker))
    taken: list[tuple[int, ...] | Fault] = []
    forks: list[tuple[int, ...]] = []
    for piece in plan.slices:
        taken.append(_accept(piece, list(islice(drawn, 1 + piece.drafted))) if piece.draw else ())
        forked = islice(drawn, len(piece.forks)) if piece.draw and piece.forks else ()
        forks.append(tuple(entry for entry in forked if not isinstance(entry, Fault)))  # a fault is the slice's too
    raise_faults(taken)
    tokens = [entry for entry in taken if not isinstance(entry, Fault)]
    if all(_is_quiet(piece) for piece in plan.slices):
        return tuple(
            SliceResult(token_ids=own, fork_token_ids=others) for own, others in zip(tokens, forks, strict=True)
        )
    return _tell(plan, logits, ends, list(zip(tokens, forks, strict=True)))


def _draws(piece: SequenceSlice) -> list[Draw]:
    """Return the draws of a slice: after its last sure token and after each guess, then those of its forks."""
    sampling = piece.draw
    assert sampling is not None
    end = piece.start + len(piece.token_ids)
    tokens = NO_TOKENS
    if not sampling.plain and sampling.looks_back:
        assert len(piece.before) == piece.start, "the tokens before the slice are missing"
        tokens = np.concatenate([np.asarray(part, dtype=np.int64) for part in (piece.before, piece.token_ids)])
    if not (piece.drafted or piece.forks):  # the usual case, at once
        return [Draw(sampling=sampling, position=end, tokens=tokens)]
    draws = [
        Draw(sampling=sampling, position=position, tokens=tokens) for position in range(end - piece.drafted, end + 1)
    ]
    return draws + [Draw(sampling=replace(sampling, seed=seed), position=end, tokens=tokens) for seed in piece.forks]


def _accept(piece: SequenceSlice, drawn: Sequence[int | Fault]) -> tuple[int, ...] | Fault:
    """Return the drawn tokens up to the first that was not guessed, or that ends the answer."""
    assert piece.draw is not None
    if len(drawn) == 1:  # the usual case, at once
        return drawn[0] if isinstance(drawn[0], Fault) else (drawn[0],)
    guesses = piece.token_ids[len(piece.token_ids) - piece.drafted :]
    taken: list[int] = []
    for entry, guess in zip_longest(drawn, guesses):
        if isinstance(entry, Fault):
            return entry
        taken.append(entry)
        if entry != guess or entry in piece.draw.stop_token_ids:
            break
    return tuple(taken)


def _is_quiet(piece: SequenceSlice) -> bool:
    return piece.prompt_logprobs is None and (piece.draw is None or piece.draw.logprobs is None)


def _tell(
    plan: StepPlan,
    logits: torch.Tensor,
    ends: Sequence[int],
    drawn: Sequence[tuple[tuple[int, ...], tuple[int, ...]]],
) -> tuple[SliceResult, ...]:
    """Add the logprobs that are asked for.

    ``ends`` are the rows where each slice's logits end, ``drawn`` its tokens and those of its forks.
    """
    wishes = [
        _wishes(piece, end, own, forks) for piece, end, (own, forks) in zip(plan.slices, ends, drawn, strict=True)
    ]
    found = iter(token_logprobs(logits, [wish for parts in wishes for part in parts for wish in part]))
    told = [[tuple(islice(found, len(part))) for part in parts] for parts in wishes]
    broken = tuple(place for place, (_, _, prompt) in enumerate(told) if any(math.isnan(of.logprob) for of in prompt))
    if broken:
        raise BrokenLogits(broken)
    return tuple(
        SliceResult(
            token_ids=own,
            logprobs=of_own,
            prompt_logprobs=of_prompt,
            fork_token_ids=forks,
            fork_logprobs=of_forks,
        )
        for (own, forks), (of_own, of_forks, of_prompt) in zip(drawn, told, strict=True)
    )


def _wishes(
    piece: SequenceSlice, end: int, own: tuple[int, ...], forks: tuple[int, ...]
) -> tuple[list[Wish], list[Wish], list[Wish]]:
    """Return what is to be told of a slice's own tokens, of its forks' and of its prompt's."""
    drawn: list[Wish] = []
    forked: list[Wish] = []
    if piece.draw is not None and piece.draw.logprobs is not None:
        told, first = piece.draw.logprobs, end - 1 - piece.drafted
        drawn = [Wish(row=row, token_id=token, alternatives=told) for row, token in enumerate(own, start=first)]
        forked = [Wish(row=end - 1, token_id=token, alternatives=told) for token in forks]
    told_of_prompt = piece.prompt_logprobs
    if told_of_prompt is None:
        return drawn, forked, []
    assert not piece.drafted, "a prompt holds no guesses"
    read = [*piece.token_ids[1:], *(() if piece.following is None else (piece.following,))]
    first = end - len(piece.token_ids)
    prompt = [Wish(row=row, token_id=token, alternatives=told_of_prompt) for row, token in enumerate(read, start=first)]
    return drawn, forked, prompt
