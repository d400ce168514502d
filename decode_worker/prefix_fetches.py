"""Fetches the beginning of prompts that are read here from other workers' caches, before they are admitted.

See `inference_engine.borrowed_prefixes`: whatever comes of a fetch, the answer is admitted afterwards like any other.
"""

from collections.abc import Callable
from functools import partial

from cluster_core.handoff import FetchReport
from decode_worker.answer import Answer, Stage
from inference_engine.block_pool import NoFreeBlocks
from inference_engine.borrowed_prefixes import BorrowedPrefixes


class PrefixFetches:
    """The running fetches of a decode worker. ``ended`` is called for each that is not cancelled."""

    def __init__(self, borrowed: BorrowedPrefixes | None, *, ended: Callable[[Answer], None]) -> None:
        self._borrowed = borrowed
        self._ended = ended

    def start(self, answer: Answer) -> bool:
        """Begin to fetch for a waiting answer; False where there is nothing to fetch, or no room for it."""
        order = answer.order
        if self._borrowed is None or not answer.may_fetch:
            return False
        try:
            answer.borrowing = self._borrowed.start(
                (order.request_id, order.attempt), answer.sequence, order.fetch, partial(self._over, answer)
            )
        except NoFreeBlocks:
            return False
        if answer.borrowing is not None:
            answer.stage = Stage.FETCHING
        return answer.borrowing is not None

    def cancel(self, answer: Answer) -> None:
        """Stop the fetch for an answer, if there is one."""
        if answer.borrowing is not None and self._borrowed is not None:
            self._borrowed.cancel(answer.borrowing)

    def _over(self, answer: Answer, report: FetchReport | None) -> None:
        """Note what was fetched; an answer that has waited for another one's fetch looks again."""
        answer.fetch, answer.has_fetched, answer.borrowing = report, report is not None, None
        self._ended(answer)
