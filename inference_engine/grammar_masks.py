"""Which tokens the grammars of a step's requests allow.

The life of a grammar in a worker: when a request is submitted, `GrammarMasks.prepare` compiles it off the event loop
and the engine's thread. In each step `GrammarMasks.allowed` gets the answers so far and finds, for each, a state that
has read the answer but for its last few tokens; it reads those and gives the mask. Where no such state is known (the
first step, a resumed or handed-over answer, one whose state was dropped) the answer is read from its beginning. States
are never handed over: masks follow from grammar and tokens.
"""

import asyncio
import itertools
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from cluster_core.sampling import Grammar
from inference_engine.grammar import AnswerState, CompiledGrammar, MaskRow, Vocabulary, compile_grammar, vocabulary_of

MOST_GRAMMARS = 128
MOST_STATES = 1024
MOST_NEW_TOKENS = 64
"""An answer is looked for among the states by its beginnings; those that lack more tokens are not looked for."""
_TAIL = 8

_Key = tuple[int, int, tuple[int, ...]]
"""Grammar, number of tokens read, the last of them. Two answers may share one: the later replaces the earlier."""


class GrammarMasks:
    """The grammars of one model. `prepare` is called on the event loop, `allowed` in the engine's thread."""

    def __init__(self, folder: Path, vocab_size: int, eos_token_ids: frozenset[int]) -> None:
        self._folder = folder
        self._vocab_size = vocab_size
        self._eos_token_ids = eos_token_ids
        self._vocabulary: Vocabulary | None = None
        self._reading = threading.Lock()
        self._lock = threading.Lock()
        self._compiled: OrderedDict[Grammar, tuple[int, CompiledGrammar]] = OrderedDict()
        self._states: OrderedDict[_Key, AnswerState] = OrderedDict()
        self._numbers = itertools.count()

    def read_vocabulary(self) -> Vocabulary:
        """Read the tokenizer, the first time: a second or two for 128,000 tokens, in which no Python runs elsewhere.

        Without it the first grammar pays, and with it all answers that run; a worker may call it before it is ready.
        Raises `ModelFolderError`.
        """
        with self._reading:
            if self._vocabulary is None:
                self._vocabulary = vocabulary_of(self._folder, self._vocab_size, self._eos_token_ids)
            return self._vocabulary

    async def prepare(self, grammar: Grammar) -> None:
        """Compile the grammar, unless that is done. Call it before the request is scheduled.

        Raises `InvalidField` for a grammar that cannot be served, `ModelFolderError` where the model's tokenizer or
        end-of-text tokens do not serve for grammars.
        """
        if not self._is_ready(grammar):
            await asyncio.to_thread(self._get, grammar)

    def allowed(self, grammar: Grammar, answers: Sequence[Sequence[int]]) -> torch.Tensor:
        """Return what may follow each of ``answers``: bool ``[answers, vocabulary]`` in the host's memory.

        Nothing may follow what the grammar does not allow, or what exceeds the library's limits; the model's
        end-of-text tokens may follow what is complete. An answer that continues the one before it, as the drafts of a
        request do, costs only what it has more. A grammar that is not prepared is compiled here, which takes long.
        Raises as `prepare` does.
        """
        number, compiled = self._get(grammar)
        words = np.zeros((len(answers), -(-compiled.vocabulary.tokens.vocab_size // 32)), dtype=np.uint32)
        place = 0
        while place < len(answers):
            end = place + 1
            while end < len(answers) and _continues(answers[end], answers[end - 1]):
                end += 1
            self._write(number, compiled, answers[place:end], words[place:end])
            place = end
        bits = np.unpackbits(words.view(np.uint8), axis=1, count=self._vocab_size, bitorder="little")
        return torch.from_numpy(bits.view(np.bool_))

    def _write(self, number: int, compiled: CompiledGrammar, answers: Sequence[Sequence[int]], rows: MaskRow) -> None:
        """Write the masks of answers each of which continues the one before; all but the first end in guesses."""
        state = self._find(number, answers[0]) or compiled.begin()
        for answer, row in zip(answers, rows, strict=True):
            state.write_mask(answer, row)
            if state.is_broken:
                state = compiled.begin()
        state.rewind(len(answers[0]))
        self._states[_key(number, state.read)] = state
        while len(self._states) > MOST_STATES:
            self._states.popitem(last=False)

    def _find(self, number: int, answer: Sequence[int]) -> AnswerState | None:
        """Take out the state that has read most of the answer."""
        tokens = list(answer)
        for length in range(len(tokens), max(-1, len(tokens) - MOST_NEW_TOKENS - 1), -1):
            key = _key(number, tokens[max(0, length - _TAIL) : length], length)
            state = self._states.get(key)
            if state is not None and state.read == tokens[:length]:
                return self._states.pop(key)
        return None

    def _is_ready(self, grammar: Grammar) -> bool:
        with self._lock:
            return grammar in self._compiled

    def _get(self, grammar: Grammar) -> tuple[int, CompiledGrammar]:
        with self._lock:
            found = self._compiled.get(grammar)
            if found is not None:
                self._compiled.move_to_end(grammar)
                return found
        made = next(self._numbers), compile_grammar(grammar, self.read_vocabulary())
        with self._lock:
            found = self._compiled.setdefault(grammar, made)
            while len(self._compiled) > MOST_GRAMMARS:
                self._compiled.popitem(last=False)
        return found


def _continues(answer: Sequence[int], earlier: Sequence[int]) -> bool:
    return len(answer) == len(earlier) + 1 and list(answer[:-1]) == list(earlier)


def _key(number: int, tail: Sequence[int], length: int | None = None) -> _Key:
    return number, len(tail) if length is None else length, tuple(tail[-_TAIL:])
