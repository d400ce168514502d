import asyncio
import logging
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from cluster_core import errors as tree
from cluster_core.errors import BatonError, PartUnavailable
from cluster_rpc.channels import ChannelPool, open_channel
from cluster_rpc.errors import INTERNAL_TEXT, from_rpc_error
from cluster_rpc.invalid_text import find_invalid_text
from cluster_rpc.limits import PUBLIC
from cluster_rpc.server import GENERATION, HANDOFF, RpcServer
from cluster_rpc.v1 import generation_pb2, generation_pb2_grpc, handoff_pb2, handoff_pb2_grpc
from tests.cluster_rpc.small_services import EchoHandoff, ScriptedGeneration

WAIT_S = 10.0
DESCRIPTOR: Any = generation_pb2.GenerateRequest.DESCRIPTOR


@pytest.fixture
async def service() -> ScriptedGeneration:
    return ScriptedGeneration()


@pytest.fixture
async def server(service: ScriptedGeneration) -> AsyncIterator[RpcServer]:
    server = RpcServer(PUBLIC)
    server.add(GENERATION, service)
    server.add(HANDOFF, EchoHandoff())
    yield server
    await server.close()


@pytest.fixture
async def channel(server: RpcServer) -> AsyncIterator[grpc.aio.Channel]:
    channel = open_channel(await server.start("127.0.0.1", 0), PUBLIC)
    yield channel
    await channel.close(None)


def stub(channel: grpc.aio.Channel) -> Any:
    return generation_pb2_grpc.GenerationServiceStub(channel)  # type: ignore[no-untyped-call]  # generated


def raw_method(channel: grpc.aio.Channel, kind: str, name: str) -> Any:
    """Return a method that sends and receives bytes as they are."""
    return getattr(channel, kind)(f"/cluster_rpc.v1.{name}")


async def error_of(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in call:
            pass
    return caught.value


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (tree.InvalidField("text", "is empty"), grpc.StatusCode.INVALID_ARGUMENT),
        (tree.ContextTooLong("text", "has too many tokens"), grpc.StatusCode.OUT_OF_RANGE),
        (tree.TokenOutOfRange("tokenized.input_ids[3]", "is not in the vocabulary"), grpc.StatusCode.OUT_OF_RANGE),
        (tree.NotServed("model", "is not served"), grpc.StatusCode.NOT_FOUND),
        (tree.DuplicateRequest("request_id", "is in use"), grpc.StatusCode.ALREADY_EXISTS),
        (tree.Overloaded("the queue is full", 1.0), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (tree.NoWorker("no decode worker is ready", 1.0), grpc.StatusCode.UNAVAILABLE),
        (tree.Cancelled("cancelled by Cancel"), grpc.StatusCode.CANCELLED),
        (tree.DeadlineExceeded("time is up"), grpc.StatusCode.DEADLINE_EXCEEDED),
        (tree.TransferFailed("digest differs: " + "語" * 2000), grpc.StatusCode.DATA_LOSS),
        (tree.SettingsError("router.port: must be a number"), grpc.StatusCode.FAILED_PRECONDITION),
    ],
)
async def test_what_a_servicer_raises_arrives_with_its_status(
    service: ScriptedGeneration, channel: grpc.aio.Channel, error: BatonError, code: grpc.StatusCode
) -> None:
    service.error = error
    streamed = await error_of(stub(channel).Generate(generation_pb2.GenerateRequest(text="error", request_id="r")))
    with pytest.raises(grpc.aio.AioRpcError) as unary:
        await stub(channel).Cancel(generation_pb2.CancelRequest(request_id="error"))
    for got in (streamed, unary.value):
        assert got.code() is code
        assert type(from_rpc_error(got)) is type(error)


async def test_an_unexpected_exception_is_logged_and_not_told(
    service: ScriptedGeneration, channel: grpc.aio.Channel, caplog: pytest.LogCaptureFixture
) -> None:
    service.error = KeyError("secret")
    with caplog.at_level(logging.ERROR, logger="cluster_rpc.errors"):
        error = await error_of(stub(channel).Generate(generation_pb2.GenerateRequest(text="error", request_id="r-9")))
    assert (error.code(), error.details()) == (grpc.StatusCode.INTERNAL, INTERNAL_TEXT)
    assert "r-9" in caplog.text
    assert "KeyError" in caplog.text


@pytest.mark.parametrize(
    ("raw", "field"),
    [
        (b"\x22\x02\xff\xfe", "text"),
        (b"\x0a\x01\xff", "request_id"),
        (b"\x3a\x01\xc3", "cache_salt"),
        (b"\x2a\x07\x0a\x05\x0a\x01a\x12\x00" + b"\x2a\x07\x0a\x05\x0a\x01a\x12\x00", None),
        (b"\x2a\x0c" + b"\x0a\x03\x0a\x01a" + b"\x0a\x05\x0a\x01b\x12\xff"[:7], None),
    ],
)
def test_the_field_with_invalid_text_is_found(raw: bytes, field: str | None) -> None:
    assert find_invalid_text(DESCRIPTOR, raw) == field


def test_invalid_text_deep_in_a_message_is_found() -> None:
    request = generation_pb2.GenerateRequest(
        chat=generation_pb2.ChatInput(
            messages=[
                generation_pb2.ChatMessage(role="user", content="fine"),
                generation_pb2.ChatMessage(role="user", content="MARK"),
            ]
        ),
        priority=300,
        sampling_params=generation_pb2.SamplingParams(temperature=0.5, stop=["fine", "STOP"], seed=-1),
    )
    raw = request.SerializeToString()
    assert find_invalid_text(DESCRIPTOR, raw) is None
    assert find_invalid_text(DESCRIPTOR, raw.replace(b"MARK", b"\xff\xff\xff\xff")) == "chat.messages[1].content"
    assert find_invalid_text(DESCRIPTOR, raw.replace(b"STOP", b"\xed\xa0\x80a")) == "sampling_params.stop[1]"


@pytest.mark.parametrize(
    ("raw", "field"), [(b"\x22\x02\xff\xfe", "text"), (b"\x0a\x7f", "request"), (b"\xff" * 50, "request")]
)
async def test_bytes_that_are_no_request_are_refused_by_field(
    service: ScriptedGeneration, channel: grpc.aio.Channel, raw: bytes, field: str
) -> None:
    call = raw_method(channel, "unary_stream", "GenerationService/Generate")(raw)
    error = await error_of(call)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    refused = from_rpc_error(error)
    assert isinstance(refused, tree.InvalidField)
    assert refused.field == field
    unary = raw_method(channel, "unary_unary", "GenerationService/Cancel")(b"\x0a\x01\xff")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await unary
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert service.requests == []


async def test_unreadable_messages_of_a_stream_are_refused(channel: grpc.aio.Channel) -> None:
    stream = handoff_pb2_grpc.HandoffServiceStub(channel).Handoff()  # type: ignore[no-untyped-call]  # generated
    await stream.write(handoff_pb2.ImporterMessage(accept=handoff_pb2.AcceptBlocks()))
    assert (await stream.read()).failed.reason == "accept"
    stream.cancel()
    raw = raw_method(channel, "stream_stream", "HandoffService/Handoff")()
    await raw.write(b"\x22\x03\x0a\x01\xff")
    error = await error_of(raw)
    refused = from_rpc_error(error)
    assert isinstance(refused, tree.InvalidField)
    assert refused.field == "reject.reason"


async def test_a_client_that_leaves_closes_the_servicers_generator_at_once(
    service: ScriptedGeneration, channel: grpc.aio.Channel
) -> None:
    call = stub(channel).Generate(generation_pb2.GenerateRequest(text="forever"))
    await call.read()
    call.cancel()
    await asyncio.wait_for(service.closed.wait(), WAIT_S)


async def test_a_message_above_the_limit_is_refused_before_it_is_read(
    service: ScriptedGeneration, server: RpcServer
) -> None:
    address = await server.start("127.0.0.1", 0)
    async with grpc.aio.insecure_channel(address) as unlimited:
        request = generation_pb2.GenerateRequest(text="x" * (PUBLIC.message_bytes + 1))
        error = await error_of(stub(unlimited).Generate(request))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert isinstance(from_rpc_error(error), tree.InvalidField)
    assert service.requests == []


async def test_a_taken_port_is_named(server: RpcServer) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen(1)
        port = other.getsockname()[1]
        with pytest.raises(PartUnavailable, match=f"port {port} of 127.0.0.1 is taken: choose another"):
            await server.start("127.0.0.1", port)


async def test_two_servers_never_share_a_port(server: RpcServer) -> None:
    address = await server.start("127.0.0.1", 0)
    second = RpcServer(PUBLIC)
    with pytest.raises(PartUnavailable, match="is taken"):
        await second.start("127.0.0.1", int(address.rpartition(":")[2]))


@pytest.mark.parametrize(
    ("host", "text"), [("192.0.2.1", "not an address of this machine"), ("no.such.host.invalid", "cannot be resolved")]
)
async def test_a_foreign_host_is_refused(server: RpcServer, host: str, text: str) -> None:
    with pytest.raises(PartUnavailable, match=text):
        await server.start(host, 0)


async def test_health_follows_serving(server: RpcServer, channel: grpc.aio.Channel) -> None:
    health = health_pb2_grpc.HealthStub(channel)
    statuses = health_pb2.HealthCheckResponse

    async def status_of_service(name: str) -> int:
        response: Any = await health.Check(health_pb2.HealthCheckRequest(service=name))
        return int(response.status)

    names = ("", "cluster_rpc.v1.GenerationService", "cluster_rpc.v1.HandoffService")
    assert [await status_of_service(name) for name in names] == [statuses.SERVING] * 3
    await server.set_serving(serving=False)
    assert [await status_of_service(name) for name in names] == [statuses.NOT_SERVING] * 3


async def test_reflection_lists_the_services(channel: grpc.aio.Channel) -> None:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
    call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    answer = await call.read()
    names = {service.name for service in answer.list_services_response.service}
    assert {"cluster_rpc.v1.GenerationService", "grpc.health.v1.Health"} <= names
    call.cancel()


async def test_a_pool_keeps_one_channel_an_address_and_closes_it(server: RpcServer) -> None:
    address = await server.start("127.0.0.1", 0)
    pool = ChannelPool(PUBLIC)
    assert pool.get(address) is pool.get(address)
    first = pool.get(address)
    await stub(first).Cancel(generation_pb2.CancelRequest())
    await pool.discard(address)
    await pool.discard(address)
    assert first.get_state() is grpc.ChannelConnectivity.SHUTDOWN
    assert pool.get(address) is not first
    await pool.close()


async def test_closing_ends_the_calls_that_outlast_the_grace(server: RpcServer, channel: grpc.aio.Channel) -> None:
    call = aiter(stub(channel).Generate(generation_pb2.GenerateRequest(text="forever")))
    await anext(call)
    await server.close(grace_s=0.0)
    await server.close(grace_s=0.0)
    error = await error_of(call)
    assert error.code() in {grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE}


def test_no_package_of_ours_is_named_proto() -> None:
    """`proto` belongs to proto-plus, which Ray's dashboard brings along."""
    code = "import cluster_rpc.server, cluster_rpc.client, proto; print(proto.__file__)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "site-packages" in found.stdout
