"""The gRPC side of whoever gives blocks away: a prefill worker that exports, any worker that lends."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Protocol, cast

from cluster_core.failpoints import reach
from cluster_core.handoff import ExporterMessage, ImporterMessage
from cluster_rpc.guard import Context
from cluster_rpc.handoff_messages import exporter_to_proto, importer_from_proto
from cluster_rpc.v1 import handoff_pb2


class Conversations(Protocol):
    """The part of `kv_transfer.exporter.Exporter` that the service calls."""

    def serve(self, messages: AsyncIterator[ImporterMessage]) -> AsyncIterator[ExporterMessage]:
        """Serve one importer's stream to its end; never raises for what the importer does."""
        ...


class HandoffService:
    """Carries the exporter's conversations: one stream an importer and request."""

    def __init__(self, exporter: Conversations) -> None:
        self._exporter = exporter

    async def Handoff(  # noqa: N802  # named by gRPC
        self,
        request_iterator: AsyncIterator[handoff_pb2.ImporterMessage],
        context: Context,  # noqa: ARG002  # given by gRPC
    ) -> AsyncIterator[handoff_pb2.ExporterMessage]:
        """Stream the exporter's side of one hand-over or fetch."""
        serving = cast("AsyncGenerator[ExporterMessage, None]", self._exporter.serve(_messages(request_iterator)))
        async with aclosing(serving) as answers:
            async for answer in answers:
                yield exporter_to_proto(answer)
                await reach("p.offer.sent")


async def _messages(stream: AsyncIterator[handoff_pb2.ImporterMessage]) -> AsyncIterator[ImporterMessage]:
    async for message in stream:
        yield importer_from_proto(message)
