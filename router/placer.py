"""Finds a place for an attempt: asks index and balancer, and waits for a worker when none is there."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import assert_never

from block_directory.index import PrefixIndex
from cluster_core.errors import ContextTooLong, NoWorker, Overloaded
from cluster_core.handoff import FetchReport, FetchSource
from cluster_core.hash_chain import chain_hashes, root_hash
from cluster_core.identity import Attempt, BlockHash, Incarnation, RequestId, Role, WorkerId
from cluster_core.placement import Local, Split
from cluster_rpc.worker_messages import WorkOrder
from router.balancer import Choice, can_ever_fit, choose
from router.cost_model import Assigned, Lender, RequestSize, WorkerView
from router.ledger import Ledger
from router.loans import Loan, best_lenders
from router.membership import Expected, Membership, Worker
from router.settings import RouterSettings

PREDICTION_TTL_S = 10.0
"""How long a worker is believed to have the blocks of a prompt that it was given to read. Its events come sooner."""
LENDER_REST_S = 5.0
"""How long a worker that failed to lend is not asked again; one that is lost is noticed in that time."""
RETRY_AFTER_S = 1.0
NAMED_WORKERS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """Where an attempt goes. Without ``prefill`` the decode worker reads the prompt itself."""

    choice: Choice
    prefill: Worker | None
    decode: Worker
    fetch: FetchSource | None = None
    """From whose cache the worker that reads the prompt fetches its beginning."""


@dataclass(slots=True)
class Avoided:
    """What a request has learned about workers: those that failed it, and those that had no room for it."""

    failed: set[Incarnation] = field(default_factory=set)
    full: set[Incarnation] = field(default_factory=set)
    last_refusal: Overloaded | None = None


class Placer:
    """Places attempts and keeps the ledger of what was given to whom."""

    def __init__(
        self,
        *,
        membership: Membership,
        index: PrefixIndex,
        ledger: Ledger,
        expected: Expected,
        settings: RouterSettings,
        clock: Callable[[], float],
    ) -> None:
        self._membership = membership
        self._index = index
        self._ledger = ledger
        self._layout = expected.layout
        self._model_seed = expected.model.root_hash_seed(expected.layout)
        self._settings = settings
        self._clock = clock
        self._resting: dict[WorkerId, float] = {}
        """Until when nothing is to be fetched from these workers."""
        self._pick = random.Random(settings.tie_break_seed).randrange  # noqa: S311  # breaks ties, keeps no secret

    def root_hash(self, cache_salt: str) -> bytes:
        """Return the parent of a prompt's first block."""
        return root_hash(self._model_seed, cache_salt)

    async def place(
        self,
        root: bytes,
        prompt: Sequence[int],
        max_tokens: int,
        avoided: Avoided,
        choices: int = 1,
        deadline: float | None = None,
    ) -> Placed:
        """Choose workers for a prompt and its answers, waiting up to ``worker_wait_s`` for one to come.

        What is predicted to come after ``deadline``, a moment of the clock, is chosen only where nothing else is left.

        Raises `ContextTooLong` when no worker's pool could ever hold it, `Overloaded` when all that are there have
        refused it for lack of room, `NoWorker` when the wait was in vain.
        """
        hashes = chain_hashes(root, prompt, self._layout.block_size_tokens)
        give_up_at = self._clock() + self._settings.worker_wait_s
        while True:
            views = self._membership.ready_views()
            size = RequestSize(
                prompt_tokens=len(prompt),
                max_tokens=max_tokens,
                cached_blocks=self._index.longest_prefix(hashes),
                choices=choices,
                lenders=self._lenders(hashes, avoided),
            )
            with_room = [view for view in views if view.record.incarnation not in avoided.full]
            left_s = inf if deadline is None else max(0.0, deadline - self._clock())
            choice = choose(size, with_room, avoided.failed, self._settings, self._pick, left_s)
            if choice is not None:
                return self._placed(choice, hashes)
            self._refuse_if_hopeless(size, views, avoided)
            left_s = give_up_at - self._clock()
            if left_s <= 0:
                raise NoWorker(self._who_is_missing(), RETRY_AFTER_S)
            await self._membership.wait_for_change(left_s)

    def assign(self, placed: Placed, key: tuple[RequestId, Attempt], prompt_tokens: int, choices: int = 1) -> None:
        """Enter an attempt at ``choices`` answers into the ledger."""
        tokens = placed.choice.chosen.prefill_tokens
        blocks = self._layout.blocks_for(prompt_tokens)
        own_prefill = 0 if placed.prefill else tokens
        given = Assigned(prefill_tokens=own_prefill, streams=choices, blocks=blocks)
        self._ledger.assign(placed.decode.record.worker_id, key, given)
        if placed.prefill is not None:
            self._ledger.assign(placed.prefill.record.worker_id, key, Assigned(prefill_tokens=tokens))

    def prompt_read(self, placed: Placed, key: tuple[RequestId, Attempt]) -> None:
        """Take an attempt's prefill off the ledger: its first token has come."""
        if placed.prefill is not None:
            self._ledger.end(placed.prefill.record.worker_id, key)
        else:
            self._ledger.prefilled(placed.decode.record.worker_id, key)

    def place_decode(self, placed: Placed, order: WorkOrder, avoided: Avoided) -> Placed | None:
        """Choose another decode worker for an order whose prompt ``placed.prefill`` reads or has read.

        None where there is no other with which it could be tried now, or where the prefill worker is no longer ready.
        """
        left_out = avoided.failed | avoided.full
        return self._place_decode(placed, order, lambda view: view.record.incarnation not in left_out)

    def place_waiting(self, placed: Placed, order: WorkOrder, avoided: Avoided) -> Placed | None:
        """Choose a decode worker that has room now, for an order that waits for room at another; None: nobody has."""
        left_out = avoided.failed | {placed.decode.record.incarnation}
        prompt, most = len(order.prompt_token_ids), order.sampling.max_tokens
        needed = self._layout.blocks_for_answers(prompt, most, order.choices)

        def has_room(view: WorkerView) -> bool:
            waiting = view.load.waiting_requests or view.record.incarnation in left_out
            return not waiting and view.free_blocks >= needed

        return self._place_decode(placed, order, has_room)

    def _place_decode(self, placed: Placed, order: WorkOrder, may_write: Callable[[WorkerView], bool]) -> Placed | None:
        assert placed.prefill is not None, "its prompt is read by another worker"
        reader, views = placed.prefill.record.incarnation, self._membership.ready_views()
        writers = [view for view in views if view.record.role is Role.DECODE and may_write(view)]
        if not writers:
            return None
        hashes = chain_hashes(order.root_hash, order.prompt_token_ids, self._layout.block_size_tokens)
        size = RequestSize(
            prompt_tokens=len(order.prompt_token_ids),
            max_tokens=order.sampling.max_tokens,
            cached_blocks=self._index.longest_prefix(hashes),
            choices=order.choices,
        )
        pair = [*writers, *(view for view in views if view.record.incarnation == reader)]
        choice = choose(size, pair, (), replace(self._settings, placement="split"), self._pick)
        if choice is None or not isinstance(choice.chosen.placement, Split):
            return None
        return Placed(choice=choice, prefill=placed.prefill, decode=self._worker(choice.chosen.placement.decode))

    def rebound(self, old: Placed, new: Placed, key: tuple[RequestId, Attempt], order: WorkOrder) -> None:
        """Move an attempt's decode leg in the ledger."""
        self._ledger.end(old.decode.record.worker_id, key)
        blocks = self._layout.blocks_for(len(order.prompt_token_ids))
        self._ledger.assign(new.decode.record.worker_id, key, Assigned(streams=order.choices, blocks=blocks))

    def blocks_kept(self, worker: Worker, order: WorkOrder, blocks: int) -> None:
        """Believe a worker that it has kept the first ``blocks`` blocks of an order's prompt: its event comes later."""
        prompt = order.prompt_token_ids[: blocks * self._layout.block_size_tokens]
        hashes = chain_hashes(order.root_hash, prompt, self._layout.block_size_tokens)
        self._index.predict(worker.record.worker_id, hashes, PREDICTION_TTL_S)

    def ended(self, placed: Placed, key: tuple[RequestId, Attempt]) -> None:
        """Take an attempt off the ledger."""
        if placed.prefill is not None:
            self._ledger.end(placed.prefill.record.worker_id, key)
        self._ledger.end(placed.decode.record.worker_id, key)

    def _placed(self, choice: Choice, hashes: list[BlockHash]) -> Placed:
        match choice.chosen.placement:
            case Local(worker=name):
                prefill = None
                decode = self._worker(name)
            case Split(prefill=reader, decode=writer):
                prefill, decode = self._worker(reader), self._worker(writer)
            case never:
                assert_never(never)
        self._index.predict((prefill or decode).record.worker_id, hashes, PREDICTION_TTL_S)
        fetch = self._fetch_source(choice.chosen.loan)
        return Placed(choice=choice, prefill=prefill, decode=decode, fetch=fetch)

    def note_fetch(self, report: FetchReport) -> None:
        """Ask nobody to fetch from a worker that has just failed to lend: each would lose its patience with it."""
        if report.failure:
            self._resting[report.lender] = self._clock() + LENDER_REST_S
        else:
            self._resting.pop(report.lender, None)

    def _lenders(self, hashes: Sequence[BlockHash], avoided: Avoided) -> list[Lender]:
        stored, now_s = self._index.longest_prefix(hashes, predicted_too=False), self._clock()
        rested = {name: blocks for name, blocks in stored.items() if self._resting.get(name, now_s) <= now_s}
        return best_lenders(self._membership.lending_views(), rested, avoided.failed) if rested else []

    def _fetch_source(self, loan: Loan | None) -> FetchSource | None:
        """Name the lender, with the patience that bounds what a wrong prediction costs."""
        if loan is None:
            return None
        record = self._worker(loan.lender).record
        return FetchSource(
            worker_id=record.worker_id,
            incarnation=record.incarnation,
            address=record.address,
            blocks=loan.blocks,
            patience_s=max(self._settings.fetch_patience_s, loan.spared_s),
        )

    def _worker(self, name: WorkerId) -> Worker:
        worker = self._membership.find(name)
        assert worker is not None, "the views were made a moment ago"
        return worker

    def _who_is_missing(self) -> str:
        message = f"no decode worker is ready, and none came within {self._settings.worker_wait_s:g} s"
        states = [f"{worker.record.worker_id} is {worker.state}" for worker in self._membership.workers()]
        return f"{message}: {'; '.join(states[:NAMED_WORKERS])}" if states else message

    def _refuse_if_hopeless(self, size: RequestSize, views: Sequence[WorkerView], avoided: Avoided) -> None:
        known = self._membership.compatible_views()
        if not can_ever_fit(size, known):
            field_name = "sampling_params.max_tokens"
            largest = max(view.record.total_blocks for view in known if view.record.role is Role.DECODE)
            several = f" in each of {size.choices} choices" if size.choices > 1 else ""
            reason = (
                f"{size.prompt_tokens} prompt tokens and {size.max_tokens} to write{several} need more than the "
                f"{largest * self._layout.block_size_tokens} tokens of the largest worker; send or ask for fewer"
            )
            raise ContextTooLong(field_name, reason)
        if avoided.last_refusal is not None and any(view.record.incarnation in avoided.full for view in views):
            raise Overloaded(str(avoided.last_refusal), avoided.last_refusal.retry_after_s)
