"""Stop strings in a text that arrives in pieces.

The answer ends where the first stop string is complete; of several that end there, the longest counts. So the result
does not depend on how the text was cut into pieces. The end of the text is held back while it could be the beginning of
a stop string.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Passed:
    """What may be shown, and the stop string that ended the answer, if one did."""

    text: str
    matched: str | None = None


class StopMatcher:
    """Looks for ``stops`` in one answer. After a match it must not be fed."""

    def __init__(self, stops: Sequence[str], *, include_stop: bool) -> None:
        assert all(stops), "an empty stop string would end every answer"
        self._stops = tuple(stops)
        self._include_stop = include_stop
        self._longest = max(map(len, stops), default=0)
        self._held = ""

    def feed(self, text: str) -> Passed:
        """Take the next piece of text."""
        pending = self._held + text
        found = self._first_match(pending)
        if found is not None:
            end, stop = found
            self._held = ""
            return Passed(text=pending[: end if self._include_stop else end - len(stop)], matched=stop)
        keep = self._possible_beginning(pending)
        self._held = pending[len(pending) - keep :]
        return Passed(text=pending[: len(pending) - keep])

    def finish(self) -> str:
        """Return what was held back: no stop string came of it."""
        held, self._held = self._held, ""
        return held

    def _first_match(self, text: str) -> tuple[int, str] | None:
        """Return (end, stop string) of the match that ends first, the longest where several do."""
        best: tuple[int, int, str] | None = None
        for stop in self._stops:
            start = text.find(stop)
            if start >= 0:
                candidate = (start + len(stop), start, stop)
                best = candidate if best is None else min(best, candidate)
        return None if best is None else (best[0], best[2])

    def _possible_beginning(self, text: str) -> int:
        """Return the length of the longest end of ``text`` that begins a stop string."""
        for length in range(min(self._longest - 1, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stops):
                return length
        return 0
