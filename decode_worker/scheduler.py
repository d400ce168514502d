"""Writes answers: admission, import, continuous batching, preemption.

Life of an answer: it *waits* in a bounded queue until blocks for its prompt and one token are reserved; then it is
*importing* until the prompt's blocks have arrived and been accepted, or it reads its prompt here, perhaps after what
another worker's cache has of it was *fetched*; it is *running* while steps add tokens, each sealed block entering the
cache; it *ends* with its last token, an error or a cancel, and every block it held goes back.

An order for several answers is one answer until its prompt has been read or has arrived; then the others are *forked*
from it. They share its full blocks and its stream, and are from then on answers like all others.

When blocks run out, an answer whose reader does not keep up is preempted first, then the youngest: it gives back all
its blocks and waits at its old place, to be read again from prompt and tokens. An answer preempts only younger ones, so
the oldest always moves. Imports are called back after the younger running answers, and also when others have waited for
blocks for long: else two full workers could wait for each other. What was called back reads its prompt here.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from cluster_core.errors import BatonError, Cancelled, LegFailed, RequestError
from cluster_core.failpoints import hit
from cluster_core.holds import Hold, RequestHold
from cluster_core.identity import Attempt, RequestId
from cluster_core.logprobs import TokenLogprobs
from cluster_core.workers import WorkerLoad
from cluster_rpc.order_checks import Capacity, Occupation, check_order
from cluster_rpc.worker_messages import WorkOrder
from decode_worker.answer import Answer, Stage
from decode_worker.answer_stream import AnswerStream, Finished, FinishReason, HandedOver, Kept, PartRead, Started
from decode_worker.batcher import plan_step
from decode_worker.broken_import import goes_on_here, keep_verified
from decode_worker.forks import fork_answer
from decode_worker.load_report import report_load
from decode_worker.prefix_fetches import PrefixFetches
from decode_worker.prompt_import import BlockSource, PromptImports
from decode_worker.settings import DecodeSettings
from decode_worker.speculation import Speculation
from decode_worker.step_share import StepShare
from decode_worker.waiting_room import WaitingRoom
from inference_engine.block_pool import BlockPool, NoFreeBlocks
from inference_engine.borrowed_prefixes import BorrowedPrefixes
from inference_engine.learned_rates import LearnedRates
from inference_engine.sequence import TokenSequence
from inference_engine.step import DraftSlice, StepPlan, StepResult
from kv_transfer.import_job import Imported


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerParts:
    """What the scheduler works with."""

    pool: BlockPool
    capacity: Capacity
    source: BlockSource
    settings: DecodeSettings
    borrowed: BorrowedPrefixes | None = None
    """None: nothing is ever fetched for prompts that are read here."""
    copy_block: Callable[[int, int], None]
    """Copies a block's content, from one index to another."""
    speculation: Speculation = field(default_factory=Speculation)
    clock: Callable[[], float] = time.monotonic


class DecodeScheduler:
    """An `inference_engine.engine_loop.StepWork`. ``on_change`` is called whenever a step may have become possible."""

    def __init__(self, parts: SchedulerParts, on_change: Callable[[], None]) -> None:
        self.draining = False
        self._parts = parts
        self._on_change = on_change
        self._rates = LearnedRates()
        self._imports = PromptImports(parts.source, arrived=self._arrived, failed=self._import_failed)
        self._fetches = PrefixFetches(parts.borrowed, ended=self._wait_again)
        self._live: dict[tuple[RequestId, int], Answer] = {}
        """The answers that have not ended, by request and choice."""
        self._waiting = WaitingRoom(parts.settings.passing_s)
        self._running: list[Answer] = []
        self._in_step: list[StepShare] = []
        self._drafts: tuple[DraftSlice, ...] = ()
        self._submitted = 0
        self._look = True
        self._available_at_look = 0
        self._preemptions = 0

    @property
    def idle(self) -> bool:
        """No answer is waited for."""
        return not self._live

    def submit(self, order: WorkOrder) -> Answer:
        """Queue a request. Raises what `check_order` raises. A live earlier attempt is ended."""
        parts = self._parts
        older = next((answer for answer in self._live.values() if answer.order.request_id == order.request_id), None)
        occupation = Occupation(
            draining=self.draining,
            waiting=len(self._waiting),
            live_attempt=None if older is None else older.order.attempt,
        )
        check_order(order, order.sampling.max_tokens, parts.capacity, occupation)
        if older is not None:
            self.abort(older)
        arrival = self._submitted + 1
        self._submitted += order.choices
        answer = Answer(
            order=order,
            sequence=TokenSequence(
                pool=parts.pool,
                hold=RequestHold(order.request_id, order.attempt, arrival),
                root=order.root_hash,
                token_ids=order.prompt_token_ids,
                block_size_tokens=parts.capacity.layout.block_size_tokens,
                window_tokens=parts.capacity.layout.window_tokens,
            ),
            stream=AnswerStream(parts.settings.stream_tokens, self._look_again),
            arrival=arrival,
            arrived_s=parts.clock(),
        )
        self._live[order.request_id, 0] = answer
        self._waiting.add(answer)
        self._look_again()
        return answer

    def abort(self, answer: Answer) -> None:
        """End an answer that nobody waits for any more, and its siblings. Does nothing to those that have ended."""
        for sibling in [live for live in self._live.values() if live.stream is answer.stream]:
            self._end(sibling, Cancelled("the answer was cancelled"))

    def end_choice(self, request_id: RequestId, attempt: Attempt, choice: int) -> bool:
        """End one of several answers, whose reader has enough of it; False when it has ended already."""
        answer = self._live.get((request_id, choice)) or self._live.get((request_id, 0))
        if answer is None or answer.order.attempt != attempt:
            return False
        if answer.choice == choice and answer.written:
            self._end(answer, None)
            return True
        return answer.leave_out(choice)

    def next_step(self) -> StepPlan | None:
        """Admit what has room, then give every answer that can move its place in the step, the oldest first."""
        self._admit()
        if not self._running:
            return None
        settings, now_s = self._parts.settings, self._parts.clock()
        ready = [answer for answer in self._running if not answer.is_paused(now_s)]
        counts = plan_step([answer.sequence.pending for answer in ready], settings.token_budget, settings.chunk_tokens)
        chosen = [StepShare(answer=answer, count=count) for answer, count in zip(ready, counts, strict=True) if count]
        able = [share for share in chosen if self._make_room(share.answer, share.count)]
        self._in_step = [share for share in able if share.answer.stage is Stage.RUNNING]
        if not self._in_step:
            return None
        room = settings.token_budget - sum(share.count for share in self._in_step)
        self._drafts = self._parts.speculation.plan(self._in_step, room)
        return StepPlan(slices=tuple(share.slice() for share in self._in_step), drafts=self._drafts)

    def step_done(self, result: StepResult) -> None:
        """Seal what the step filled, stream the tokens it drew, end the answers that are complete."""
        shares, self._in_step = self._in_step, []
        self._parts.speculation.step_done(shares, self._drafts, result)
        writing = sum(share.writes for share in shares)
        read = sum(share.count for share in shares) - writing
        self._rates.step_took(result.elapsed_s, prefill_tokens=read, decode_tokens=writing)
        for share, drawn in zip(shares, result.slices, strict=True):
            answer = share.answer
            if answer.stage is Stage.ENDED:
                self._give_back(answer)
                continue
            if drawn.prompt_logprobs:
                position = answer.sequence.computed + 1
                answer.stream.put(PartRead(position=position, logprobs=drawn.prompt_logprobs))
            answer.sequence.advance(share.count)
            for fork, first, told in self._fork(answer, drawn.fork_token_ids, drawn.fork_logprobs):
                self._finish_if(fork, fork.write(first, told))
            self._finish_if(answer, answer.write(drawn.token_ids, drawn.logprobs))
            if share.offer is not None and answer.stage is Stage.RUNNING:
                answer.sequence.trim()
        self._on_change()

    def step_failed(self, error: Exception, places: frozenset[int] | None) -> None:
        """End the answers of the step that raised, those at ``places`` or all; the others are planned again."""
        failed_step, self._in_step = self._in_step, []
        for place, share in enumerate(failed_step):
            if share.answer.stage is Stage.ENDED:
                self._give_back(share.answer)
            elif places is None or place in places:
                reason = f"the decode's engine step failed: {type(error).__name__}: {error}"
                self._end(share.answer, error if isinstance(error, RequestError) else LegFailed(reason))

    def sweep(self) -> None:
        """End the answers that were paused for too long, call back an import that others wait for.

        To be called now and then.
        """
        settings, now_s = self._parts.settings, self._parts.clock()
        if self._waiting.blocked_since(now_s - settings.passing_s):
            late = [one for one in self._importing() if now_s - one.import_began_s >= settings.import_patience_s]
            self._call_back_youngest(late)
        for answer in [one for one in self._live.values() if one.paused_s(now_s) >= settings.slow_reader_s]:
            self._end(answer, Cancelled(f"the answer's reader took nothing for {settings.slow_reader_s:g} s"))

    def known_holds(self) -> set[Hold]:
        """Return the holds of the answers that live or run, or that a step or an import still uses."""
        stepping = (*self._running, *(share.answer for share in self._in_step))
        return {answer.sequence.hold for answer in (*self._live.values(), *stepping, *self._imports.running())}

    async def close(self, error: BatonError) -> None:
        """End every answer with ``error`` and wait for the imports to stop."""
        for answer in list(self._live.values()):
            self._end(answer, error)
        await self._imports.close()

    def load(self) -> WorkerLoad:
        """Return what the scheduler knows of the worker's load."""
        pool, guesses, live = self._parts.pool, self._parts.speculation, self._live.values()
        return report_load(pool, self._rates, guesses, live, draining=self.draining, preemptions=self._preemptions)

    def _look_again(self) -> None:
        """Note that an answer which waits may be admitted now."""
        self._look = True
        self._on_change()

    def _admit(self) -> None:
        """Admit answers while there is room for them.

        Trying is not free, so it is left out when nothing was given back since the last look found no room.
        """
        if not self._look and self._parts.pool.available() <= self._available_at_look:
            return
        self._look = False
        self._admit_waiting()
        self._available_at_look = self._parts.pool.available()

    def _admit_waiting(self) -> None:
        while len(self._live) - len(self._waiting) < self._parts.settings.max_running:
            answer = self._waiting.admit(self._try_admit, self._parts.clock())
            if answer is None:
                return
            if answer.stage is Stage.FETCHING:
                continue
            if not answer.started:
                answer.started = True
                queue_s = self._parts.clock() - answer.arrived_s
                cached = answer.sequence.cached
                answer.stream.put(Started(queue_s=queue_s, cached_tokens=cached, fetch=answer.fetch))
            if answer.to_import:
                answer.stage = Stage.IMPORTING
                answer.import_began_s = self._parts.clock()
                self._imports.start(answer)
            else:
                self._run(answer)

    def _try_admit(self, answer: Answer) -> bool:
        """Begin to fetch for an answer, or reserve what it needs to run or to import; False where there is no room."""
        return self._fetches.start(answer) or self._try_reserve(answer)

    def _wait_again(self, answer: Answer) -> None:
        answer.stage = Stage.WAITING
        self._waiting.add(answer)
        self._look_again()

    def _try_reserve(self, answer: Answer) -> bool:
        """Reserve blocks for all of the answer's tokens and the next one, and leave the running ones some to grow."""
        sequence = answer.sequence
        length = len(sequence.token_ids)
        if answer.to_import:
            sequence.start_at_tail()
        if not answer.tells_prompt:
            sequence.attach_cached(length if answer.to_import else length - 1)
        try:
            sequence.reserve_ahead(length + 1)
        except NoFreeBlocks:
            sequence.give_back()
            return False
        if self._parts.pool.available() < len(self._running) // 4:
            sequence.give_back()
            return False
        return True

    def _run(self, answer: Answer) -> None:
        answer.stage = Stage.RUNNING
        self._running.append(answer)
        self._running.sort(key=lambda running: running.arrival)

    def _fork(
        self, answer: Answer, token_ids: Sequence[int], logprobs: Sequence[TokenLogprobs]
    ) -> Iterator[tuple[Answer, tuple[int, ...], tuple[TokenLogprobs, ...]]]:
        """Yield the other answers to an order, each with its first token, which the caller writes, and its logprobs."""
        for choice, token_id in enumerate(token_ids, start=1):
            fork = fork_answer(answer, choice, self._parts.copy_block)
            self._live[answer.order.request_id, choice] = fork
            if fork.sequence.block_table:
                self._run(fork)
            else:
                self._waiting.add(fork)
                self._look = True
            yield fork, (token_id,), tuple(logprobs[choice - 1 : choice])

    def _make_room(self, answer: Answer, count: int) -> bool:
        """Reserve the blocks that ``count`` more tokens need, preempting others; False when that is impossible now."""
        while answer.stage is Stage.RUNNING:
            try:
                answer.sequence.reserve(answer.sequence.computed + count)
            except NoFreeBlocks:
                paused = [other for other in self._running if other.stream.full]
                younger = [other for other in self._running if other.arrival > answer.arrival]
                victims = paused or younger
                if not victims:
                    self._call_back_youngest([other for other in self._importing() if other.arrival > answer.arrival])
                    return False
                self._preempt(victims[-1])
            else:
                return True
        return False

    def _preempt(self, answer: Answer) -> None:
        hit("d.preempt")
        self._preemptions += 1
        self._look = True
        self._running.remove(answer)
        self._give_back(answer)
        answer.stage = Stage.WAITING
        self._waiting.add(answer)

    def _importing(self) -> list[Answer]:
        return [answer for answer in self._live.values() if answer.stage is Stage.IMPORTING]

    def _call_back_youngest(self, imports: list[Answer]) -> None:
        """Stop the youngest import, unless one is being stopped already; its blocks come back when it has stopped."""
        if imports and not any(answer.read_here for answer in self._importing()):
            youngest = max(imports, key=lambda answer: answer.arrival)
            youngest.read_here = True
            self._imports.cancel(youngest)

    def _arrived(self, answer: Answer, imported: Imported) -> None:
        """Take an import over: called when its task is over, even if the answer has ended meanwhile."""
        if answer.stage is Stage.ENDED:
            self._give_back(answer)
            self._on_change()
            return
        self._on_change()  # first: a step is planned before anybody reads what is put on the stream
        report = imported.report
        self._rates.transfer_took(report.exact_bytes, report.rated_s, report.exposed_s)
        answer.sequence.private = imported.rounded
        answer.sequence.complete()
        answer.stream.put(HandedOver(report=report))
        self._run(answer)
        for fork, first, _ in self._fork(answer, imported.fork_token_ids, ()):
            self._finish_if(fork, fork.take_over(first))
        self._finish_if(answer, answer.take_over((imported.first_token_id,)))

    def _import_failed(self, answer: Answer, error: BatonError, verified: frozenset[int]) -> None:
        kept = keep_verified(answer.sequence, verified)
        self._give_back(answer)
        if answer.stage is Stage.IMPORTING and goes_on_here(answer, error, self._parts.settings.passing_s):
            answer.read_here = True
            self._wait_again(answer)
        elif answer.stage is Stage.IMPORTING:
            self._remove(answer)
            if kept:
                answer.stream.put(Kept(blocks=kept))
            answer.stream.fail(error)
        self._look_again()

    def _finish_if(self, answer: Answer, reason: FinishReason | None) -> None:
        if reason is not None:
            self._remove(answer)
            self._give_back(answer)
            answer.stream.put(Finished(reason=reason, choice=answer.choice))

    def _give_back(self, answer: Answer) -> None:
        """Give every block of an answer back, its draft's too."""
        answer.sequence.give_back()
        self._parts.speculation.give_back(answer)

    def _end(self, answer: Answer, error: BatonError | None) -> None:
        """End an answer early, with an error its siblings too. Blocks that a step or import writes go back after it."""
        if answer.stage is Stage.ENDED:
            return
        importing = answer.stage is Stage.IMPORTING
        self._fetches.cancel(answer)
        self._remove(answer)
        if error is None:
            answer.stream.put(Finished(reason="stop", choice=answer.choice))
        else:
            answer.stream.fail(error)
        if importing:
            self._imports.cancel(answer)
        elif all(share.answer is not answer for share in self._in_step):
            self._give_back(answer)
        self._on_change()

    def _remove(self, answer: Answer) -> None:
        self._look = True
        del self._live[answer.order.request_id, answer.choice]
        if answer.stage is Stage.WAITING:
            self._waiting.remove(answer)
        elif answer.stage is Stage.RUNNING:
            self._running.remove(answer)
        answer.stage = Stage.ENDED
