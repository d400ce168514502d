"""The gRPC side of a decode worker: ``DecodeService`` for the router."""

from collections.abc import AsyncIterator, Iterator
from typing import assert_never

from cluster_core.failpoints import reach
from cluster_rpc import field_checks as check
from cluster_rpc.call_deadline import CallDeadline
from cluster_rpc.guard import Context
from cluster_rpc.logprob_messages import logprobs_to_proto, prompt_pieces
from cluster_rpc.v1 import worker_pb2
from cluster_rpc.worker_messages import fetch_to_proto, order_from_proto, report_to_proto
from decode_worker.answer_stream import AnswerEvent, Finished, HandedOver, Kept, PartRead, Started, TokensWritten
from decode_worker.scheduler import DecodeScheduler
from inference_engine.grammar_preparer import GrammarPreparer


class DecodeService:
    """Writes answers. A call that ends early, for whatever reason, aborts its answer."""

    def __init__(self, scheduler: DecodeScheduler, grammars: GrammarPreparer) -> None:
        self._scheduler = scheduler
        self._grammars = grammars

    async def Decode(  # noqa: N802  # named by gRPC
        self, request: worker_pb2.DecodeRequest, context: Context
    ) -> AsyncIterator[worker_pb2.DecodeEvent]:
        """Stream `DecodeStarted`, a `HandoffReport` where there was one, tokens, and a `DecodeFinished` a choice."""
        deadline = CallDeadline(context)
        order = order_from_proto(request)
        if order.sampling.grammar is not None:
            await deadline.wait(self._grammars.prepare(order.sampling.grammar))
        answer = self._scheduler.submit(order)
        unfinished = answer.order.choices
        try:
            while True:
                event = await deadline.wait(answer.stream.take())
                if isinstance(event, Finished):
                    await reach("d.fin")
                for message in _to_proto(event):
                    yield message
                unfinished -= isinstance(event, Finished)
                if not unfinished:
                    return
        finally:
            self._scheduler.abort(answer)

    async def EndChoice(  # noqa: N802  # named by gRPC
        self,
        request: worker_pb2.EndChoiceRequest,
        context: Context,  # noqa: ARG002  # given by gRPC
    ) -> worker_pb2.EndChoiceResponse:
        """End one of an order's answers; its `DecodeFinished` comes in the order's stream."""
        request_id, attempt = check.order_id(request.request_id), check.attempt(request.attempt)
        return worker_pb2.EndChoiceResponse(found=self._scheduler.end_choice(request_id, attempt, request.choice))


def _to_proto(event: AnswerEvent) -> Iterator[worker_pb2.DecodeEvent]:
    match event:
        case Started():
            fetch = fetch_to_proto(event.fetch)
            started = worker_pb2.DecodeStarted(queue_s=event.queue_s, cached_tokens=event.cached_tokens, fetch=fetch)
            yield worker_pb2.DecodeEvent(started=started)
        case PartRead():
            for piece in prompt_pieces(event.position, event.logprobs):
                yield worker_pb2.DecodeEvent(prompt_logprobs=piece)
        case TokensWritten():
            tokens = worker_pb2.Tokens(offset=event.offset, token_ids=event.token_ids, choice=event.choice)
            if event.logprobs:
                tokens.logprobs.extend(logprobs_to_proto(event.logprobs))
            yield worker_pb2.DecodeEvent(tokens=tokens)
        case Kept():
            yield worker_pb2.DecodeEvent(kept=worker_pb2.BlocksKept(blocks=event.blocks))
        case HandedOver():
            yield worker_pb2.DecodeEvent(handoff=report_to_proto(event.report))
        case Finished():
            finished = worker_pb2.DecodeFinished(finish_reason=event.reason, choice=event.choice)
            yield worker_pb2.DecodeEvent(finished=finished)
        case _:
            assert_never(event)
