"""What a worker needs to choose the next token.

A draw depends on the logits, these values, the tokens before it and its position alone. So a request that was moved or
resumed draws what it would have drawn undisturbed, and nothing of a draw's state is ever handed over: whoever has the
tokens and the request has it all.
"""

import hashlib
from dataclasses import dataclass, field
from enum import Enum

_WORD = (1 << 64) - 1


class GrammarKind(Enum):
    """In which language a grammar is written."""

    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    LARK = "lark"
    CHOICE = "choice"
    """One string a line of a JSON array."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grammar:
    """What the whole answer must match; of one whose thinking is limited, what follows the thinking."""

    kind: GrammarKind
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ThinkingLimit:
    """How many tokens an answer may think. Thinking begins after ``start`` (at once where that is empty).

    The prompt may have begun it; only tokens of the answer count.
    """

    start: tuple[int, ...]
    end: tuple[int, ...]
    """The tokens that end it; they are forced when the limit is reached."""
    max_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Sampling of one request, complete: a worker adds nothing of its own."""

    temperature: float
    """0 is greedy."""
    top_p: float
    top_k: int
    """0 means all tokens."""
    seed: int
    max_tokens: int
    """Tokens still to be written, at least 1."""
    stop_token_ids: frozenset[int]
    """Tokens that end the answer, the model's end-of-text tokens among them unless the client ignores those."""
    answer_start: int = 0
    """Position of the answer's first token, which is the length of the client's prompt. A resumed attempt's prompt is
    longer than that: what it has beyond is part of the answer."""
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    """Over prompt and answer."""
    presence_penalty: float = 0.0
    """Over the answer, as is the next one."""
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    allowed_token_ids: frozenset[int] = frozenset()
    """Empty: all."""
    banned_sequences: tuple[tuple[int, ...], ...] = ()
    """Token sequences that the answer must not contain; one of a single token bans that token."""
    forced_token_ids: tuple[int, ...] = ()
    """How the answer begins, whatever the logits say."""
    min_tokens: int = 0
    """Tokens of the answer before one of ``stop_token_ids`` may be drawn."""
    thinking: ThinkingLimit | None = None
    grammar: Grammar | None = None
    logprobs: int | None = None
    """How many alternatives are told beside the drawn token's own logprob; None tells nothing."""
    prompt_logprobs: int | None = None
    """The same for each token of the prompt but its first."""
    plain: bool = field(init=False, repr=False, compare=False)
    """Whether the logits are used as the model made them: no mask, bias, penalty or forced token is asked for."""

    def __post_init__(self) -> None:
        edits = (
            self.looks_back
            or bool(self.logit_bias or self.allowed_token_ids or self.banned_sequences or self.forced_token_ids)
            or (self.min_tokens > 0 and bool(self.stop_token_ids))
        )
        object.__setattr__(self, "plain", not edits)  # asked for each token of each row: worked out once

    @property
    def looks_back(self) -> bool:
        """Whether a draw needs the tokens before it."""
        return (
            self.repetition_penalty != 1.0
            or self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
            or (bool(self.banned_sequences) and any(len(sequence) > 1 for sequence in self.banned_sequences))
            or self.thinking is not None
            or self.grammar is not None
        )


def choice_seed(seed: int, choice: int) -> int:
    """Return the seed of one of several answers to a prompt: the first one's is ``seed`` itself.

    The others' are 63 bits of a SHA-256 of both, so that no two requests' choices share their draws by design.
    """
    if choice == 0:
        return seed
    text = b"baton-choice-1" + (seed & _WORD).to_bytes(8, "little") + choice.to_bytes(4, "little")
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1
