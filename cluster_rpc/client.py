"""The Python client.

::

    async with BatonClient("127.0.0.1:50051") as client:
        async for chunk in client.generate("def fib(n):", max_tokens=40, temperature=0):
            print(chunk.text, end="")

Errors are the classes of `cluster_core.errors`. Leaving the loop early cancels the request: the generator's end does
it, and `close` does it for whatever is still open. In a script without an event loop, `ask` returns a whole answer.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable
from typing import Any, Self, TypeVar, Unpack

import grpc

from cluster_core.errors import Cancelled, InvalidField
from cluster_core.identity import RequestId, WorkerId
from cluster_rpc.answer_messages import attempts_from_proto, chunk_from_proto, cluster_from_proto, last_chunk_from_proto
from cluster_rpc.answers import Answer, AttemptView, Chunk, ClusterView
from cluster_rpc.channels import open_channel
from cluster_rpc.errors import from_rpc_error
from cluster_rpc.generate_request import GenerateOptions, Prompt, make_request
from cluster_rpc.limits import PUBLIC
from cluster_rpc.v1 import cluster_pb2, cluster_pb2_grpc, generation_pb2, generation_pb2_grpc

GENERATE_TIMEOUT_S = 600.0
CALL_TIMEOUT_S = 10.0
SET_POOLS_TIMEOUT_S = 300.0

Response = TypeVar("Response")


class BatonClient:
    """Talks to a router at ``host:port``. Used as an async context manager, on one event loop."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._opened: tuple[grpc.aio.Channel, Any, Any] | None = None
        self._calls: set[Any] = set()

    async def __aenter__(self) -> Self:
        channel = open_channel(self._address, PUBLIC)
        generation: Any = generation_pb2_grpc.GenerationServiceStub(channel)  # type: ignore[no-untyped-call]  # generated
        cluster: Any = cluster_pb2_grpc.ClusterServiceStub(channel)  # type: ignore[no-untyped-call]  # generated
        self._opened = channel, generation, cluster
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Cancel what is still running and close the connection."""
        opened, self._opened = self._opened, None
        for call in self._calls:
            call.cancel()
        if opened is not None:
            await opened[0].close(None)

    async def generate(
        self, prompt: Prompt, *, timeout_s: float = GENERATE_TIMEOUT_S, **options: Unpack[GenerateOptions]
    ) -> AsyncGenerator[Chunk, None]:
        """Stream the answer to ``prompt``; the last chunk has a `Completion`, and of several answers each one's last.

        ``timeout_s`` becomes the request's deadline everywhere in the cluster.
        """
        request = make_request(prompt, options)
        call = self._generation().Generate(request, timeout=timeout_s)
        self._calls.add(call)
        try:
            async for response in call:
                if response.WhichOneof("response") == "complete":
                    yield last_chunk_from_proto(response.complete)
                else:
                    yield chunk_from_proto(response.chunk)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, self._address) from error
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if self._opened is None and task is not None and not task.cancelling():
                message = "the client was closed while the answer was on its way"
                raise Cancelled(message) from error
            raise
        finally:
            call.cancel()
            self._calls.discard(call)

    async def generate_text(
        self, prompt: Prompt, *, timeout_s: float = GENERATE_TIMEOUT_S, **options: Unpack[GenerateOptions]
    ) -> Answer:
        """Collect the whole answer to ``prompt``. For several (``n``) there is `generate_all`."""
        if options.get("n", 1) > 1:
            field, reason = "n", "asks for several answers: generate_all returns them"
            raise InvalidField(field, reason)
        (answer,) = await self.generate_all(prompt, timeout_s=timeout_s, **options)
        return answer

    async def generate_all(
        self, prompt: Prompt, *, timeout_s: float = GENERATE_TIMEOUT_S, **options: Unpack[GenerateOptions]
    ) -> tuple[Answer, ...]:
        """Collect all ``n`` answers to ``prompt``."""
        chunks: list[Chunk] = [chunk async for chunk in self.generate(prompt, timeout_s=timeout_s, **options)]
        prompt_logprobs = tuple(told for chunk in chunks for told in chunk.prompt_logprobs)
        answers = []
        for completion in sorted((last.completion for last in chunks if last.completion), key=lambda end: end.index):
            own = [chunk for chunk in chunks if chunk.index == completion.index]
            answer = Answer(
                text="".join(chunk.text for chunk in own),
                token_ids=tuple(token for chunk in own for token in chunk.token_ids),
                completion=completion,
                logprobs=tuple(told for chunk in own for told in chunk.logprobs),
                prompt_logprobs=prompt_logprobs,
            )
            answers.append(answer)
        return tuple(answers)

    async def cancel(self, request_id: str) -> bool:
        """End a live request; False when none has this id."""
        request = generation_pb2.CancelRequest(request_id=request_id)
        response = await self._answer(self._generation().Cancel(request, timeout=CALL_TIMEOUT_S))
        return bool(response.found)

    async def list_workers(self) -> ClusterView:
        """Return the cluster's state with every worker and its load."""
        request = cluster_pb2.ListWorkersRequest()
        return cluster_from_proto(await self._answer(self._cluster().ListWorkers(request, timeout=CALL_TIMEOUT_S)))

    async def get_placement(self, request_id: RequestId | str) -> tuple[AttemptView, ...]:
        """Return why a recent request went where it went, attempt by attempt."""
        request = cluster_pb2.GetPlacementRequest(request_id=request_id)
        return attempts_from_proto(await self._answer(self._cluster().GetPlacement(request, timeout=CALL_TIMEOUT_S)))

    async def set_pools(self, prefill: int, decode: int, *, timeout_s: float = SET_POOLS_TIMEOUT_S) -> tuple[int, int]:
        """Run ``prefill`` and ``decode`` workers; return how many of each serve once they do."""
        request = cluster_pb2.SetPoolsRequest(prefill=prefill, decode=decode)
        response = await self._answer(self._cluster().SetPools(request, timeout=timeout_s))
        return response.prefill, response.decode

    async def drain(self, worker_id: WorkerId | str) -> bool:
        """Send a worker no more requests; False when the router does not know it."""
        request = cluster_pb2.DrainRequest(worker_id=worker_id)
        response = await self._answer(self._cluster().Drain(request, timeout=CALL_TIMEOUT_S))
        return bool(response.found)

    async def _answer(self, call: Awaitable[Response]) -> Any:
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, self._address) from error

    def _generation(self) -> Any:
        assert self._opened is not None, "the client is used inside `async with`"
        return self._opened[1]

    def _cluster(self) -> Any:
        assert self._opened is not None, "the client is used inside `async with`"
        return self._opened[2]


def ask(address: str, prompt: Prompt, **options: Unpack[GenerateOptions]) -> Answer:
    """Return the whole answer to ``prompt``, for scripts without an event loop of their own."""

    async def _ask() -> Answer:
        async with BatonClient(address) as client:
            return await client.generate_text(prompt, **options)

    return asyncio.run(_ask())
