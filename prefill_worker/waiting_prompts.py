"""Prompts that have no blocks yet, in order of arrival, and who of them may be read next.

Only so many long prompts are read at once, since each keeps blocks for all of itself; a short one, which a single step
can read, needs no such place and passes those that wait for one. What waits for *blocks* may be passed too, but only
for ``passing_s`` seconds: from then on nobody is admitted before it, so every prompt is read in the end.
"""

import bisect
from collections.abc import Callable, Iterator

from prefill_worker.prompt import Prompt

LOOK_AHEAD = 8
"""How many prompts without blocks are tried before the search for one that fits ends."""


class WaitingPrompts:
    """The queue. ``short_tokens``: the longest prompt that counts as short."""

    def __init__(self, passing_s: float, short_tokens: int) -> None:
        self._passing_s = passing_s
        self._short_tokens = short_tokens
        self._prompts: list[Prompt] = []

    def __len__(self) -> int:
        return len(self._prompts)

    def __iter__(self) -> Iterator[Prompt]:
        return iter(self._prompts)

    def add(self, prompt: Prompt) -> None:
        """Queue ``prompt`` at the place of its arrival: one that has fetched comes before the younger ones."""
        bisect.insort(self._prompts, prompt, key=lambda waiting: waiting.arrived_s)

    def remove(self, prompt: Prompt) -> None:
        """Take ``prompt`` out."""
        self._prompts.remove(prompt)

    def is_short(self, prompt: Prompt) -> bool:
        """Whether a prompt needs no place among the long ones."""
        return len(prompt.order.prompt_token_ids) <= self._short_tokens

    def admit(
        self,
        places: int,
        held_back: Callable[[Prompt], bool],
        try_reserve: Callable[[Prompt], bool],
        now_s: float,
    ) -> Prompt | None:
        """Take out and return the first prompt that may be read, or fetched for, and for which blocks are found.

        ``places`` is how many more long prompts may be read. Who is ``held_back`` does not wait for blocks: it is
        passed, for however long.
        """
        blocked = 0
        for prompt in self._prompts:
            if (places < 1 and not self.is_short(prompt)) or held_back(prompt):
                continue
            if try_reserve(prompt):
                self._prompts.remove(prompt)
                return prompt
            if prompt.blocked_since_s is None:
                prompt.blocked_since_s = now_s
            blocked += 1
            if now_s - prompt.blocked_since_s >= self._passing_s or blocked == LOOK_AHEAD:
                return None
        return None
