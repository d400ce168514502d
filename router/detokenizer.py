"""Token ids to text as they come, whole characters only.

A character can be spread over tokens, and decoders look at neighbours (a leading space is dropped at the start of a
text and only there). So the newest tokens are decoded together with those before them, as a window, and what is new in
the window's text is given out::

    window   [ tokens already given out | tokens held ]
    text      .........shown............|...delta...|U+FFFD: the rest of a character is still to come

Once a window's text ends on a whole character, it shrinks to the tokens of the last delta, so the work per token does
not grow with the answer.
"""

from router.tokenizer import Tokenizer

REPLACEMENT = "\ufffd"
MAX_WINDOW_TOKENS = 128
"""When so many tokens have not become whole characters or text, the window starts afresh."""


class Detokenizer:
    """The text of one answer. The deltas and the rest, joined, are the text of all tokens decoded at once."""

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._window: list[int] = []
        self._shown = 0
        """How many characters of the window's text were given out."""
        self._held_from = 0
        """Index in the window of the first token since the last time that all text was given out."""

    def feed(self, token_id: int) -> str:
        """Take the next token and return the text that is now certain, often all of it, sometimes none."""
        self._window.append(token_id)
        text = self._decoded()
        if len(self._window) > MAX_WINDOW_TOKENS:
            delta = self._advance(text)
            self._restart(token_id)
            return delta
        certain = text.rstrip(REPLACEMENT)
        delta = self._advance(certain)
        if delta and len(certain) == len(text):
            self._shrink()
        return delta

    def finish(self) -> str:
        """Return what is held: a character that will not be completed."""
        return self._advance(self._decoded())

    def _decoded(self) -> str:
        return self._tokenizer.decode(self._window, skip_special=self._skip_special)

    def _advance(self, certain: str) -> str:
        delta = certain[self._shown :]
        self._shown = max(self._shown, len(certain))
        return delta

    def _shrink(self) -> None:
        """Keep only the tokens of the last delta. Without text of their own they would look like a text's start."""
        kept = self._window[self._held_from :]
        context = self._tokenizer.decode(kept, skip_special=self._skip_special)
        if context and not context.endswith(REPLACEMENT):
            self._window = kept
            self._shown = len(context)
        self._held_from = len(self._window)

    def _restart(self, token_id: int) -> None:
        """Go on from the newest token alone: its text has been given out, or it has none."""
        self._window = [token_id]
        self._shown = len(self._decoded())
        self._held_from = 1
