"""Runs one request: attempts until its answers are complete, and the only source of what the client is sent.

Life of an attempt: placed -> its legs start together, the decode worker told where the prompt is being read -> the
prefill leg's first tokens go to the client at once, the decode leg's follow -> the token log says that an answer is
complete. When a leg fails, the attempt's legs are cancelled, the blamed worker is avoided, and the next attempt is a
fresh request whose prompt is the old one and every token the client already has. Where only the decode leg has failed,
and before its first token, the attempt itself goes on: another decode worker fetches what the prefill leg exports.

A request for several answers starts as one attempt: one prefill, one hand-over, and the workers draw all of them. Once
one has a token, their prompts differ: what goes on after a failure are attempts at one answer each.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from cluster_core.errors import DeadlineExceeded, LegFailed, NoWorker, RetryLater
from cluster_core.failpoints import are_on, copies, reach
from cluster_core.identity import Attempt, RequestId
from cluster_core.sampling import choice_seed
from cluster_rpc.logprob_messages import logprobs_from_proto
from cluster_rpc.v1 import generation_pb2, worker_pb2
from cluster_rpc.worker_messages import WorkOrder, fetch_from_proto, report_from_proto
from router.answer_choice import AnswerChoice, AnswerText
from router.attempt_run import AttemptRun, Failure
from router.legs import Event, Leg, LegEnded, Mail
from router.mailbox import Mailbox
from router.membership import Membership
from router.placement_history import FINISHED, AttemptRecord, PlacementHistory
from router.placer import RETRY_AFTER_S, Avoided, Placed, Placer
from router.prompt import PreparedRequest
from router.prompt_told import PromptTold
from router.recovery import NO_ROOM, OTHER_DECODE_WORKER, came_too_late, learn_of, may_rebind, rung_of, unrecovered
from router.settings import RouterSettings
from router.timeline import Timeline

LOOK_FOR_ROOM_S = 1.0
"""How often it is looked whether a decode leg that waits for room would find it elsewhere."""

Choices = tuple[AnswerChoice, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowParts:
    """What all flows share."""

    placer: Placer
    membership: Membership
    history: PlacementHistory
    settings: RouterSettings
    clock: Callable[[], float]


class RequestFlow:
    """One request, driven by its handler: `next_response` until it is `over`; `close` in any case."""

    def __init__(
        self,
        parts: FlowParts,
        prepared: PreparedRequest,
        open_text: Callable[[], AnswerText],
        timeline: Timeline,
        deadline: float | None,
    ) -> None:
        """``deadline`` is a moment of the parts' clock, or None."""
        self._parts = parts
        self._prepared = prepared
        self._timeline = timeline
        self._deadline = deadline
        self._record = parts.history.begin(prepared.request_id, timeline)
        self._root = parts.placer.root_hash(prepared.cache_salt)
        self._avoided = Avoided()
        self._choices = tuple(
            AnswerChoice(
                index,
                replace(prepared.sampling, seed=choice_seed(prepared.seed, index)) if index else prepared.sampling,
                open_text(),
                timeline.sibling() if index else timeline,
            )
            for index in range(prepared.choices)
        )
        self._incomplete = len(self._choices)
        self._to_begin: deque[Choices] = deque([self._choices])
        self._runs: list[AttemptRun] = []
        self._mailbox: Mailbox[Mail] = Mailbox(parts.settings.leg_buffer_events)
        self._responses: deque[generation_pb2.GenerateResponse] = deque()
        self._cached_tokens: int | None = None
        wants_prompt = prepared.sampling.prompt_logprobs is not None
        self._prompt_told = PromptTold(prepared.prompt_token_ids, wanted=wants_prompt)
        self._failed_at: Placed | None = None
        """Where the last attempt that failed was placed."""
        self._respond(self._prompt_told.begin())

    @property
    def over(self) -> bool:
        """Whether the client was given everything: the last response was the last."""
        return not self._incomplete and not self._responses

    async def next_response(self) -> generation_pb2.GenerateResponse:
        """Return the next chunk of an answer, or its terminal message.

        Raises what ends the request early: `RequestError`, `RetryLater`, `DeadlineExceeded`; `LegFailed` where the
        request asked for no recovery.
        """
        assert not self.over
        while not self._responses:
            while self._to_begin:
                await self._begin_attempt(self._to_begin[0])
                self._to_begin.popleft()
            failed = next((run for run in self._runs if run.failure is not None), None)
            if failed is not None:
                await self._recover(failed)
                continue
            mails = await self._receive()
            for _ in range(await copies("router.token.append") if are_on() else 1):
                self._take(mails)
            for run in list(self._runs):
                await self._tell(run)
        return self._responses.popleft()

    async def _receive(self) -> list[Mail]:
        """Wait for mails; while a decode leg waits for room, look now and then who else has some."""
        while any(run.waits_for_room for run in self._runs):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_FOR_ROOM_S):
                    return await self._mailbox.receive_all()
            self._move_waiting()
        return await self._mailbox.receive_all()

    async def close(self) -> None:
        """Give everything back. Workers whose own count says that the answers are complete may end their streams."""
        runs, self._runs = self._runs, []
        for run in runs:
            if run.record.outcome != FINISHED:
                run.record.outcome = "ended before the answer did: cancelled, or out of time"
            self._give_up_place(run)
        await asyncio.gather(*(run.close(run.patience_s) for run in runs))

    async def _begin_attempt(self, choices: Choices) -> None:
        prepared, log = self._prepared, choices[0].log
        prompt = (*prepared.prompt_token_ids, *log.tokens) if log.tokens else prepared.prompt_token_ids
        placed = await self._parts.placer.place(
            self._root, prompt, log.remaining, self._avoided, len(choices), self._deadline
        )
        attempt = Attempt(0)
        for choice in choices:
            attempt = choice.log.begin_attempt()
            choice.timeline.begin_attempt()
            choice.handed_over = False
        record = AttemptRecord(
            attempt=attempt,
            choice=placed.choice,
            times=choices[0].timeline.attempts[-1],
            rung=rung_of(placed, self._failed_at),
        )
        self._record.attempts.append(record)
        run = AttemptRun(attempt, choices, placed, record, self._mailbox)
        self._runs.append(run)
        self._parts.placer.assign(placed, self._key(run), len(prompt), len(choices))
        sampling = choices[0].sampling
        told = None if self._prompt_told.complete else sampling.prompt_logprobs
        if (log.remaining, told) != (sampling.max_tokens, sampling.prompt_logprobs):
            sampling = replace(sampling, max_tokens=log.remaining, prompt_logprobs=told)
        order = WorkOrder(
            request_id=self._key(run)[0],
            attempt=attempt,
            prompt_token_ids=prompt,
            sampling=sampling,
            root_hash=self._root,
            choices=len(choices),
            fetch=placed.fetch,
        )
        await reach("router.dispatch")
        run.start(order, self._left_s())

    def _left_s(self) -> float | None:
        return None if self._deadline is None else max(0.0, self._deadline - self._parts.clock())

    async def _recover(self, run: AttemptRun) -> None:
        """Go on after a failure. Raises what ends the request: no try can help, none is wanted, or none is left."""
        failure = run.failure
        assert failure is not None
        error = failure.error
        run.record.outcome = f"{type(error).__name__}: {error}"
        # gRPC ends a call at the client's deadline by itself: that says nothing about the worker.
        if not failure.answered and not isinstance(error, DeadlineExceeded):
            self._parts.membership.suspect(failure.blamed.worker_id, failure.blamed.incarnation)
        if came_too_late(run):
            run.count_rebound(-1)
            hopeless = None
        else:
            hopeless = learn_of(failure, self._avoided)
        refused, tries = isinstance(error, RetryLater), run.tries
        if hopeless is None and not refused and not self._prepared.recover:
            hopeless = unrecovered(failure, self._choices)
        last = tries >= self._parts.settings.max_attempts
        if hopeless is None and (refused or not last) and may_rebind(run):
            placed = self._parts.placer.place_decode(run.placed, run.order, self._avoided)
            if placed is not None:
                run.count_rebound(0 if refused else 1)
                self._rebind(run, placed)
                return
        await self._end_attempt(run)
        if hopeless is None and last:
            exhausted = f"{tries} attempts failed, the last one because {error}"
            hopeless = error if refused else NoWorker(exhausted, RETRY_AFTER_S)
        if hopeless is error:
            raise error
        if hopeless is not None:
            raise hopeless from error
        self._begin_anew(run)

    def _move_waiting(self) -> None:
        """Give decode legs that wait for room to workers that have some; the exports wait for whoever comes."""
        for run in self._runs:
            if run.waits_for_room:
                placed = self._parts.placer.place_waiting(run.placed, run.order, self._avoided)
                if placed is not None:
                    run.record.outcome = NO_ROOM
                    self._rebind(run, placed)

    def _rebind(self, run: AttemptRun, placed: Placed) -> None:
        """Give the attempt's decode leg to another worker, which fetches what the prefill leg exports.

        What the prefill leg has told stays as it is. The old decode leg is nobody's from now on: what it still says is
        dropped here, and the exporter serves the newer of two importers.
        """
        for choice in run.choices:
            choice.timeline.continue_attempt()
        record = AttemptRecord(
            attempt=run.attempt,
            choice=placed.choice,
            times=run.choices[0].timeline.attempts[-1],
            rung=OTHER_DECODE_WORKER,
            fetch=run.record.fetch,
        )
        self._record.attempts.append(record)
        self._parts.placer.rebound(run.placed, placed, self._key(run), run.order)
        run.rebind(placed, record, self._left_s())

    async def _end_attempt(self, run: AttemptRun) -> None:
        """End a failed attempt, and note what it has left on its decode worker."""
        self._runs.remove(run)
        self._give_up_place(run)
        await run.close(run.last_words_s)
        self._failed_at = run.placed
        run.record.kept_blocks = run.kept_blocks
        if run.kept_blocks:
            self._parts.placer.blocks_kept(run.placed.decode, run.order, run.kept_blocks)

    def _begin_anew(self, run: AttemptRun) -> None:
        """Let each answer of a failed attempt go on; answers that have tokens have different prompts from now on."""
        unfinished = tuple(choice for choice in run.choices if choice.log.finish_reason is None)
        if any(choice.log.tokens for choice in run.choices):
            self._to_begin.extend((choice,) for choice in unfinished)
        else:
            self._to_begin.append(unfinished)

    async def _tell(self, run: AttemptRun) -> None:
        """Put what the attempt's answers have gained into responses; end an attempt whose answers are complete."""
        for choice in run.choices:
            chunk = choice.chunk()
            if chunk is None:
                continue
            self._respond(chunk)
            if choice.log.finish_reason is not None:
                self._incomplete -= 1
                self._responses.append(generation_pb2.GenerateResponse(complete=self._complete(run, choice)))
                if choice.stop_string is not None and not run.complete:
                    run.end_choice(choice)
        if not run.complete:
            return
        run.record.outcome = FINISHED
        if self._incomplete:
            self._runs.remove(run)
            self._give_up_place(run)
            await run.close(0.0)

    def _complete(self, run: AttemptRun, choice: AnswerChoice) -> generation_pb2.GenerateComplete:
        message = choice.complete(run.placed.decode.load.decode_step_s)
        message.prompt_tokens = len(self._prepared.prompt_token_ids)
        message.cached_tokens = self._cached_tokens or 0
        message.request_id = self._prepared.request_id
        return message

    def _give_up_place(self, run: AttemptRun) -> None:
        for choice in run.choices:
            choice.timeline.attempts[-1].ended_s = self._timeline.now_s()
        self._parts.placer.ended(run.placed, self._key(run))

    def _key(self, run: AttemptRun) -> tuple[RequestId, Attempt]:
        """Return the id by which workers and ledger know the attempt: no two that live at once may share it."""
        request_id = self._prepared.request_id
        if len(run.choices) < len(self._choices):
            request_id = RequestId(f"{request_id}~{run.choices[0].index}")
        return request_id, run.attempt

    def _take(self, mails: list[Mail]) -> None:
        for leg, event in mails:
            run = next((run for run in self._runs if run.owns(leg)), None)
            if run is None:
                self._parts.history.late_tokens += leg.late_tokens(event)
                continue
            try:
                self._take_one(run, leg, event)
            except LegFailed as error:
                run.failure = run.failure or Failure(error=error, blamed=leg.record, answered=True)

    def _take_one(self, run: AttemptRun, leg: Leg, event: Event) -> None:
        if isinstance(event, LegEnded):
            if not run.complete:
                run.leg_ended(leg, event)
        elif isinstance(event, worker_pb2.PrefillEvent):
            self._take_prefill(run, event)
        else:
            self._take_decode(run, event)

    def _take_prefill(self, run: AttemptRun, event: worker_pb2.PrefillEvent) -> None:
        match event.WhichOneof("event"):
            case "started":
                self._prompt_started(run, event.started)
            case "prompt_logprobs":
                self._respond(self._prompt_told.take(event.prompt_logprobs))
            case "first_token":
                first = event.first_token
                logprobs = [first.logprobs] if first.HasField("logprobs") else []
                tokens = worker_pb2.Tokens(token_ids=[first.token_id], logprobs=logprobs, choice=first.choice)
                self._accept(run, tokens)
                if first.choice == len(run.choices) - 1:
                    self._first_tokens_came(run)

    def _first_tokens_came(self, run: AttemptRun) -> None:
        """Note that the prompt was read by the prefill leg; take what the decode leg has said meanwhile."""
        self._prompt_read(run)
        held, run.held = run.held, []
        for tokens in held:
            self._take_tokens(run, tokens)
        if run.held_end is not None and not run.complete:
            run.leg_ended(*run.held_end)

    def _take_decode(self, run: AttemptRun, event: worker_pb2.DecodeEvent) -> None:
        match event.WhichOneof("event"):
            case "tokens" if run.split and not run.prompt_read:
                run.held.append(event.tokens)
            case "tokens":
                if not run.prompt_read:
                    self._prompt_read(run)
                self._take_tokens(run, event.tokens)
            case "started" if not run.split:
                self._prompt_started(run, event.started)
            case "prompt_logprobs":
                self._respond(self._prompt_told.take(event.prompt_logprobs))
            case "handoff":
                report = report_from_proto(event.handoff)
                run.record.handoff, run.record.link = report, run.link(report.transport)
                for choice in run.choices:
                    choice.timeline.transferred(report.transfer_s)
            case _:  # the end of the stream follows `finished` and says the rest
                pass

    def _take_tokens(self, run: AttemptRun, tokens: worker_pb2.Tokens) -> None:
        if self._accept(run, tokens) and run.split:
            run.choice(tokens.choice).handed_over = True

    def _accept(self, run: AttemptRun, tokens: worker_pb2.Tokens) -> list[int]:
        if not self._prompt_told.complete:
            message = "a token came before the prompt's logprobs"
            raise LegFailed(message)
        logprobs = logprobs_from_proto(tokens.logprobs, "logprobs") if tokens.logprobs else ()
        return run.choice(tokens.choice).log.accept(run.attempt, tokens.offset, tokens.token_ids, logprobs)

    def _respond(self, chunk: generation_pb2.GenerateStreamChunk | None) -> None:
        if chunk is not None:
            self._responses.append(generation_pb2.GenerateResponse(chunk=chunk))

    def _prompt_started(self, run: AttemptRun, started: worker_pb2.PrefillStarted | worker_pb2.DecodeStarted) -> None:
        if started.HasField("fetch"):
            run.record.fetch = fetch_from_proto(started.fetch)
            self._parts.placer.note_fetch(run.record.fetch)
        for choice in run.choices:
            choice.timeline.prefill_started()
        if self._cached_tokens is None:
            self._cached_tokens = min(started.cached_tokens, len(self._prepared.prompt_token_ids))

    def _prompt_read(self, run: AttemptRun) -> None:
        run.prompt_read = True
        self._parts.placer.prompt_read(run.placed, self._key(run))
