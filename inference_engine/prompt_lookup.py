"""Guesses how an answer goes on from what stands in its own prompt and answer: where its last tokens stood before.

Answers that edit, quote or continue their prompt repeat long runs of it; there the guesses are right for many tokens in
a row, and making them costs microseconds.

The index has one entry for each pair of neighbouring tokens: the place that follows the pair's latest occurrence, and
from each such place a link to the one before. A look-up walks a few of these places and keeps the one before which the
most tokens agree. So a new token costs one entry, and a look-up does not depend on the length of the text.
"""

from array import array
from collections.abc import Sequence
from typing import NamedTuple

PAIR = 2
LONGEST_MATCH = 16
"""Agreement beyond this says no more."""
PLACES_TRIED = 12
INDEXED_AT_ONCE = 1024
"""Tokens indexed in one call: half a millisecond. A longer prompt is indexed over several steps."""

_PAIR_SHIFT = 32


class Guesses(NamedTuple):
    """What may come next, and how many tokens before it agreed with the text's end."""

    token_ids: tuple[int, ...]
    matched: int


NO_GUESSES = Guesses((), 0)


class PromptLookup:
    """The index of one text that only grows."""

    def __init__(self) -> None:
        self._latest: dict[int, int] = {}
        self._earlier = array("q", [0] * PAIR)
        """For each place: the place after the same pair's occurrence before it; 0, which follows no pair, for none."""

    def guess(self, token_ids: Sequence[int], count: int) -> Guesses:
        """Return up to ``count`` guesses of what follows ``token_ids``, none while a long text is still being indexed.

        ``token_ids`` must begin with what was passed before.
        """
        self._follow(token_ids)
        end = len(token_ids)
        if count < 1 or end < PAIR or len(self._earlier) < end:
            return NO_GUESSES
        best, matched = 0, 0
        place = self._latest.get(_pair(token_ids, end), 0)
        for _ in range(PLACES_TRIED):
            if not place or matched == LONGEST_MATCH:
                break
            agreeing = _agreeing(token_ids, place)
            if agreeing > matched:
                best, matched = place, agreeing
            place = self._earlier[place]
        if not best:
            return NO_GUESSES
        guesses = list(token_ids[best : best + count])
        while len(guesses) < count:  # the text repeats itself up to its end: so do the guesses
            guesses.append(guesses[best + len(guesses) - end])
        return Guesses(tuple(guesses), matched)

    def _follow(self, token_ids: Sequence[int]) -> None:
        """Index the places that were not there before. The end is a place only once a token follows."""
        first = len(self._earlier)
        for place in range(first, min(len(token_ids), first + INDEXED_AT_ONCE)):
            pair = _pair(token_ids, place)
            self._earlier.append(self._latest.get(pair, 0))
            self._latest[pair] = place


def _pair(token_ids: Sequence[int], place: int) -> int:
    """Return the pair before ``place`` as one number."""
    return token_ids[place - 2] << _PAIR_SHIFT | token_ids[place - 1]


def _agreeing(token_ids: Sequence[int], place: int) -> int:
    """Count the tokens before ``place`` that are those at the text's end; the pair agrees already."""
    end = len(token_ids)
    most = min(LONGEST_MATCH, place)
    agreeing = PAIR
    while agreeing < most and token_ids[place - 1 - agreeing] == token_ids[end - 1 - agreeing]:
        agreeing += 1
    return agreeing
