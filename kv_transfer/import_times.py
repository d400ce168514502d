"""When the blocks of one import were under way, by the importer's clock.

A lot of blocks is *under way* from the moment when it was filled at the exporter and asked for here until the last of
it was checked here. The prefill *ends* at the exporter. What happens there is told as seconds since the importer's
opening was answered (`kv_transfer.stream_times`), so all that is to be found is the moment of that answer by the clock
here:

- not before the opening was said, and had waited at the exporter as long as the exporter says; nor so early that the
  exporter would have heard the first pull before it was said;
- not after the answer was heard; nor may anything have been heard before it happened, or a block have landed before it
  was filled. Each of these moves the latest possible moment back, so news that are late show as late.

Between the two lies the way of one short message there and one back. The answer's way is taken as half of what a call
takes over the link where that was measured, else as half of the room between the two. What this may be wrong by is told
too: a rate is no better known than the time that it is of.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Spans:
    """Seconds of one import."""

    transfer_s: float
    """In which at least one lot was under way."""
    unsure_s: float
    """How far that may be off. 0.0 where all of it began here: what was asked for had been filled before."""
    overlapped_s: float
    """The part of it before the prefill's end."""
    exposed_s: float
    """From the prefill's end until all blocks could be read here."""
    lots: tuple[int, ...]
    """How many blocks each lot had that came: one for what a pull found filled, one for each later filling."""


@dataclass(slots=True)
class _Landing:
    first_s: float
    last_s: float = 0.0
    blocks: int = 0


class ImportTimes:
    """Notes what happens as it happens; `spans` makes sense of it, once."""

    def __init__(self, clock: Callable[[], float], news_s: float | None) -> None:
        """``news_s``: how long a short message takes to come here; None where nobody has measured it."""
        self._clock = clock
        self._news_s = news_s
        self._earliest_s = self._latest_s = 0.0
        """Between these two the opening was answered."""
        self._ended_s = 0.0
        """As all that the exporter tells: since the answer."""
        self._first_pull_s: float | None = None
        self._pulled_s: list[float] = []
        self._pull_of: dict[int, int] = {}
        self._filled_s: list[float] = []
        self._filling_of: dict[int, int] = {}
        self._landed_s: dict[int, float] = {}

    def opening(self) -> None:
        """Note that the opening is about to be said."""
        self._earliest_s = self._clock()

    def answered(self, waited_s: float) -> None:
        """Note that the answer to the opening is heard."""
        self._earliest_s += waited_s
        self._latest_s = self._clock()

    def pulled(self, positions: Iterable[int]) -> None:
        """Note that blocks are about to be asked for."""
        self._pull_of.update(dict.fromkeys(positions, len(self._pulled_s)))
        self._pulled_s.append(self._clock())

    def pulling(self) -> None:
        """Note that a pull is about to be said."""
        if self._first_pull_s is None:
            self._first_pull_s = self._clock()

    def filled(self, positions: Iterable[int], filled_s: float, pulled_s: float | None = None) -> None:
        """Note that it is heard when blocks were filled; what was heard of a block first counts.

        ``pulled_s``: when the exporter heard the first pull.
        """
        self._bound(self._clock(), filled_s)
        if pulled_s is not None and self._first_pull_s is not None:
            self._earliest_s = max(self._earliest_s, self._first_pull_s - pulled_s)
        for position in positions:
            self._filling_of.setdefault(position, len(self._filled_s))
        self._filled_s.append(filled_s)

    def ended(self, ended_s: float) -> None:
        """Note that it is heard when the prefill ended."""
        self._bound(self._clock(), ended_s)
        self._ended_s = ended_s

    def landed(self, position: int) -> None:
        """Note that a block has come and its digest is known."""
        self._landed_s[position] = self._clock()

    def _bound(self, seen_s: float, told_s: float) -> None:
        """Take that what happened ``told_s`` after the answer was seen here at ``seen_s``."""
        self._latest_s = min(self._latest_s, seen_s - told_s)

    def spans(self) -> Spans:
        """Return what came of it: all blocks may be read now."""
        now_s, landings = self._clock(), self._landings()
        for (_, filling), landing in landings.items():
            self._bound(landing.first_s, self._filled_s[filling])
        answered_s, unsure_s = self._answered_s()
        ended_s = answered_s + self._ended_s
        lots = self._lots(landings, answered_s)
        transfer_s = overlapped_s = 0.0
        guessed, reached_s = 0, -math.inf
        for began_s, last_s, _, is_guess in sorted(lots):
            if last_s > reached_s:
                from_s = max(began_s, reached_s)
                guessed += is_guess and from_s == began_s
                transfer_s += max(0.0, last_s - from_s)
                overlapped_s += max(0.0, min(last_s, ended_s) - from_s)
                reached_s = last_s
        return Spans(
            transfer_s=transfer_s,
            unsure_s=guessed * unsure_s,
            overlapped_s=overlapped_s,
            exposed_s=max(0.0, now_s - ended_s),
            lots=tuple(blocks for _, _, blocks, _ in lots),
        )

    def _answered_s(self) -> tuple[float, float]:
        """Return when the opening was answered, and how far that may be off."""
        room_s = max(0.0, self._latest_s - self._earliest_s)
        news_s = room_s / 2 if self._news_s is None else min(self._news_s, room_s)
        return self._latest_s - news_s, max(news_s, room_s - news_s)

    def _landings(self) -> dict[tuple[int, int], _Landing]:
        """Return by pull and filling when the blocks came that both name."""
        landings: dict[tuple[int, int], _Landing] = {}
        for position, landed_s in self._landed_s.items():  # in the order of time
            name = self._pull_of[position], self._filling_of[position]
            landing = landings.get(name)
            if landing is None:
                landing = landings[name] = _Landing(landed_s)
            landing.last_s = landed_s
            landing.blocks += 1
        return landings

    def _lots(
        self, landings: Mapping[tuple[int, int], _Landing], answered_s: float
    ) -> list[tuple[float, float, int, bool]]:
        """Return of each lot when it began and ended, its blocks, and whether the exporter's word tells when it began.

        What a pull found filled is one lot, whenever that was.
        """
        lots = []
        found: dict[int, tuple[float, int]] = {}
        for (pull, filling), landing in landings.items():
            filled_s = answered_s + self._filled_s[filling]
            if filled_s > self._pulled_s[pull]:
                lots.append((filled_s, landing.last_s, landing.blocks, True))
            else:
                last_s, blocks = found.get(pull, (-math.inf, 0))
                found[pull] = max(last_s, landing.last_s), blocks + landing.blocks
        return lots + [(self._pulled_s[pull], last_s, blocks, False) for pull, (last_s, blocks) in found.items()]
