"""What clients call: `Generate` and `Cancel`."""

import asyncio
import math
import secrets
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Any

import grpc

from cluster_core.errors import Cancelled, NoWorker
from cluster_core.failpoints import are_on, reach
from cluster_core.identity import RequestId
from cluster_rpc.v1 import generation_pb2, generation_pb2_grpc
from router.admission import Admission
from router.answer_choice import AnswerText
from router.live_requests import LiveRequests
from router.prompt import PreparedRequest, RequestPreparer
from router.request_flow import FlowParts, RequestFlow
from router.text_stream import TextOptions
from router.timeline import Timeline

LONG_REQUEST_BYTES = 32 * 1024
"""A larger request is prepared in a thread, so that its tokenisation does not hold up everybody's tokens. So is one
with a grammar, which is compiled."""

Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """What serving a request takes."""

    preparer: RequestPreparer
    open_text: Callable[[TextOptions], AnswerText]
    admission: Admission
    live: LiveRequests
    flow: FlowParts


class GenerationService(generation_pb2_grpc.GenerationServiceServicer):
    """Raises `BatonError`; the server's call guard translates."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self.stopping = False

    async def Generate(  # noqa: N802  # the name in the .proto
        self, request: generation_pb2.GenerateRequest, context: Context
    ) -> AsyncGenerator[generation_pb2.GenerateResponse, None]:
        """Stream the answers: chunks, then one `complete` each."""
        serving = self._serving
        if self.stopping:
            message = "the router is stopping"
            raise NoWorker(message, 1.0)
        timeline = Timeline(serving.flow.clock)
        prepared = await self._prepare(request)
        left_s = self._time_left(context)
        deadline = None if left_s is None else serving.flow.clock() + left_s
        with serving.live.scope(prepared.request_id, left_s) as live:
            await reach("router.admit")
            async with serving.admission.place(prepared.priority):
                flow = RequestFlow(serving.flow, prepared, lambda: serving.open_text(prepared.text), timeline, deadline)
                try:
                    while True:
                        response = await flow.next_response()
                        if flow.over:
                            break
                        if are_on():
                            await reach("router.token.send")
                        live.begin_write()
                        yield response
                        live.end_write()
                    await reach("router.fin")
                    serving.live.release(live)
                    yield response
                finally:
                    await flow.close()

    async def Cancel(  # noqa: N802  # the name in the .proto
        self,
        request: generation_pb2.CancelRequest,
        context: Context,  # noqa: ARG002  # gRPC passes it
    ) -> generation_pb2.CancelResponse:
        """End a live request."""
        reason = Cancelled("the request was cancelled by its id")
        found = self._serving.live.end(RequestId(request.request_id), reason)
        return generation_pb2.CancelResponse(found=found)

    async def _prepare(self, request: generation_pb2.GenerateRequest) -> PreparedRequest:
        prepare = self._serving.preparer.prepare
        grammar = request.sampling_params.WhichOneof("constraint") is not None
        if grammar or request.ByteSize() > LONG_REQUEST_BYTES:
            return await asyncio.to_thread(prepare, request, _new_id, _new_seed)
        return prepare(request, _new_id, _new_seed)

    def _time_left(self, context: Context) -> float | None:
        """Return the client's deadline, else the configured one, in seconds; None for none."""
        left_s = context.time_remaining()
        if left_s is not None and math.isfinite(left_s):
            return max(0.0, left_s)
        return self._serving.flow.settings.default_deadline_s or None


def _new_id() -> RequestId:
    return RequestId(secrets.token_hex(8))


def _new_seed() -> int:
    return secrets.randbits(63)
