"""Grammars: which tokens an answer may go on with. The one file that knows llguidance, which it loads when it is asked.

A grammar's text is compiled once (`compile_grammar`), over the model's tokens; `CompiledGrammar.begin` makes the state
of one answer from it; `AnswerState.write_mask` follows the answer and says what may come next. A state is a shortcut
and nothing more: it goes on from the tokens that it has read where they begin the answer, and reads anew what differs.

llguidance compiles by recursion, as deep as a text of 64 KiB can be nested; an overflow of the stack would end the
process. So compiling has threads of its own with stacks that are large enough.
"""

import functools
import json
import re
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from cluster_core.errors import ModelFolderError
from cluster_core.sampling import Grammar, GrammarKind
from inference_engine.grammar_bounds import check_bounds, choices_of, refuse

if TYPE_CHECKING:
    import llguidance

MaskRow = npt.NDArray[np.uint32]
"""Bit t % 32 of word t // 32 tells whether token t is allowed."""

COMPILE_PATIENCE_S = 10.0
"""How long somebody waits for a compilation; one that takes longer goes on alone, its result unused."""
COMPILE_CPU_S = 1.0
MASK_CPU_S = 0.25
"""What the first mask may cost, in a thread's own time, as the line above says of compiling: all answers of a step wait
for each of its masks."""
_STACK_BYTES = 256 * 2**20
_BLANK = r"[\x20\x0A\x0D\x09]{0,32}"
"""White space between the parts of a JSON text. Without a bound, a model can write it for ever."""

_T = TypeVar("_T")
_starting = threading.Lock()


def check_grammar(grammar: Grammar) -> None:
    """Raise `InvalidField`, which names the field of ``sampling_params``, for a grammar that cannot be served.

    Needs no model: the grammar is compiled over bytes instead of tokens. Takes a few milliseconds for a usual grammar,
    `COMPILE_PATIENCE_S` at most, so an event loop calls it in a thread.
    """
    check_bounds(grammar)
    compile_grammar(grammar, _byte_tokens())


def vocabulary_of(folder: Path, vocab_size: int, eos_token_ids: frozenset[int]) -> "Vocabulary":
    """Read the folder's tokenizer.json. Raises `ModelFolderError` where no answer could follow a grammar and end.

    ``vocab_size`` is the number of logits; those that the tokenizer has no token for are never allowed.
    """
    import llguidance  # noqa: PLC0415  # heavy, and for requests with a grammar alone

    path = folder / "tokenizer.json"
    text = path.read_text(encoding="utf-8")
    ends, size = sorted(eos_token_ids), vocab_size
    try:
        if not ends:
            raise ModelFolderError(_no_end(path))
        try:
            tokens = llguidance.LLTokenizer(text, n_vocab=size, eos_token=ends)
        except ValueError:  # fewer logits than tokens, or an end without text: seldom, and reading takes a second
            known = llguidance.LLTokenizer(text).vocab_size
            ends, size = [token for token in ends if token < known], max(known, vocab_size)
            if not ends:
                raise ModelFolderError(_no_end(path)) from None
            tokens = llguidance.LLTokenizer(text, n_vocab=size, eos_token=ends)
    except ValueError as error:
        message = f"{path}: cannot be used with grammars: {_one_line(str(error))}; save it again in its fast form"
        raise ModelFolderError(message) from None
    return Vocabulary(tokens=tokens, ends=frozenset(ends))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Vocabulary:
    """The tokens of a model as llguidance wants them."""

    tokens: "llguidance.LLTokenizer"
    ends: frozenset[int]
    """The tokens that end a text."""


def compile_grammar(grammar: Grammar, vocabulary: Vocabulary) -> "CompiledGrammar":
    """Compile, which takes milliseconds to seconds. Raises `InvalidField`, one line. Any thread may call it."""
    check_bounds(grammar)
    work = _in_deep_thread(functools.partial(_compile, grammar, vocabulary))
    try:
        return work.result(COMPILE_PATIENCE_S)
    except TimeoutError:
        raise refuse(grammar, "takes too long to compile: send a simpler one") from None


class CompiledGrammar:
    """A grammar over a model's tokens. Used by one thread at a time."""

    def __init__(self, matcher: "llguidance.LLMatcher", vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self._matcher = matcher

    def begin(self) -> "AnswerState":
        """Return the state of an answer that has no token yet."""
        return AnswerState(self._matcher.deep_copy(), self.vocabulary)


class AnswerState:
    """Follows one answer. Used by one thread at a time."""

    def __init__(self, matcher: "llguidance.LLMatcher", vocabulary: Vocabulary) -> None:
        self.read: list[int] = []
        """The tokens that the grammar has taken."""
        self._matcher = matcher
        self._vocabulary = vocabulary

    @property
    def is_broken(self) -> bool:
        """Whether it can follow nothing any more; a new one has to be made."""
        return bool(self._matcher.is_error())

    def write_mask(self, answer: Sequence[int], row: MaskRow) -> None:
        """Write which tokens may follow ``answer`` to ``row``, in 32-bit words that hold the whole vocabulary.

        None may where the grammar does not allow the answer, or where following it exceeds the library's limits. After
        an answer that is complete and cannot be longer, and after one that has ended, the tokens that end a text may.
        """
        ends = self._vocabulary.ends
        length = next((place for place, token in enumerate(answer) if token in ends), len(answer))
        row[:] = 0
        if not self._follow(list(answer[:length])):
            return
        if length < len(answer):
            if self._matcher.is_accepting():
                ids = np.fromiter(ends, dtype=np.int64)
                np.bitwise_or.at(row, ids // 32, np.uint32(1) << (ids % 32).astype(np.uint32))
            return
        mask = self._matcher.compute_bitmask()
        if not self._matcher.is_error():  # in an error llguidance allows the end of the text
            row[:] = np.frombuffer(mask, dtype=np.uint32)[: len(row)]

    def rewind(self, length: int) -> None:
        """Forget all but the first ``length`` tokens read."""
        if length < len(self.read) and not self.is_broken:
            self._matcher.rollback(len(self.read) - length)
            del self.read[length:]

    def _follow(self, tokens: list[int]) -> bool:
        shared = len(self.read)
        if tokens[:shared] != self.read:
            shared = next(
                (place for place, (old, new) in enumerate(zip(self.read, tokens, strict=False)) if old != new),
                min(len(self.read), len(tokens)),
            )
        self.rewind(shared)
        rest = tokens[shared:]
        if self.is_broken or not all(0 <= token < self._vocabulary.tokens.vocab_size for token in rest):
            return False
        taken = self._matcher.try_consume_tokens(rest)
        self.read += rest[:taken]
        return taken == len(rest) and not self.is_broken


def _compile(grammar: Grammar, vocabulary: Vocabulary) -> CompiledGrammar:
    import llguidance  # noqa: PLC0415  # heavy, and for requests with a grammar alone

    limits = llguidance.LLParserLimits(
        verbose_errors=False,  # else an error tells the grammar, which is the client's
        initial_lexer_fuel=200_000,
        step_lexer_fuel=100_000,
        max_lexer_states=50_000,
        max_grammar_size=100_000,
    )
    times = [time.thread_time()]
    try:
        matcher = llguidance.LLMatcher(vocabulary.tokens, _translated(grammar), log_level=0, limits=limits)
    except ValueError as error:
        raise refuse(grammar, f"cannot be compiled: {_one_line(str(error))}") from None
    times.append(time.thread_time())
    if not matcher.is_error():
        matcher.compute_bitmask()  # what it finds out is copied with it
        times.append(time.thread_time())
    if matcher.is_error():
        raise refuse(grammar, f"cannot be compiled: {_one_line(matcher.get_error())}")
    began, compiled, masked = times
    if compiled - began > COMPILE_CPU_S or masked - compiled > MASK_CPU_S:
        raise refuse(grammar, "takes too long to compile or to follow: send a simpler one")
    return CompiledGrammar(matcher, vocabulary)


def _translated(grammar: Grammar) -> str:
    from llguidance import LLMatcher  # noqa: PLC0415  # heavy, and for requests with a grammar alone

    match grammar.kind:
        case GrammarKind.JSON_SCHEMA:
            return LLMatcher.grammar_from_json_schema(
                grammar.text, defaults={"whitespace_pattern": _BLANK}, overrides={"lenient": False}
            )
        case GrammarKind.REGEX:
            return LLMatcher.grammar_from_regex(grammar.text)
        case GrammarKind.LARK:
            return LLMatcher.grammar_from_lark(grammar.text)
        case GrammarKind.CHOICE:
            strings = (json.dumps(choice, ensure_ascii=False) for choice in choices_of(grammar))
            return LLMatcher.grammar_from_lark("start: " + " | ".join(strings))


@functools.cache
def _byte_tokens() -> Vocabulary:
    import llguidance  # noqa: PLC0415  # heavy, and for requests with a grammar alone

    tokens = llguidance.LLTokenizer("byte")
    return Vocabulary(tokens=tokens, ends=frozenset(tokens.eos_tokens))


def _in_deep_thread(work: Callable[[], _T]) -> "Future[_T]":
    """Do the work in a thread of its own, which does not hold up the end of the process."""
    future: Future[_T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001  # whoever waits for the result raises it
            future.set_exception(error)

    with _starting:  # the size is the whole process's
        before = threading.stack_size(_STACK_BYTES)
        try:
            threading.Thread(target=run, name="grammar", daemon=True).start()
        finally:
            threading.stack_size(before)
    return future


def _no_end(path: Path) -> str:
    return f"{path}: has none of the model's end-of-text tokens; grammars need one, name it in config.json"


def _one_line(text: str) -> str:
    return re.sub(r"[\x00-\x1f\x7f]+|\s{2,}", " ", text.replace("<non-verbose/>", "")).strip()[:200]
