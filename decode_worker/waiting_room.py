"""Answers that have no blocks yet, in order of arrival, and who of them may be admitted next.

A smaller request may pass a bigger one that does not find enough blocks, but only until the bigger one has been blocked
for ``passing_s`` seconds: from then on nobody passes it, so every request is admitted in the end.
"""

import bisect
from collections.abc import Callable, Iterator

from decode_worker.answer import Answer

LOOK_AHEAD = 8
"""How many blocked requests are tried before the search for one that fits ends."""


class WaitingRoom:
    """The queue. It is bounded by its user: an answer that was preempted must always find room."""

    def __init__(self, passing_s: float) -> None:
        self._passing_s = passing_s
        self._answers: list[Answer] = []

    def __len__(self) -> int:
        return len(self._answers)

    def __iter__(self) -> Iterator[Answer]:
        return iter(self._answers)

    def add(self, answer: Answer) -> None:
        """Queue ``answer`` at the place of its arrival: one that was preempted comes before the younger ones."""
        bisect.insort(self._answers, answer, key=lambda waiting: waiting.arrival)

    def remove(self, answer: Answer) -> None:
        """Take ``answer`` out."""
        self._answers.remove(answer)

    def blocked_since(self, then_s: float) -> bool:
        """Whether somebody has waited for blocks since ``then_s`` or longer."""
        return any(answer.blocked_since_s is not None and answer.blocked_since_s <= then_s for answer in self._answers)

    def admit(self, try_reserve: Callable[[Answer], bool], now_s: float) -> Answer | None:
        """Take out and return the first answer that may pass and for which ``try_reserve`` finds room."""
        blocked = 0
        for answer in self._answers:
            if answer.stream.full:
                continue
            if try_reserve(answer):
                answer.blocked_since_s = None
                self._answers.remove(answer)
                return answer
            if answer.blocked_since_s is None:
                answer.blocked_since_s = now_s
            blocked += 1
            if now_s - answer.blocked_since_s >= self._passing_s or blocked == LOOK_AHEAD:
                return None
        return None
