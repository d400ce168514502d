"""The gRPC side of a prefill worker: ``PrefillService`` for the router."""

from collections.abc import AsyncIterator, Iterator
from typing import assert_never

from cluster_core.failpoints import reach
from cluster_rpc.call_deadline import CallDeadline
from cluster_rpc.guard import Context
from cluster_rpc.logprob_messages import logprobs_to_proto, prompt_pieces
from cluster_rpc.v1 import worker_pb2
from cluster_rpc.worker_messages import fetch_to_proto, order_from_proto
from inference_engine.grammar_preparer import GrammarPreparer
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
        """Stream `PrefillStarted`, the prompt's logprobs where they were asked for, then a `FirstToken` a choice.

        The stream then stays open for as long as the prompt's blocks are on offer: whoever ends it takes them back.
        """
        deadline = CallDeadline(context)
        order = order_from_proto(request)
        if order.sampling.grammar is not None:
            await deadline.wait(self._grammars.prepare(order.sampling.grammar))
        await reach("p.queue")
        prompt = self._scheduler.submit(order)
        try:
            while True:
                event = await deadline.wait(prompt.next_event())
                for message in _to_proto(event):
                    yield message
                if isinstance(event, FirstToken) and event.choice == prompt.order.choices - 1:
                    break
            await deadline.wait(prompt.export.until_over())
        finally:
            self._scheduler.abort(prompt)
            prompt.export.fail("nobody waits for the answer any more")


def _to_proto(event: PromptEvent) -> Iterator[worker_pb2.PrefillEvent]:
    match event:
        case Started():
            fetch = fetch_to_proto(event.fetch)
            started = worker_pb2.PrefillStarted(queue_s=event.queue_s, cached_tokens=event.cached_tokens, fetch=fetch)
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
