"""Fill in the middle: a prompt of two texts, for what stands between them.

Models that can do it have tokens of their own that mark the two texts (*sentinels*). The suffix goes first::

    <prefix> <suffix> ...the suffix... <middle> ...the prefix...   and the model goes on with the middle

so what is typed at the end of the prefix comes last, and the cached blocks of the suffix and of the prefix before it
stay valid. ``prefix_first`` gives the other order, in which models were always trained::

    <prefix> ...the prefix... <suffix> ...the suffix... <middle>

The user's texts are data: where one contains the text of a sentinel or of another special token, it becomes ordinary
tokens that spell it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from cluster_core.errors import InvalidField
from router.tokenizer import Tokenizer

_FAMILIES = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen, CodeGemma, Codestral's relatives
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),  # CodeLlama, as its vocabulary writes them
    ("<PRE>", "<SUF>", "<MID>"),
    ("[PREFIX]", "[SUFFIX]", "[MIDDLE]"),  # Mistral
    ("<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"),  # GLM
)
_HOLE_FAMILIES = (
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # noqa: RUF001  # DeepSeek writes its tokens so
    ("<fim_begin>", "<fim_hole>", "<fim_end>"),
)
"""Families whose second token stands for the gap: theirs is the order prefix, gap, suffix alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sentinels:
    """The three tokens, in the order in which they stand when the prefix comes first."""

    prefix: int
    suffix: int
    middle: int
    has_hole: bool = False
    """The second marks the gap, so the prefix must come first."""


class FillInMiddle:
    """Makes prompts for one tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._sentinels = _find(tokenizer)
        self._special = dict(tokenizer.special_tokens())
        self._texts = [text for text in self._special if len(text) > 1]
        for family in (*_FAMILIES, *_HOLE_FAMILIES):
            for text in family:
                token_id = tokenizer.token_id(text)
                if token_id is not None:
                    self._special[text] = token_id
                    self._texts.append(text.lstrip("▁"))
        longest_first = sorted(set(self._texts), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None
        self._special_ids = frozenset(self._special.values())

    def prompt(self, prefix: str, suffix: str, *, prefix_first: bool) -> list[int]:
        """Return the prompt's tokens. Raises `InvalidField` where the tokenizer has no tokens for it."""
        marks = self._sentinels
        if marks is None:
            field, reason = "fim", "the model's tokenizer has no fill-in-the-middle tokens: send text instead"
            raise InvalidField(field, reason)
        beginning = self._tokenizer.encode("", add_special_tokens=True)
        before, after = self._plain(prefix), self._plain(suffix)
        if prefix_first or marks.has_hole:
            return [*beginning, marks.prefix, *before, marks.suffix, *after, marks.middle]
        return [*beginning, marks.prefix, marks.suffix, *after, marks.middle, *before]

    def _plain(self, text: str) -> list[int]:
        """Return the text's tokens, none of them special."""
        found: list[int] = []
        for piece in self._pieces(text):
            token_ids = self._tokenizer.encode(piece, add_special_tokens=False)
            if self._special_ids.isdisjoint(token_ids):
                found += token_ids
            else:  # its normaliser makes a special token of other characters
                letters = (self._tokenizer.encode(letter, add_special_tokens=False) for letter in piece)
                found += [token_id for ids in letters for token_id in ids if token_id not in self._special_ids]
        return found

    def _pieces(self, text: str) -> Iterator[str]:
        """Cut the text within each special token's text, so that no piece contains one."""
        start = 0
        while self._pattern is not None and (match := self._pattern.search(text, start)):
            yield text[start : match.start() + 1]
            start = match.start() + 1
        if start < len(text):
            yield text[start:]


def _find(tokenizer: Tokenizer) -> Sentinels | None:
    for families, has_hole in ((_FAMILIES, False), (_HOLE_FAMILIES, True)):
        for family in families:
            first, second, third = (tokenizer.token_id(text) for text in family)
            if first is not None and second is not None and third is not None:
                return Sentinels(prefix=first, suffix=second, middle=third, has_hole=has_hole)
    return None
