"""Reads prompts: queue, cache, chunks, export, first token.

Life of a prompt: it *waits* in a bounded queue, its export open already, so that the importer finds it; where its order
says that another worker's cache holds more of it, that is *fetched* into the own cache, while others are read
(`inference_engine.borrowed_prefixes`), and whatever comes of it the prompt goes back to its place; it is *read* once
blocks for all of it are reserved, what the cache knows first, the rest in chunks shared with other prompts; each block
is exported when it is sealed; with the last chunk comes the first token, the export is finished, and the prompt's own
holds go: the lease keeps the blocks until the importer has them, the cache until somebody needs the room.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from cluster_core.errors import BatonError, Cancelled, LegFailed, RequestError
from cluster_core.failpoints import hit
from cluster_core.handoff import FetchReport
from cluster_core.holds import Hold, RequestHold
from cluster_core.identity import Attempt, RequestId
from cluster_core.sampling import choice_seed
from cluster_core.workers import WorkerLoad
from cluster_rpc.order_checks import Capacity, Occupation, check_order
from cluster_rpc.worker_messages import WorkOrder
from inference_engine.block_pool import BlockPool, NoFreeBlocks
from inference_engine.borrowed_prefixes import BorrowedPrefixes
from inference_engine.learned_rates import LearnedRates
from inference_engine.prompt_shares import share_budget
from inference_engine.sequence import FilledBlock, TokenSequence
from inference_engine.step import SequenceSlice, SliceResult, StepPlan, StepResult
from kv_transfer.export_memory import SealedBlock
from prefill_worker.prompt import FirstToken, Offer, PartRead, Prompt, Stage, Started
from prefill_worker.settings import PrefillSettings
from prefill_worker.unclaimed import Unclaimed, holds_back
from prefill_worker.waiting_prompts import WaitingPrompts


class Exports(Protocol):
    """The part of `kv_transfer.exporter.Exporter` that the scheduler calls."""

    def open(self, request_id: RequestId, attempt: Attempt) -> Offer:
        """Make the export that the importer will ask for. Raises `ExportGone` when it was made before."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerParts:
    """What the scheduler works with."""

    pool: BlockPool
    capacity: Capacity
    exports: Exports
    settings: PrefillSettings
    borrowed: BorrowedPrefixes | None = None
    """None: nothing is ever fetched."""
    clock: Callable[[], float] = time.monotonic


class PrefillScheduler:
    """An `inference_engine.engine_loop.StepWork`. ``on_change`` is called whenever a step may have become possible."""

    def __init__(self, parts: SchedulerParts, on_change: Callable[[], None]) -> None:
        self.draining = False
        self._parts = parts
        self._on_change = on_change
        self._rates = LearnedRates()
        self._live: dict[RequestId, Prompt] = {}
        self._waiting = WaitingPrompts(parts.settings.passing_s, parts.settings.chunk_tokens)
        self._unclaimed = Unclaimed(int(parts.settings.unclaimed_share * parts.capacity.total_blocks))
        self._look = True
        self._available_at_look = 0
        self._fetching: set[Prompt] = set()
        self._reading: list[Prompt] = []
        self._in_step: list[tuple[Prompt, int]] = []

    @property
    def idle(self) -> bool:
        """No prompt waits or is read."""
        return not self._live

    def submit(self, order: WorkOrder) -> Prompt:
        """Queue a prompt. A live earlier attempt is ended.

        Raises what `check_order` raises, and `ExportGone` for an attempt that was read here before.
        """
        parts = self._parts
        older = self._live.get(order.request_id)
        occupation = Occupation(
            draining=self.draining,
            waiting=len(self._waiting) + len(self._fetching),
            live_attempt=None if older is None else older.order.attempt,
        )
        check_order(order, 0, parts.capacity, occupation)
        if older is not None:
            self.abort(older)
        prompt = Prompt(
            order=order,
            sequence=TokenSequence(
                pool=parts.pool,
                hold=RequestHold(order.request_id, order.attempt),
                root=order.root_hash,
                token_ids=order.prompt_token_ids,
                block_size_tokens=parts.capacity.layout.block_size_tokens,
                window_tokens=parts.capacity.layout.window_tokens,
            ),
            export=parts.exports.open(order.request_id, order.attempt),
            arrived_s=parts.clock(),
        )
        self._live[order.request_id] = prompt
        self._waiting.add(prompt)
        self._look = True
        if order.fetch is not None:
            self._admit()  # a fetch need not wait for the end of the running step
        self._on_change()
        return prompt

    def abort(self, prompt: Prompt) -> None:
        """End a prompt that nobody waits for any more. Does nothing to one that has ended."""
        self._fail(prompt, Cancelled("the prefill was cancelled"))

    def next_step(self) -> StepPlan | None:
        """Admit what has room, then share the budget among the prompts being read."""
        self._admit()
        if not self._reading:
            return None
        for prompt in self._reading:
            self._export(prompt, self._attach_cached(prompt), ends=False)
        settings = self._parts.settings
        pending = [prompt.sequence.pending for prompt in self._reading]
        counts = share_budget(pending, settings.token_budget, settings.chunk_tokens)
        self._in_step = [(prompt, count) for prompt, count in zip(self._reading, counts, strict=True) if count]
        if not self._in_step:
            return None
        return StepPlan(slices=tuple(_slice(prompt, count) for prompt, count in self._in_step))

    def step_done(self, result: StepResult) -> None:
        """Seal and export what the step filled; finish the prompts that are complete."""
        computed = sum(count for _, count in self._in_step)
        self._rates.step_took(result.elapsed_s, prefill_tokens=computed, decode_tokens=0)
        finished_step, self._in_step = self._in_step, []
        for (prompt, count), drawn in zip(finished_step, result.slices, strict=True):
            if prompt.stage is Stage.ENDED:
                prompt.sequence.give_back()
                continue
            if drawn.prompt_logprobs:
                position = prompt.sequence.computed + 1
                prompt.told.put_nowait(PartRead(position=position, logprobs=drawn.prompt_logprobs))
            self._export(prompt, prompt.sequence.advance(count), ends=bool(drawn.token_ids))
            if drawn.token_ids:
                self._finish(prompt, drawn)
        self._on_change()

    def step_failed(self, error: Exception, places: frozenset[int] | None) -> None:
        """End the prompts of the step that raised, those at ``places`` or all; the others are planned again."""
        failed_step, self._in_step = self._in_step, []
        for place, (prompt, _) in enumerate(failed_step):
            if prompt.stage is Stage.ENDED:
                prompt.sequence.give_back()
            elif places is None or place in places:
                reason = f"the prefill's engine step failed: {type(error).__name__}: {error}"
                self._fail(prompt, error if isinstance(error, RequestError) else LegFailed(reason))

    def fail_all(self, error: BatonError) -> None:
        """End every prompt: the worker ends."""
        for prompt in list(self._live.values()):
            self._fail(prompt, error)

    def known_holds(self) -> set[Hold]:
        """Return the holds of the prompts that live or are read, or that a step still uses."""
        stepping = (*self._reading, *(prompt for prompt, _ in self._in_step))
        return {prompt.sequence.hold for prompt in (*self._live.values(), *stepping)}

    def load(self) -> WorkerLoad:
        """Return what the scheduler knows of the worker's load."""
        counts = self._parts.pool.counts()
        return WorkerLoad(
            waiting_requests=len(self._waiting) + len(self._fetching),
            running_requests=len(self._reading),
            queued_prefill_tokens=sum(prompt.to_compute for prompt in self._live.values()),
            total_blocks=counts.total,
            held_blocks=counts.held,
            cached_blocks=counts.cached,
            prefill_s_per_token=self._rates.prefill_s_per_token,
            transfer_bytes_per_s=self._rates.transfer_bytes_per_s,
            transfer_fixed_s=self._rates.transfer_fixed_s,
            draining=self.draining,
        )

    def _admit(self) -> None:
        """Admit prompts while there is room for them.

        Trying is not free, so it is left out when nothing was given back since the last look found no room.
        """
        if not self._look and self._parts.pool.available() <= self._available_at_look:
            return
        self._look = False
        self._admit_waiting()
        self._available_at_look = self._parts.pool.available()

    def _admit_waiting(self) -> None:
        while self._waiting:
            long = sum(not self._waiting.is_short(prompt) for prompt in self._reading)
            places = self._parts.settings.max_running - long
            held_back = partial(self._holds_back, self._unclaimed.room(self._reading))
            prompt = self._waiting.admit(places, held_back, self._try_admit, self._parts.clock())
            if prompt is None:
                return
            if prompt.stage is Stage.FETCHING:
                self._fetching.add(prompt)
                continue
            hit("p.start")
            self._reading.append(prompt)
            prompt.stage = Stage.READING
            prompt.started_s = self._parts.clock()
            queue_s = prompt.started_s - prompt.arrived_s
            cached = prompt.sequence.computed
            prompt.told.put_nowait(Started(queue_s=queue_s, cached_tokens=cached, fetch=prompt.fetch))

    def _holds_back(self, room: int, prompt: Prompt) -> bool:
        """Say whether a prompt waits for a decode worker's room. That may come without a block being given back."""
        waits = holds_back(room, prompt)
        self._look = self._look or waits
        return waits

    def _try_admit(self, prompt: Prompt) -> bool:
        """Begin to fetch for a prompt, or reserve blocks for all of it; False where there are too few."""
        try:
            return self._begins_to_fetch(prompt) or self._try_reserve(prompt)
        except NoFreeBlocks:
            return False

    def _begins_to_fetch(self, prompt: Prompt) -> bool:
        """Say whether there is something to fetch, which is under way then. Raises `NoFreeBlocks`."""
        if self._parts.borrowed is None or not prompt.may_fetch:
            return False
        order, on_end = prompt.order, partial(self._fetched, prompt)
        request = order.request_id, order.attempt
        prompt.borrowing = self._parts.borrowed.start(request, prompt.sequence, order.fetch, on_end)
        if prompt.borrowing is not None:
            prompt.stage = Stage.FETCHING
        return prompt.borrowing is not None

    def _fetched(self, prompt: Prompt, report: FetchReport | None) -> None:
        """Let a prompt wait at its old place: to be read, or to look again where another one's fetch has ended."""
        prompt.fetch, prompt.has_fetched, prompt.borrowing = report, report is not None, None
        if report is not None and not report.failure:
            beside_s = report.elapsed_s - report.transfer_s
            self._rates.transfer_took(report.moved_bytes, report.transfer_s, beside_s)
        self._fetching.remove(prompt)
        prompt.stage = Stage.WAITING
        self._waiting.add(prompt)
        self._look = True
        self._on_change()

    def _try_reserve(self, prompt: Prompt) -> bool:
        """Reserve blocks for all of a prompt, and export those that the cache has; False where there are too few."""
        cached = self._attach_cached(prompt)
        try:
            prompt.sequence.reserve(len(prompt.order.prompt_token_ids))
        except NoFreeBlocks:
            prompt.sequence.give_back()
            return False
        self._export(prompt, cached, ends=False)
        return True

    def _attach_cached(self, prompt: Prompt) -> list[FilledBlock]:
        """Take what the cache has by now. The prompt's logprobs come of computing it, so all of it is computed then."""
        if prompt.order.sampling.prompt_logprobs is not None:
            return []
        return prompt.sequence.attach_cached(len(prompt.order.prompt_token_ids) - 1)

    def _export(self, prompt: Prompt, filled: Sequence[FilledBlock], *, ends: bool) -> None:
        """Offer blocks that are full and, where the prompt ``ends``, the last one, which need not be."""
        size = self._parts.capacity.layout.block_size_tokens
        blocks = [
            SealedBlock(position=block.position, index=block.index, hash=block.hash, tokens=size) for block in filled
        ]
        if ends and (rest := len(prompt.order.prompt_token_ids) % size):
            table = prompt.sequence.block_table
            blocks.append(SealedBlock(position=len(table) - 1, index=table[-1], hash=None, tokens=rest))
        if blocks:
            hit("p.seal")
            prompt.export.seal(blocks)

    def _finish(self, prompt: Prompt, drawn: SliceResult) -> None:
        token_ids = (*drawn.token_ids, *drawn.fork_token_ids)
        prompt.export.finish(token_ids[0], token_ids[1:])
        compute_s = self._parts.clock() - prompt.started_s
        logprobs = (*drawn.logprobs, *drawn.fork_logprobs)
        for choice, token_id in enumerate(token_ids):
            told = logprobs[choice] if logprobs else None
            first = FirstToken(token_id=token_id, compute_s=compute_s, logprobs=told, choice=choice)
            prompt.told.put_nowait(first)
        self._unclaimed.finished(prompt)
        self._remove(prompt)
        prompt.sequence.give_back()

    def _fail(self, prompt: Prompt, error: BatonError) -> None:
        if prompt.stage is Stage.ENDED:
            return
        self._remove(prompt)
        prompt.export.fail(str(error))
        prompt.told.put_nowait(error)
        if all(stepping is not prompt for stepping, _ in self._in_step):
            prompt.sequence.give_back()
        self._on_change()

    def _remove(self, prompt: Prompt) -> None:
        self._look = True
        del self._live[prompt.order.request_id]
        if prompt.borrowing is not None and self._parts.borrowed is not None:
            self._parts.borrowed.cancel(prompt.borrowing)
        match prompt.stage:
            case Stage.WAITING:
                self._waiting.remove(prompt)
            case Stage.FETCHING:
                self._fetching.remove(prompt)
            case _:
                self._reading.remove(prompt)
        prompt.stage = Stage.ENDED


def _slice(prompt: Prompt, count: int) -> SequenceSlice:
    sequence, order = prompt.sequence, prompt.order
    sampling = order.sampling
    start, end = sequence.computed, sequence.computed + count
    last = count == sequence.pending
    asked = sampling.prompt_logprobs is not None
    return SequenceSlice(
        token_ids=sequence.token_ids[start:end],
        start=start,
        block_table=sequence.block_table,  # not changed while a step uses it
        draw=sampling if last else None,
        before=sequence.token_ids[:start] if last and sampling.looks_back else (),
        prompt_logprobs=sampling.prompt_logprobs,
        following=sequence.token_ids[end] if asked and not last else None,
        forks=tuple(choice_seed(sampling.seed, choice) for choice in range(1, order.choices)) if last else (),
    )
