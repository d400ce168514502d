"""Runs one request: attempts until the answer is complete, and the only source of what the client is sent.

Life of an attempt: placed -> its legs start together, the decode worker told where the prompt is being read -> the
prefill leg's first token goes to the client at once, the decode leg's follow -> the token log says that the answer is
complete. When a leg fails, the attempt's legs are cancelled, the blamed worker is avoided, and the next attempt is a
fresh request whose prompt is the old one and every token the client already has.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from cluster_core.errors import (
    BatonError,
    DeadlineExceeded,
    DuplicateRequest,
    LegFailed,
    NoWorker,
    Overloaded,
    RequestError,
    RetryLater,
)
from cluster_rpc.v1 import generation_pb2, worker_pb2
from cluster_rpc.worker_messages import WorkOrder, report_from_proto
from router.attempt_run import AttemptRun, Failure
from router.legs import Event, Leg, LegEnded, Mail
from router.membership import Membership
from router.placement_history import FINISHED, AttemptRecord, PlacementHistory
from router.placer import RETRY_AFTER_S, Avoided, Placer
from router.prompt import PreparedRequest
from router.settings import RouterSettings
from router.text_stream import TextDelta
from router.timeline import Timeline
from router.token_log import TokenLog

LEG_END_S = 1.0
"""How long the legs of a complete answer may take to end by themselves before they are cancelled."""


class AnswerText(Protocol):
    """Makes text of tokens: `router.text_stream.TextStream`."""

    def feed(self, token_ids: Sequence[int]) -> TextDelta:
        """Take tokens; return the text that is certain by now, and whether a stop string ended it."""
        ...

    def finish(self) -> str:
        """Return the text that was held back."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowParts:
    """What all flows share."""

    placer: Placer
    membership: Membership
    history: PlacementHistory
    settings: RouterSettings
    clock: Callable[[], float]


class RequestFlow:
    """One request, driven by its handler: `next_chunk` until it returns None, then `complete`; `close` in any case."""

    def __init__(
        self, parts: FlowParts, prepared: PreparedRequest, text: AnswerText, timeline: Timeline, deadline: float | None
    ) -> None:
        """``deadline`` is a moment of the parts' clock, or None."""
        self._parts = parts
        self._prepared = prepared
        self._text = text
        self._timeline = timeline
        self._deadline = deadline
        self._log = TokenLog(prepared.sampling)
        self._record = parts.history.begin(prepared.request_id, timeline)
        self._root = parts.placer.root_hash(prepared.cache_salt)
        self._avoided = Avoided()
        self._run: AttemptRun | None = None
        self._cached_tokens: int | None = None
        self._stop_string: str | None = None
        self._handed_over = False

    async def next_chunk(self) -> generation_pb2.GenerateStreamChunk | None:
        """Return the next tokens and their text; None when the answer is complete.

        Raises what ends the request early: `RequestError`, `RetryLater`, `DeadlineExceeded`.
        """
        while self._log.finish_reason is None:
            run = self._run or await self._begin_attempt()
            if run.failure is not None:
                await self._end_attempt(run, run.failure)
                continue
            first_index = len(self._log.tokens)
            self._take(run, await run.receive())
            if len(self._log.tokens) > first_index:
                return self._chunk(first_index)
        return None

    def complete(self) -> generation_pb2.GenerateComplete:
        """Return the terminal message of a complete answer."""
        log, run = self._log, self._run
        assert log.finish_reason is not None
        assert run is not None
        run.record.outcome = FINISHED
        step_s = run.placed.decode.load.decode_step_s
        message = generation_pb2.GenerateComplete(
            finish_reason=log.finish_reason,
            prompt_tokens=len(self._prepared.prompt_token_ids),
            completion_tokens=len(log.tokens),
            cached_tokens=self._cached_tokens or 0,
            text=self._text.finish(),
            seed=self._prepared.seed,
            request_id=self._prepared.request_id,
            timings=self._timeline.timings(handed_over=self._handed_over, decode_step_s=step_s),
        )
        if self._stop_string is not None:
            message.matched_stop_str = self._stop_string
        elif log.stop_token_id is not None:
            message.matched_token_id = log.stop_token_id
        return message

    async def close(self) -> None:
        """Give everything back. Workers whose own count says that the answer is complete may end their streams."""
        run, self._run = self._run, None
        if run is None:
            return
        run.record.times.ended_s = self._timeline.now_s()
        if run.record.outcome != FINISHED:
            run.record.outcome = "ended before the answer did: cancelled, or out of time"
        self._parts.placer.ended(run.placed, (self._prepared.request_id, run.attempt))
        by_count = self._log.finish_reason is not None and self._stop_string is None
        writer_knows = by_count and (self._handed_over or not run.split)
        await run.close(LEG_END_S if writer_knows else 0.0)

    async def _begin_attempt(self) -> AttemptRun:
        prepared, log = self._prepared, self._log
        prompt = (*prepared.prompt_token_ids, *log.tokens) if log.tokens else prepared.prompt_token_ids
        placed = await self._parts.placer.place(self._root, prompt, log.remaining, self._avoided)
        attempt = log.begin_attempt()
        times = self._timeline.begin_attempt()
        record = AttemptRecord(attempt=attempt, choice=placed.choice, times=times)
        self._record.attempts.append(record)
        self._handed_over = False
        run = self._run = AttemptRun(attempt, placed, record, self._parts.settings.leg_buffer_events)
        self._parts.placer.assign(placed, (prepared.request_id, attempt), len(prompt))
        order = WorkOrder(
            request_id=prepared.request_id,
            attempt=attempt,
            prompt_token_ids=prompt,
            sampling=replace(prepared.sampling, max_tokens=log.remaining),
            root_hash=self._root,
        )
        left_s = None if self._deadline is None else max(0.0, self._deadline - self._parts.clock())
        run.start(order, left_s)
        return run

    async def _end_attempt(self, run: AttemptRun, failure: Failure) -> None:
        """Clean up after a failure; raises it when another attempt cannot help or none is left."""
        error = failure.error
        run.record.outcome = f"{type(error).__name__}: {error}"
        run.record.times.ended_s = self._timeline.now_s()
        self._run = None
        self._parts.placer.ended(run.placed, (self._prepared.request_id, run.attempt))
        # gRPC ends a call at the client's deadline by itself: that says nothing about the worker.
        if not failure.answered and not isinstance(error, DeadlineExceeded):
            self._parts.membership.suspect(failure.blamed.worker_id, failure.blamed.incarnation)
        await run.close(0.0)
        if isinstance(error, DeadlineExceeded) or _about_request(error):
            raise error
        last = run.attempt >= self._parts.settings.max_attempts
        if isinstance(error, RetryLater):
            if last:
                raise error
            self._avoided.full.add(failure.blamed.incarnation)
            if isinstance(error, Overloaded):
                self._avoided.last_refusal = error
            return
        self._avoided.failed.add(failure.blamed.incarnation)
        if last:
            message = f"{run.attempt} attempts failed, the last one because {error}"
            raise NoWorker(message, RETRY_AFTER_S) from error

    def _chunk(self, first_index: int) -> generation_pb2.GenerateStreamChunk:
        log = self._log
        delta = self._text.feed(log.tokens[first_index:])
        if delta.stopped_by is not None:
            log.stop_after(first_index + delta.tokens_used)
            self._stop_string = delta.stopped_by
        fresh = log.tokens[first_index:]
        self._timeline.tokens(len(fresh))
        return generation_pb2.GenerateStreamChunk(token_ids=fresh, text=delta.text, token_index=first_index)

    def _take(self, run: AttemptRun, mails: list[Mail]) -> None:
        for leg, event in mails:
            try:
                self._take_one(run, leg, event)
            except LegFailed as error:
                run.failure = run.failure or Failure(error=error, blamed=leg.record, answered=True)

    def _take_one(self, run: AttemptRun, leg: Leg, event: Event) -> None:
        if isinstance(event, LegEnded):
            if self._log.finish_reason is None:
                run.leg_ended(leg, event)
        elif isinstance(event, worker_pb2.PrefillEvent):
            self._take_prefill(run, event)
        else:
            self._take_decode(run, event)

    def _take_prefill(self, run: AttemptRun, event: worker_pb2.PrefillEvent) -> None:
        if event.HasField("started"):
            self._prompt_started(event.started.cached_tokens)
        elif event.HasField("first_token"):
            self._prompt_read(run)
            self._log.accept(run.attempt, 0, (event.first_token.token_id,))
            held, run.held = run.held, []
            for tokens in held:
                self._take_tokens(run, tokens)
            if run.held_end is not None and self._log.finish_reason is None:
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
                self._prompt_started(event.started.cached_tokens)
            case "handoff":
                report = report_from_proto(event.handoff)
                run.record.handoff = report
                self._timeline.transferred(report.transfer_s)
            case _:  # the end of the stream follows `finished` and says the rest
                pass

    def _take_tokens(self, run: AttemptRun, tokens: worker_pb2.Tokens) -> None:
        accepted = self._log.accept(run.attempt, tokens.offset, tokens.token_ids)
        if accepted and run.split:
            self._handed_over = True

    def _prompt_started(self, cached_tokens: int) -> None:
        self._timeline.prefill_started()
        if self._cached_tokens is None:
            self._cached_tokens = min(cached_tokens, len(self._prepared.prompt_token_ids))

    def _prompt_read(self, run: AttemptRun) -> None:
        run.prompt_read = True
        self._parts.placer.prompt_read(run.placed, (self._prepared.request_id, run.attempt))


def _about_request(error: BatonError) -> bool:
    """Say whether no worker could serve the request. A worker may only still hold an earlier request of the same id."""
    return isinstance(error, RequestError) and not isinstance(error, DuplicateRequest)
