"""How far a prefill worker reads ahead of decode workers that have no room yet.

A prompt is **claimed** once an importer listens to its export: a decode worker has reserved room for it. What is read
before that pins blocks which nobody fetches. A few of them hide the wait; many would take the cache's room, and at last
that of prompts for which room is waiting elsewhere. So an unclaimed prompt is read only while all unclaimed ones pin no
more than a share of the pool. A claimed one is never held back, and every unclaimed export ends with its lease: hence
nobody waits for ever, and a decode pool that is full slows the reading down to the pace at which it takes prompts.
"""

import sys
from collections.abc import Iterable

from prefill_worker.prompt import Offer, Prompt


class Unclaimed:
    """Blocks that were read, or are being read, for decode workers that have not come. ``most`` may be pinned."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._finished: dict[Offer, frozenset[int]] = {}

    def finished(self, prompt: Prompt) -> None:
        """Note the blocks of a prompt that has been read, before it gives them back."""
        if not prompt.export.claimed:
            self._finished[prompt.export] = frozenset(prompt.sequence.block_table)

    def room(self, reading: Iterable[Prompt]) -> int:
        """Return how many blocks one more unclaimed prompt may take beside those that are being read.

        Where nothing unclaimed is there, any prompt may be read, however large.
        """
        self._finished = {
            offer: blocks for offer, blocks in self._finished.items() if not (offer.claimed or offer.over)
        }
        tables = [prompt.sequence.block_table for prompt in reading if not prompt.export.claimed]
        pinned = set[int]().union(*self._finished.values(), *tables)  # each once: those with one beginning share blocks
        return self._most - len(pinned) if pinned else sys.maxsize


def holds_back(room: int, prompt: Prompt) -> bool:
    """Say whether a prompt must wait until it is claimed, or others are, where there is so much ``room``."""
    needed = -(-len(prompt.order.prompt_token_ids) // prompt.sequence.block_size_tokens)
    return needed > room and not prompt.export.claimed
