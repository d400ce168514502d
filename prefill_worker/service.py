"""The gRPC side of a prefill worker: ``PrefillService`` for the router, ``HandoffService`` for decode workers."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import cast

from cluster_core.handoff import ExporterMessage, ImporterMessage
from cluster_rpc.call_deadline import CallDeadline
from cluster_rpc.guard import Context
from cluster_rpc.handoff_messages import exporter_to_proto, importer_from_proto
from cluster_rpc.v1 import handoff_pb2, worker_pb2
from cluster_rpc.worker_messages import order_from_proto
from kv_transfer.exporter import Exporter
from prefill_worker.prompt import FirstToken, Started
from prefill_worker.scheduler import PrefillScheduler


class PrefillService:
    """Reads prompts. A call that ends early, for whatever reason, aborts its prompt."""

    def __init__(self, scheduler: PrefillScheduler) -> None:
        self._scheduler = scheduler

    async def Prefill(  # noqa: N802  # named by gRPC
        self, request: worker_pb2.PrefillRequest, context: Context
    ) -> AsyncIterator[worker_pb2.PrefillEvent]:
        """Stream `PrefillStarted`, then `FirstToken`."""
        deadline = CallDeadline(context)
        prompt = self._scheduler.submit(order_from_proto(request))
        try:
            while True:
                event = await deadline.wait(prompt.next_event())
                yield _event_to_proto(event)
                if isinstance(event, FirstToken):
                    return
        finally:
            self._scheduler.abort(prompt)


class HandoffService:
    """Carries the exporter's conversations: one stream an importer and request."""

    def __init__(self, exporter: Exporter) -> None:
        self._exporter = exporter

    async def Handoff(  # noqa: N802  # named by gRPC
        self,
        request_iterator: AsyncIterator[handoff_pb2.ImporterMessage],
        context: Context,  # noqa: ARG002  # given by gRPC
    ) -> AsyncIterator[handoff_pb2.ExporterMessage]:
        """Stream the exporter's side of one hand-over."""
        serving = cast("AsyncGenerator[ExporterMessage, None]", self._exporter.serve(_messages(request_iterator)))
        async with aclosing(serving) as answers:
            async for answer in answers:
                yield exporter_to_proto(answer)


async def _messages(stream: AsyncIterator[handoff_pb2.ImporterMessage]) -> AsyncIterator[ImporterMessage]:
    async for message in stream:
        yield importer_from_proto(message)


def _event_to_proto(event: Started | FirstToken) -> worker_pb2.PrefillEvent:
    if isinstance(event, Started):
        started = worker_pb2.PrefillStarted(queue_s=event.queue_s, cached_tokens=event.cached_tokens)
        return worker_pb2.PrefillEvent(started=started)
    first_token = worker_pb2.FirstToken(token_id=event.token_id, compute_s=event.compute_s)
    return worker_pb2.PrefillEvent(first_token=first_token)
