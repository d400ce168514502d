"""The text of one answer, from its tokens to what the client sees.

Tokens become whole characters (`Detokenizer`), and characters pass the stop strings (`StopMatcher`). A token that ends
the answer by its id, the model's end of text or one of the client's, shows no text unless the client wants stops shown.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from router.detokenizer import Detokenizer
from router.stop_strings import StopMatcher
from router.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class TextOptions:
    """How one request wants its text."""

    stop: tuple[str, ...] = ()
    include_stop: bool = False
    skip_special: bool = True
    stop_token_ids: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class TextDelta:
    """What some tokens added to the text."""

    text: str
    stopped_by: str | None
    """The stop string that ended the answer."""
    tokens_used: int
    """How many of the fed tokens belong to the answer: all, or those up to the one that completed ``stopped_by``."""


class TextStream:
    """The text of one answer. After a delta with ``stopped_by`` it takes no more tokens."""

    def __init__(self, tokenizer: Tokenizer, options: TextOptions) -> None:
        self._detokenizer = Detokenizer(tokenizer, skip_special=options.skip_special)
        self._matcher = StopMatcher(options.stop, include_stop=options.include_stop)
        self._silent_token_ids = frozenset() if options.include_stop else options.stop_token_ids
        self._stopped = False

    def feed(self, token_ids: Sequence[int]) -> TextDelta:
        """Take the answer's next tokens."""
        assert not self._stopped, "the answer has ended"
        shown: list[str] = []
        for used, token_id in enumerate(token_ids, start=1):
            if token_id in self._silent_token_ids:
                continue
            passed = self._matcher.feed(self._detokenizer.feed(token_id))
            shown.append(passed.text)
            if passed.matched is not None:
                self._stopped = True
                return TextDelta(text="".join(shown), stopped_by=passed.matched, tokens_used=used)
        return TextDelta(text="".join(shown), stopped_by=None, tokens_used=len(token_ids))

    def finish(self) -> str:
        """Return the text that was held back, when no more tokens come. Empty after a stop string."""
        if self._stopped:
            return ""
        self._stopped = True
        passed = self._matcher.feed(self._detokenizer.finish())
        return passed.text if passed.matched is not None else passed.text + self._matcher.finish()
