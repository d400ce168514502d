"""What requests ask to change in the model's logits, before temperature and cuts.

In this order: grammar mask, allowed tokens, banned sequences, stop tokens before ``min_tokens``; logit bias;
repetition, frequency and presence penalties. What is masked is minus infinity and stays so. All rows of a step are
edited together: Python goes over the requests that want something, and over what they name; never over the vocabulary.

A grammar that allows nothing but stop tokens has ended, and so does the answer: the other masks leave that row alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import groupby
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from cluster_core.errors import InvalidField, ModelFolderError
from cluster_core.sampling import Grammar, Sampling
from inference_engine.row_arrays import Int64Array, on_device
from inference_engine.thinking import forced_token, grammar_start

NO_TOKENS: Int64Array = np.zeros(0, dtype=np.int64)
_LEAST_PENALTY = 1e-6
"""Of repetition: lower ones leave float32."""
_REMEMBERED = 512
"""Requests name the same tokens for each token of theirs: so many of what they name stay at hand as arrays."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Draw:
    """One token to be drawn."""

    sampling: Sampling
    position: int
    """Of the token to be drawn: prompt tokens count, the first is 0."""
    tokens: Int64Array = field(default_factory=lambda: NO_TOKENS)
    """The sequence, where ``sampling.looks_back``. May be longer than ``position``: what stands there is not known."""

    @property
    def before(self) -> Int64Array:
        """All tokens before the position, where the sampling looks back."""
        return self.tokens[: self.position]

    @property
    def answer(self) -> Int64Array:
        """Those of the answer among them."""
        return self.tokens[self.sampling.answer_start : self.position]

    @property
    def forced(self) -> int | None:
        """The token that is drawn whatever the logits say."""
        return None if self.sampling.plain else forced_token(self.sampling, self.position, self.before)


class GrammarMasker(Protocol):
    """Knows grammars over the model's tokens."""

    def allowed(self, grammar: Grammar, answers: Sequence[Sequence[int]]) -> torch.Tensor:
        """Return what may follow each of ``answers``: bool ``[answers, vocabulary]`` in the host's memory.

        Nothing may follow what the grammar does not allow; the model's end-of-text tokens may follow what is complete.
        Raises `InvalidField` for a grammar that is none, `ModelFolderError` where the model's tokenizer cannot serve.
        """
        ...


@dataclass(frozen=True, slots=True)
class _Edit:
    row: int
    draw: Draw


def edit_logits(logits: torch.Tensor, draws: Sequence[Draw], masker: GrammarMasker | None) -> None:
    """Change each row of ``logits`` ``[draws, vocabulary]``, float32, to what its draw wants."""
    edits = [_Edit(row, draw) for row, draw in enumerate(draws)]
    free = _mask_by_grammar(logits, edits, masker)
    _mask_others(logits, free)
    _ban(logits, free)
    _add_bias(logits, edits)
    _penalise_repetition(logits, edits)
    _penalise_counts(logits, edits)


def _mask_by_grammar(logits: torch.Tensor, edits: list[_Edit], masker: GrammarMasker | None) -> list[_Edit]:
    """Apply the grammars and return the edits to which the other masks apply: where no grammar has ended."""
    ruled = []
    for edit in edits:
        if edit.draw.sampling.grammar is not None:
            start = grammar_start(edit.draw.sampling, edit.draw.before)
            if start is not None:
                ruled.append((edit, edit.draw.before[start:].tolist()))
    if not ruled:
        return edits
    assert masker is not None, "a grammar, and nobody who knows grammars"
    masks = []
    for grammar, group in groupby(ruled, key=lambda pair: pair[0].draw.sampling.grammar):
        assert grammar is not None
        answers = [answer for _, answer in group]
        try:
            masks.append(masker.allowed(grammar, answers))
        except (
            InvalidField,
            ModelFolderError,
        ):  # should have been refused when it came: this request ends, its neighbours go on
            masks.append(torch.zeros((len(answers), logits.shape[1]), dtype=torch.bool))
    allowed = torch.cat(masks)
    rows = on_device([edit.row for edit, _ in ruled], torch.int64, logits.device)
    there = on_device(allowed.numpy(), torch.bool, logits.device)
    logits[rows] = logits[rows].masked_fill(~there, -torch.inf)
    counts = allowed.sum(dim=-1).tolist()
    ended = set()
    for (edit, _), mask, count in zip(ruled, allowed, counts, strict=True):
        stops = _known(edit.draw.sampling.stop_token_ids, logits.shape[1])
        if 0 < count == int(mask[stops].sum()):
            ended.add(edit.row)
    return [edit for edit in edits if edit.row not in ended]


def _mask_others(logits: torch.Tensor, edits: list[_Edit]) -> None:
    """Mask all tokens but the allowed ones, where only some are allowed."""
    chosen = [edit for edit in edits if edit.draw.sampling.allowed_token_ids]
    if not chosen:
        return
    mask = np.ones((len(chosen), logits.shape[1]), dtype=np.bool_)
    for place, edit in enumerate(chosen):
        mask[place, _known(edit.draw.sampling.allowed_token_ids, logits.shape[1])] = False
    rows = on_device([edit.row for edit in chosen], torch.int64, logits.device)
    logits[rows] = logits[rows].masked_fill(on_device(mask, torch.bool, logits.device), -torch.inf)


def _ban(logits: torch.Tensor, edits: list[_Edit]) -> None:
    """Mask what would complete a banned sequence, and stop tokens before the answer is long enough."""
    banned = []
    for edit in edits:
        wish = edit.draw.sampling
        early = edit.draw.position < wish.answer_start + wish.min_tokens
        tokens = wish.stop_token_ids if early else frozenset[int]()
        if wish.banned_sequences:
            longest = max(len(sequence) for sequence in wish.banned_sequences)
            tail = tuple(edit.draw.answer[-longest:].tolist())
            tokens |= frozenset(
                sequence[-1]
                for sequence in wish.banned_sequences
                if len(sequence) == 1 or tail[1 - len(sequence) :] == sequence[:-1]
            )
        banned.append(_flat(edit, _known(tokens, logits.shape[1]), logits))
    index = on_device(np.concatenate([NO_TOKENS, *banned]), torch.int64, logits.device)
    logits.view(-1)[index] = -torch.inf


def _add_bias(logits: torch.Tensor, edits: list[_Edit]) -> None:
    biased = [edit for edit in edits if edit.draw.sampling.logit_bias]
    if not biased:
        return
    places, amounts = [], []
    for edit in biased:
        tokens, bias = _bias(edit.draw.sampling.logit_bias, logits.shape[1])
        places.append(_flat(edit, tokens, logits))
        amounts.append(bias)
    index = on_device(np.concatenate(places), torch.int64, logits.device)
    logits.view(-1)[index] += on_device(np.concatenate(amounts), torch.float32, logits.device)


def _penalise_repetition(logits: torch.Tensor, edits: list[_Edit]) -> None:
    """Divide the logits of tokens seen in prompt or answer if positive, multiply them else (Keskar et al., 2019)."""
    chosen = [edit for edit in edits if edit.draw.sampling.repetition_penalty != 1]
    if not chosen:
        return
    seen = [edit.draw.before for edit in chosen]
    penalties = [max(edit.draw.sampling.repetition_penalty, _LEAST_PENALTY) for edit in chosen]
    each = np.repeat(penalties, [len(tokens) for tokens in seen])
    places = [_flat(edit, tokens, logits) for edit, tokens in zip(chosen, seen, strict=True)]
    index = on_device(np.concatenate(places), torch.int64, logits.device)
    penalty = on_device(each, torch.float32, logits.device)
    values = logits.view(-1)[index]  # a token seen twice is written twice, the same
    logits.view(-1)[index] = torch.where(values > 0, values / penalty, values * penalty)


def _penalise_counts(logits: torch.Tensor, edits: list[_Edit]) -> None:
    """Subtract the frequency penalty for each time a token stands in the answer, the presence penalty if it does."""
    chosen = [
        edit for edit in edits if edit.draw.sampling.frequency_penalty != 0 or edit.draw.sampling.presence_penalty != 0
    ]
    if not chosen:
        return
    vocabulary, device = logits.shape[1], logits.device
    answers = [edit.draw.answer for edit in chosen]
    lengths = [len(answer) for answer in answers]
    frequency = np.repeat([edit.draw.sampling.frequency_penalty for edit in chosen], lengths)
    presence = np.repeat([edit.draw.sampling.presence_penalty for edit in chosen], lengths)
    tokens = np.concatenate(answers)
    counted = on_device(np.repeat(np.arange(len(chosen)), lengths) * vocabulary + tokens, torch.int64, device)
    counts = torch.zeros(len(chosen) * vocabulary, device=device)
    counts.scatter_add_(0, counted, torch.ones(len(tokens), device=device))
    index = on_device(np.repeat([edit.row for edit in chosen], lengths) * vocabulary + tokens, torch.int64, device)
    values = logits.view(-1)[index] - on_device(frequency, torch.float32, device) * counts[counted]
    logits.view(-1)[index] = values - on_device(presence, torch.float32, device)


@lru_cache(maxsize=_REMEMBERED)
def _known(tokens: frozenset[int], vocabulary: int) -> Int64Array:
    """Return those tokens that the vocabulary has, in order."""
    return np.array(sorted(token for token in tokens if 0 <= token < vocabulary), dtype=np.int64)


@lru_cache(maxsize=_REMEMBERED)
def _bias(pairs: tuple[tuple[int, float], ...], vocabulary: int) -> tuple[Int64Array, npt.NDArray[np.float64]]:
    """Return the tokens and their biases, of tokens that the vocabulary has."""
    known = {token: bias for token, bias in pairs if 0 <= token < vocabulary}
    return np.array(list(known), dtype=np.int64), np.array(list(known.values()))


def _flat(edit: _Edit, tokens: Int64Array, logits: torch.Tensor) -> Int64Array:
    """Return where the row's logits of these tokens are when rows lie one after another."""
    return edit.row * logits.shape[1] + tokens
