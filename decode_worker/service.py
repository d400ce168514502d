"""The gRPC side of a decode worker: ``DecodeService`` for the router."""

from collections.abc import AsyncIterator
from typing import assert_never

from cluster_rpc.call_deadline import CallDeadline
from cluster_rpc.guard import Context
from cluster_rpc.v1 import worker_pb2
from cluster_rpc.worker_messages import order_from_proto, report_to_proto
from decode_worker.answer_stream import AnswerEvent, Finished, HandedOver, Started, TokensWritten
from decode_worker.scheduler import DecodeScheduler


class DecodeService:
    """Writes answers. A call that ends early, for whatever reason, aborts its answer."""

    def __init__(self, scheduler: DecodeScheduler) -> None:
        self._scheduler = scheduler

    async def Decode(  # noqa: N802  # named by gRPC
        self, request: worker_pb2.DecodeRequest, context: Context
    ) -> AsyncIterator[worker_pb2.DecodeEvent]:
        """Stream `DecodeStarted`, then a `HandoffReport` where there was one, tokens, and `DecodeFinished`."""
        deadline = CallDeadline(context)
        answer = self._scheduler.submit(order_from_proto(request))
        try:
            while True:
                event = await deadline.wait(answer.stream.take())
                yield _event_to_proto(event)
                if isinstance(event, Finished):
                    return
        finally:
            self._scheduler.abort(answer)


def _event_to_proto(event: AnswerEvent) -> worker_pb2.DecodeEvent:
    match event:
        case Started():
            started = worker_pb2.DecodeStarted(queue_s=event.queue_s, cached_tokens=event.cached_tokens)
            return worker_pb2.DecodeEvent(started=started)
        case TokensWritten():
            return worker_pb2.DecodeEvent(tokens=worker_pb2.Tokens(offset=event.offset, token_ids=event.token_ids))
        case HandedOver():
            return worker_pb2.DecodeEvent(handoff=report_to_proto(event.report))
        case Finished():
            return worker_pb2.DecodeEvent(finished=worker_pb2.DecodeFinished(finish_reason=event.reason))
        case _:
            assert_never(event)
