"""Servicers for tests of servers and clients: they do what the request's prompt says."""

import asyncio
from collections.abc import AsyncIterator, Iterator

from cluster_core.errors import NotServed
from cluster_core.logprobs import TokenLogprobs
from cluster_rpc.guard import Context
from cluster_rpc.logprob_messages import input_logprobs, output_logprobs
from cluster_rpc.v1 import cluster_pb2, generation_pb2, handoff_pb2, worker_pb2


class ScriptedGeneration:
    """Answers "ok" with two chunks; "forever" with chunks without end; raises ``error`` for "error"."""

    def __init__(self) -> None:
        self.error: Exception = NotServed("model", "is not served here")
        self.requests: list[generation_pb2.GenerateRequest] = []
        self.closed = asyncio.Event()

    async def Generate(  # noqa: N802  # the name in the .proto
        self, request: generation_pb2.GenerateRequest, _: Context
    ) -> AsyncIterator[generation_pb2.GenerateResponse]:
        self.requests.append(request)
        try:
            if request.text == "error":
                raise self.error
            if request.text == "several":
                for response in _several():
                    yield response
                return
            index = 0
            while index < 2 or request.text == "forever":
                chunk = generation_pb2.GenerateStreamChunk(token_ids=[index], text=f"t{index}", token_index=index)
                yield generation_pb2.GenerateResponse(chunk=chunk)
                index += 1
                await asyncio.sleep(0)
            complete = generation_pb2.GenerateComplete(
                finish_reason="length", prompt_tokens=3, completion_tokens=2, matched_stop_str="#", text=".", seed=7
            )
            yield generation_pb2.GenerateResponse(complete=complete)
        finally:
            self.closed.set()

    async def Cancel(  # noqa: N802  # as above
        self, request: generation_pb2.CancelRequest, _: Context
    ) -> generation_pb2.CancelResponse:
        if request.request_id == "error":
            raise self.error
        return generation_pb2.CancelResponse(found=request.request_id == "live")


def _several() -> Iterator[generation_pb2.GenerateResponse]:
    """Yield two answers of one token each, mixed, with logprobs."""
    nothing = input_logprobs(1, (), 9)
    yield generation_pb2.GenerateResponse(chunk=generation_pb2.GenerateStreamChunk(input_logprobs=nothing))
    for index, text in enumerate("ab"):
        told = output_logprobs([TokenLogprobs(token_id=index, logprob=-float(index), rank=1)])
        chunk = generation_pb2.GenerateStreamChunk(token_ids=[index], text=text, index=index, output_logprobs=told)
        yield generation_pb2.GenerateResponse(chunk=chunk)
    for index in (1, 0):
        complete = generation_pb2.GenerateComplete(finish_reason="length", text=".", index=index)
        yield generation_pb2.GenerateResponse(complete=complete)


class ScriptedCluster:
    """A cluster of one worker."""

    async def ListWorkers(  # noqa: N802  # as above
        self, _request: cluster_pb2.ListWorkersRequest, _: Context
    ) -> cluster_pb2.ListWorkersResponse:
        worker = cluster_pb2.WorkerInfo(
            worker_id="decode-0",
            incarnation=5,
            role=worker_pb2.ROLE_DECODE,
            state="ready",
            status=worker_pb2.WorkerStatus(held_blocks=4),
        )
        return cluster_pb2.ListWorkersResponse(workers=[worker], mode="SERVING", model="m")

    async def GetPlacement(  # noqa: N802  # as above
        self, request: cluster_pb2.GetPlacementRequest, _: Context
    ) -> cluster_pb2.GetPlacementResponse:
        chosen = cluster_pb2.PlacementCandidate(
            decode_worker="decode-0", total_s=0.5, terms=[cluster_pb2.Term(name="queue", seconds=0.5)]
        )
        attempt = cluster_pb2.Attempt(attempt=1, chosen=chosen, candidates=[chosen], outcome="finished")
        return cluster_pb2.GetPlacementResponse(request_id=request.request_id, attempts=[attempt])

    async def SetPools(  # noqa: N802  # as above
        self, request: cluster_pb2.SetPoolsRequest, _: Context
    ) -> cluster_pb2.SetPoolsResponse:
        return cluster_pb2.SetPoolsResponse(prefill=request.prefill, decode=request.decode)

    async def Drain(  # noqa: N802  # as above
        self, request: cluster_pb2.DrainRequest, _: Context
    ) -> cluster_pb2.DrainResponse:
        return cluster_pb2.DrainResponse(found=request.worker_id == "decode-0")


class EchoHandoff:
    """Answers every importer message with one `ExportFailed` that names its kind."""

    async def Handoff(  # noqa: N802  # as above
        self, messages: AsyncIterator[handoff_pb2.ImporterMessage], _: Context
    ) -> AsyncIterator[handoff_pb2.ExporterMessage]:
        async for message in messages:
            failed = handoff_pb2.ExportFailed(reason=str(message.WhichOneof("message")))
            yield handoff_pb2.ExporterMessage(failed=failed)
