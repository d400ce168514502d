"""Measurements over gRPC: who is asked, what is said, and what becomes of nonsense."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import fields, replace
from typing import Any

import grpc
import pytest

from cluster_core.errors import InvalidField, TransferFailed, WorkerLost
from cluster_core.identity import Incarnation, WorkerId
from cluster_core.links import (
    LinkReport,
    LinkSite,
    ProbeAnswer,
    ProbeBurst,
    ProbeHello,
    ProbeQuestion,
    ProbeReady,
    ProbeReceive,
    ProbeSend,
    ProbeTook,
)
from cluster_rpc import link_messages as messages
from cluster_rpc.channels import ChannelPool
from cluster_rpc.errors import from_rpc_error
from cluster_rpc.limits import INTERNAL
from cluster_rpc.link_service import Asking, LinkService
from cluster_rpc.server import LINK, RpcServer
from cluster_rpc.v1 import link_pb2, link_pb2_grpc

HELLO = ProbeHello(
    worker_id=WorkerId("decode-0"),
    incarnation=Incarnation(3),
    meant=Incarnation(4),
    transport="ucx",
    transport_address=b"somewhere",
    site=LinkSite(host="machine", cuda=True, rdma=False),
)
BURST = ProbeBurst(tag=1 << 16, message_bytes=4096, count=16)
OF_TYPE: dict[Any, Any] = {str: "text", float: 0.5, bool: True, int: 7}
VALUES: dict[str, Any] = {field.name: OF_TYPE.get(field.type) for field in fields(LinkReport)}
REPORT = LinkReport(**(VALUES | {"peer": WorkerId("prefill-0"), "incarnation": Incarnation(7)}))


class Probe:
    """Asks one question, or answers each with `ProbeTook`; the second question fails where ``fails`` is set."""

    def __init__(self, fails: Exception | None = None) -> None:
        self.heard: list[ProbeQuestion] = []
        self.answers: list[ProbeAnswer] = []
        self._fails = fails

    async def measure(self, peer: WorkerId, incarnation: Incarnation, conversation: Asking) -> LinkReport:
        self.answers = [await conversation.ask(question) for question in (HELLO, ProbeSend(burst=BURST))]
        return replace(REPORT, peer=peer, incarnation=incarnation)

    async def answer(self, questions: AsyncIterator[ProbeQuestion]) -> AsyncIterator[ProbeAnswer]:
        async for question in questions:
            self.heard.append(question)
            if self._fails is not None and len(self.heard) > 1:
                raise self._fails
            yield ProbeTook(seconds=0.25)


@asynccontextmanager
async def two_workers(importer: Probe, exporter: Probe) -> AsyncIterator[tuple[Any, str]]:
    """Yield a stub of the importer's service, and the exporter's address."""
    async with AsyncExitStack() as exits:
        addresses = []
        for probe in (importer, exporter):
            channels, server = ChannelPool(), RpcServer(INTERNAL)
            server.add(LINK, LinkService(probe, channels))
            addresses.append(await server.start("127.0.0.1", 0))
            exits.push_async_callback(server.close)
            exits.push_async_callback(channels.close)
        channel = await exits.enter_async_context(grpc.aio.insecure_channel(addresses[0]))
        yield link_pb2_grpc.LinkServiceStub(channel), addresses[1]  # type: ignore[no-untyped-call]  # generated


def request(address: str = "127.0.0.1:1", **changes: Any) -> link_pb2.CalibrateLinkRequest:
    values: dict[str, Any] = {"worker_id": "prefill-0", "incarnation": 9, "address": address}
    return link_pb2.CalibrateLinkRequest(**(values | changes))


async def test_a_measurement_is_a_conversation_with_the_other_worker() -> None:
    importer, exporter = Probe(), Probe()
    async with two_workers(importer, exporter) as (stub, address), asyncio.timeout(20):
        report = messages.link_report_from_proto(await stub.CalibrateLink(request(address)))
    assert report == replace(REPORT, peer=WorkerId("prefill-0"), incarnation=Incarnation(9))
    assert exporter.heard == [HELLO, ProbeSend(burst=BURST)]
    assert importer.answers == [ProbeTook(seconds=0.25)] * 2


@pytest.mark.parametrize("refusal", [TransferFailed("no"), WorkerLost("gone")])
async def test_what_ends_it_there_is_told_here(refusal: Exception) -> None:
    async with two_workers(Probe(), Probe(refusal)) as (stub, address), asyncio.timeout(20):
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await stub.CalibrateLink(request(address))
    assert type(from_rpc_error(failed.value)) is type(refusal)


async def test_a_worker_that_is_not_there_is_lost() -> None:
    async with two_workers(Probe(), Probe()) as (stub, _), asyncio.timeout(20):
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await stub.CalibrateLink(request())
    assert isinstance(from_rpc_error(failed.value), WorkerLost)


@pytest.mark.parametrize("changes", [{"worker_id": "No!"}, {"incarnation": 0}, {"address": "a" * 300}])
async def test_nonsense_is_refused_by_name(changes: dict[str, Any]) -> None:
    async with two_workers(Probe(), Probe()) as (stub, _), asyncio.timeout(20):
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await stub.CalibrateLink(request(**changes))
    error = from_rpc_error(failed.value)
    assert isinstance(error, InvalidField)
    assert error.field == next(iter(changes))


@pytest.mark.parametrize("question", [HELLO, ProbeSend(burst=BURST), ProbeReceive(burst=BURST)])
def test_questions_travel_whole(question: ProbeQuestion) -> None:
    assert messages.question_from_proto(messages.question_to_proto(question)) == question


@pytest.mark.parametrize("answer", [HELLO, ProbeReady(), ProbeTook(seconds=0.5)])
def test_answers_travel_whole(answer: ProbeAnswer) -> None:
    assert messages.answer_from_proto(messages.answer_to_proto(answer)) == answer


def test_a_report_travels_whole() -> None:
    assert messages.link_report_from_proto(messages.link_report_to_proto(REPORT)) == REPORT


def test_a_status_tells_of_so_many_links_and_not_of_more() -> None:
    links = [messages.link_report_to_proto(replace(REPORT, imports=number)) for number in range(messages.MAX_LINKS)]
    for _ in range(2):  # read, and remembered
        read = messages.links_from_proto(links)
        assert [link.imports for link in read] == list(range(messages.MAX_LINKS))
    with pytest.raises(InvalidField, match="links"):
        messages.links_from_proto([*links, links[0]])


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (link_pb2.ProbeQuestion(), "question"),
        (link_pb2.ProbeQuestion(send=link_pb2.ProbeBurst(tag=1, message_bytes=1)), "burst.count"),
        (link_pb2.ProbeQuestion(send=link_pb2.ProbeBurst(tag=1, count=1)), "burst.message_bytes"),
        (link_pb2.ProbeQuestion(send=link_pb2.ProbeBurst(message_bytes=1 << 30, count=9)), "burst.message_bytes"),
        (link_pb2.ProbeQuestion(send=link_pb2.ProbeBurst(tag=(1 << 64) - 1, message_bytes=1, count=1)), "burst.tag"),
        (link_pb2.ProbeQuestion(hello=link_pb2.ProbeHello(worker_id="p", incarnation=1)), "hello.meant"),
    ],
)
def test_questions_that_no_worker_asks(message: link_pb2.ProbeQuestion, field: str) -> None:
    with pytest.raises(InvalidField) as refused:
        messages.question_from_proto(message)
    assert refused.value.field == field


@pytest.mark.parametrize(
    "changes", [{"bytes_per_s": float("nan")}, {"fixed_s": -1.0}, {"lane": "x" * 99}, {"incarnation": 0}]
)
def test_reports_that_no_worker_makes(changes: dict[str, Any]) -> None:
    message = messages.link_report_to_proto(REPORT)
    for name, value in changes.items():
        setattr(message, name, value)
    with pytest.raises(InvalidField, match=rf"links\.{next(iter(changes))}"):
        messages.link_report_from_proto(message)


def test_an_answer_without_content_is_refused() -> None:
    with pytest.raises(InvalidField):
        messages.answer_from_proto(link_pb2.ProbeAnswer())
