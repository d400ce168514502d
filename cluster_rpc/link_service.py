"""``LinkService``: a worker measures the ways from others to itself, and lets others measure the ways from it."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, Protocol, cast

import grpc

from cluster_core.errors import WorkerLost
from cluster_core.identity import Incarnation, WorkerId
from cluster_core.links import LinkReport, ProbeAnswer, ProbeQuestion
from cluster_rpc import field_checks as check
from cluster_rpc.channels import ChannelPool
from cluster_rpc.errors import from_worker_error
from cluster_rpc.guard import Context
from cluster_rpc.link_messages import (
    answer_from_proto,
    answer_to_proto,
    link_report_to_proto,
    question_from_proto,
    question_to_proto,
)
from cluster_rpc.v1 import link_pb2, link_pb2_grpc

MAX_HOST_BYTES = 280
_END: Any = grpc.aio.EOF  # type: ignore[attr-defined]  # the stubs lack it


class Asking(Protocol):
    """A conversation with the worker at the other end of a link."""

    async def ask(self, question: ProbeQuestion) -> ProbeAnswer:
        """Send a question and return its answer. Raises a `BatonError` when there is none."""
        ...


class Measuring(Protocol):
    """Who measures."""

    async def measure(self, peer: WorkerId, incarnation: Incarnation, conversation: Asking) -> LinkReport:
        """Measure the way from ``peer``, or remember. Raises a `BatonError`."""
        ...

    def answer(self, questions: AsyncIterator[ProbeQuestion]) -> AsyncIterator[ProbeAnswer]:
        """Be the other end. Raises a `BatonError`."""
        ...


class LinkService:
    """Carries measurements, over the channels of the hand-overs: they are open when the first hand-over comes."""

    def __init__(self, probe: Measuring, channels: ChannelPool) -> None:
        self._probe = probe
        self._channels = channels

    async def CalibrateLink(  # noqa: N802  # named by gRPC
        self,
        request: link_pb2.CalibrateLinkRequest,
        context: Context,  # noqa: ARG002  # given by gRPC
    ) -> link_pb2.LinkReport:
        """Measure the way from another worker to this one."""
        peer = check.worker_id(request.worker_id, "worker_id")
        incarnation = check.incarnation(request.incarnation, "incarnation")
        check.at_most(len(request.address), MAX_HOST_BYTES, "address")
        stub = link_pb2_grpc.LinkServiceStub(self._channels.get(request.address))  # type: ignore[no-untyped-call]  # generated
        conversation = _Conversation(stub, peer)
        try:
            return link_report_to_proto(await self._probe.measure(peer, incarnation, conversation))
        except WorkerLost:
            await self._channels.discard(request.address)
            raise
        finally:
            conversation.end()

    async def ProbeLink(  # noqa: N802  # named by gRPC
        self,
        request_iterator: AsyncIterator[link_pb2.ProbeQuestion],
        context: Context,  # noqa: ARG002  # given by gRPC
    ) -> AsyncIterator[link_pb2.ProbeAnswer]:
        """Be the other end of a measurement."""
        answering = cast("AsyncGenerator[ProbeAnswer, None]", self._probe.answer(_questions(request_iterator)))
        async with aclosing(answering) as answers:
            async for answer in answers:
                yield answer_to_proto(answer)


class _Conversation:
    """One ``ProbeLink`` call, opened by the first question."""

    def __init__(self, stub: Any, peer: WorkerId) -> None:
        self._stub = stub
        self._peer = peer
        self._call: Any = None

    async def ask(self, question: ProbeQuestion) -> ProbeAnswer:
        """Send a question and return its answer."""
        if self._call is None:
            self._call = self._stub.ProbeLink()
        try:
            await self._call.write(question_to_proto(question))
            answer = await self._call.read()
        except grpc.RpcError as error:
            raise from_worker_error(error, self._peer) from error
        except asyncio.InvalidStateError as error:
            raise self._ended() from error
        if answer is _END:
            raise self._ended()
        return answer_from_proto(answer)

    def _ended(self) -> WorkerLost:
        return WorkerLost(f"{self._peer} ended the measurement of its link")

    def end(self) -> None:
        """Say that nothing more will be asked."""
        if self._call is not None:
            self._call.cancel()


async def _questions(stream: AsyncIterator[link_pb2.ProbeQuestion]) -> AsyncIterator[ProbeQuestion]:
    async for message in stream:
        yield question_from_proto(message)
