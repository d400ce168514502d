"""The messages of ``link.proto``, to and from `cluster_core.links`. ``..._from_proto`` raises `InvalidField`."""

from collections.abc import Sequence
from dataclasses import fields
from functools import lru_cache
from typing import assert_never

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
from cluster_rpc import field_checks as check
from cluster_rpc.v1 import link_pb2 as pb

MAX_LINKS = 256
"""Links that one status tells of."""
REMEMBERED_LINKS = 8192
MAX_NAME_BYTES = 64
MAX_TEXT_BYTES = 1024
MAX_ADDRESS_BYTES = 64 * 1024
MAX_BURST_MESSAGES = 4096
MAX_BURST_BYTES = 64 * 1024 * 1024

_REPORT_FIELDS = tuple(field.name for field in fields(LinkReport))
_NUMBERS = tuple(field.name for field in fields(LinkReport) if field.type is float)
_NAMES = ("transport", "lane", "expected_lane")
_TEXTS = ("warning", "cure")


def link_report_to_proto(report: LinkReport) -> pb.LinkReport:
    """Put what is known of a link on the wire."""
    return pb.LinkReport(**{name: getattr(report, name) for name in _REPORT_FIELDS})


def link_report_from_proto(message: pb.LinkReport) -> LinkReport:
    """Read what is known of a link."""
    check.worker_id(message.peer, "links.peer")
    check.incarnation(message.incarnation, "links.incarnation")
    for name in _NUMBERS:
        check.seconds(getattr(message, name), f"links.{name}")
    for name in _NAMES:
        check.at_most(len(getattr(message, name)), MAX_NAME_BYTES, f"links.{name}")
    for name in _TEXTS:
        check.at_most(len(getattr(message, name)), MAX_TEXT_BYTES, f"links.{name}")
    return LinkReport(**{name: getattr(message, name) for name in _REPORT_FIELDS})


def links_from_proto(links: Sequence[pb.LinkReport]) -> tuple[LinkReport, ...]:
    """Read the links of a status. They come twice a second and seldom change: what was read before is remembered."""
    check.at_most(len(links), MAX_LINKS, "links")
    return tuple(_remembered(link.SerializeToString()) for link in links)


@lru_cache(maxsize=REMEMBERED_LINKS)
def _remembered(encoded: bytes) -> LinkReport:
    return link_report_from_proto(pb.LinkReport.FromString(encoded))


def question_to_proto(question: ProbeQuestion) -> pb.ProbeQuestion:
    """Put a question on the wire."""
    match question:
        case ProbeHello():
            return pb.ProbeQuestion(hello=_hello_to_proto(question))
        case ProbeSend(burst=burst):
            return pb.ProbeQuestion(send=_burst_to_proto(burst))
        case ProbeReceive(burst=burst):
            return pb.ProbeQuestion(receive=_burst_to_proto(burst))
        case _:
            assert_never(question)


def question_from_proto(message: pb.ProbeQuestion) -> ProbeQuestion:
    """Read a question."""
    match message.WhichOneof("question"):
        case "hello":
            return _hello_from_proto(message.hello)
        case "send":
            return ProbeSend(burst=_burst_from_proto(message.send))
        case "receive":
            return ProbeReceive(burst=_burst_from_proto(message.receive))
        case _:
            return check.refuse("question", "must be hello, send or receive")


def answer_to_proto(answer: ProbeAnswer) -> pb.ProbeAnswer:
    """Put an answer on the wire."""
    match answer:
        case ProbeHello():
            return pb.ProbeAnswer(hello=_hello_to_proto(answer))
        case ProbeReady():
            return pb.ProbeAnswer(ready=pb.ProbeReady())
        case ProbeTook(seconds=seconds):
            return pb.ProbeAnswer(took=pb.ProbeTook(seconds=seconds))
        case _:
            assert_never(answer)


def answer_from_proto(message: pb.ProbeAnswer) -> ProbeAnswer:
    """Read an answer."""
    match message.WhichOneof("answer"):
        case "hello":
            return _hello_from_proto(message.hello)
        case "ready":
            return ProbeReady()
        case "took":
            return ProbeTook(seconds=check.seconds(message.took.seconds, "took.seconds"))
        case _:
            return check.refuse("answer", "must be hello, ready or took")


def _hello_to_proto(hello: ProbeHello) -> pb.ProbeHello:
    return pb.ProbeHello(
        worker_id=hello.worker_id,
        incarnation=hello.incarnation,
        meant=hello.meant,
        transport=hello.transport,
        transport_address=hello.transport_address,
        host=hello.site.host,
        cuda=hello.site.cuda,
        rdma=hello.site.rdma,
    )


def _hello_from_proto(message: pb.ProbeHello) -> ProbeHello:
    check.at_most(len(message.transport_address), MAX_ADDRESS_BYTES, "hello.transport_address")
    check.at_most(len(message.transport), MAX_NAME_BYTES, "hello.transport")
    check.at_most(len(message.host), MAX_TEXT_BYTES, "hello.host")
    return ProbeHello(
        worker_id=check.worker_id(message.worker_id, "hello.worker_id"),
        incarnation=check.incarnation(message.incarnation, "hello.incarnation"),
        meant=check.incarnation(message.meant, "hello.meant"),
        transport=message.transport,
        transport_address=message.transport_address,
        site=LinkSite(host=message.host, cuda=message.cuda, rdma=message.rdma),
    )


def _burst_to_proto(burst: ProbeBurst) -> pb.ProbeBurst:
    return pb.ProbeBurst(tag=burst.tag, message_bytes=burst.message_bytes, count=burst.count)


def _burst_from_proto(message: pb.ProbeBurst) -> ProbeBurst:
    check.require(1 <= message.count <= MAX_BURST_MESSAGES, "burst.count", f"must be 1 to {MAX_BURST_MESSAGES}")
    check.require(
        0 < message.message_bytes * message.count <= MAX_BURST_BYTES,
        "burst.message_bytes",
        f"must be at least 1, and at most {MAX_BURST_BYTES} with all messages of the burst",
    )
    check.require(message.tag + message.count < 1 << 64, "burst.tag", "must leave room for each message's tag")
    return ProbeBurst(tag=message.tag, message_bytes=message.message_bytes, count=message.count)
