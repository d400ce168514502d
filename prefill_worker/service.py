"""The gRPC side of a prefill worker: ``PrefillService`` for the router, ``HandoffService`` for decode workers."""

from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing
from typing import assert_never, cast

from cluster_core.handoff import ExporterMessage, ImporterMessage
from cluster_rpc.call_deadline import CallDeadline
from cluster_rpc.guard import Context
from cluster_rpc.handoff_messages import exporter_to_proto, importer_from_proto
from cluster_rpc.logprob_messages import logprobs_to_proto, prompt_pieces
from cluster_rpc.v1 import handoff_pb2, worker_pb2
from cluster_rpc.worker_messages import order_from_proto
from inference_engine.grammar_preparer import GrammarPreparer
from kv_transfer.exporter import Exporter
from prefill_worker.prompt import FirstToken, PartRead, PromptEvent, Started
from prefill_worker.scheduler import PrefillScheduler


class PrefillService:
    """Reads prompts. A call that ends early, for whatever reason, aborts its prompt."""

    def __init__(self, scheduler: PrefillScheduler, grammars: GrammarPreparer) -> None:
        self._scheduler = scheduler
        self._grammars = grammars

    async def Prefill(  # noqa: N802  # named by gRPC
        self, request: worker_pb2.PrefillRequest, context: Context
    ) -> AsyncIterator[worker_pb2.PrefillEvent]:
        """Stream `PrefillStarted`, the prompt's logprobs where they were asked for, then a `FirstToken` a choice."""
        deadline = CallDeadline(context)
        order = order_from_proto(request)
        if order.sampling.grammar is not None:
            await deadline.wait(self._grammars.prepare(order.sampling.grammar))
        prompt = self._scheduler.submit(order)
        try:
            while True:
                event = await deadline.wait(prompt.next_event())
                for message in _to_proto(event):
                    yield message
                if isinstance(event, FirstToken) and event.choice == prompt.order.choices - 1:
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


def _to_proto(event: PromptEvent) -> Iterator[worker_pb2.PrefillEvent]:
    match event:
        case Started():
            started = worker_pb2.PrefillStarted(queue_s=event.queue_s, cached_tokens=event.cached_tokens)
            yield worker_pb2.PrefillEvent(started=started)
        case PartRead():
            for piece in prompt_pieces(event.position, event.logprobs):
                yield worker_pb2.PrefillEvent(prompt_logprobs=piece)
        case FirstToken():
            first = worker_pb2.FirstToken(token_id=event.token_id, compute_s=event.compute_s, choice=event.choice)
            if event.logprobs is not None:
                first.logprobs.CopyFrom(logprobs_to_proto([event.logprobs])[0])
            yield worker_pb2.PrefillEvent(first_token=first)
        case _:
            assert_never(event)
