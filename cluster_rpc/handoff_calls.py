"""The importer's conversations with other workers, over gRPC: one call a hand-over or fetch."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc

from cluster_core.errors import WorkerLost
from cluster_core.handoff import AcceptBlocks, ExporterMessage, ImporterMessage
from cluster_core.identity import WorkerId
from cluster_rpc.channels import ChannelPool
from cluster_rpc.errors import from_worker_error
from cluster_rpc.handoff_messages import exporter_from_proto, importer_to_proto
from cluster_rpc.v1 import handoff_pb2_grpc

FAREWELL_S = 1.0
"""How long the exporter may take to end the stream after the last message."""

HandoffCall = grpc.aio.StreamStreamCall[Any, Any]

_END: Any = grpc.aio.EOF  # type: ignore[attr-defined]  # the stubs lack it

_Outcome = TypeVar("_Outcome")


class GrpcHandoffChannel:
    """A `kv_transfer.import_job.HandoffChannel` over one call."""

    def __init__(self, call: HandoffCall, exporter: WorkerId) -> None:
        self._call = call
        self._exporter = exporter

    async def send(self, message: ImporterMessage) -> None:
        """Send one message; `AcceptBlocks` is the last. Raises a `LegFailed` when the exporter is gone."""
        try:
            await self._call.write(importer_to_proto(message))
            if isinstance(message, AcceptBlocks):
                await self._call.done_writing()
        except grpc.RpcError as error:
            raise from_worker_error(error, self._exporter) from error
        except asyncio.InvalidStateError as error:
            raise self._lost() from error

    async def receive(self) -> ExporterMessage:
        """Wait for the next message. Raises `WorkerLost` at the stream's end, or what ended it."""
        try:
            message: Any = await self._call.read()
        except grpc.RpcError as error:
            raise from_worker_error(error, self._exporter) from error
        if message is _END:
            raise self._lost()
        return exporter_from_proto(message)

    def _lost(self) -> WorkerLost:
        return WorkerLost(f"{self._exporter} ended the hand-over's stream")


class HandoffCalls:
    """Opens calls and ends them."""

    def __init__(self, channels: ChannelPool) -> None:
        self._channels = channels
        self._farewells: set[asyncio.Task[None]] = set()
        self._calls: Counter[str] = Counter()
        """Calls under way by address."""

    async def converse(
        self, address: str, exporter: WorkerId, talk: Callable[[GrpcHandoffChannel], Awaitable[_Outcome]]
    ) -> _Outcome:
        """Let ``talk`` hold a conversation with ``exporter``. A lost worker's channel goes with the last call on it."""
        channel = self._channels.get(address)
        stub = handoff_pb2_grpc.HandoffServiceStub(channel)  # type: ignore[no-untyped-call]  # generated
        call: HandoffCall = stub.Handoff()
        self._calls[address] += 1
        try:
            outcome = await talk(GrpcHandoffChannel(call, exporter))
        except BaseException as error:
            call.cancel()
            if self._call_over(address) and isinstance(error, WorkerLost):
                await self._channels.discard(address)
            raise
        farewell = asyncio.create_task(_end_call(call), name=f"end of a hand-over by {exporter}")
        self._farewells.add(farewell)
        farewell.add_done_callback(self._farewells.discard)
        farewell.add_done_callback(lambda _: self._call_over(address))
        return outcome

    def _call_over(self, address: str) -> bool:
        """Count a call as ended; return whether it was the last one."""
        self._calls[address] -= 1
        if self._calls[address]:
            return False
        del self._calls[address]
        return True

    async def close(self) -> None:
        """Wait for the calls that are being ended."""
        await asyncio.gather(*self._farewells, return_exceptions=True)


async def _end_call(call: HandoffCall) -> None:
    """Let the exporter close its side: a cancel could overtake the last message."""
    try:
        async with asyncio.timeout(FAREWELL_S):
            await call.code()
    except (TimeoutError, grpc.RpcError, asyncio.InvalidStateError):
        call.cancel()
