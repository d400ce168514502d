"""What a cluster cannot serve gets its status, the field's name, and leaves nothing behind."""

import math
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from cluster_rpc.client import BatonClient
from cluster_rpc.v1 import generation_pb2 as pb
from cluster_rpc.v1.generation_pb2_grpc import GenerationServiceStub
from tests.end_to_end.clusters import at_rest
from tests.end_to_end.one_of_each.conftest import POOL_BLOCKS, Served
from tests.model_fixtures import prompt_tokens

CONTEXT = 4096
POOL_TOKENS = POOL_BLOCKS * 16


@pytest.fixture
async def channel(served: Served) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(served.cluster.address) as opened:
        yield opened


def request(*, input_ids: list[int] | None = None, **sampling: Any) -> pb.GenerateRequest:
    return pb.GenerateRequest(
        tokenized=pb.TokenizedInput(input_ids=[1, 2, 3] if input_ids is None else input_ids),
        sampling_params=pb.SamplingParams(**{"max_tokens": 4, "temperature": 0.0, **sampling}),
    )


def chat(role: str) -> pb.GenerateRequest:
    return pb.GenerateRequest(chat=pb.ChatInput(messages=[pb.ChatMessage(role=role, content="hello")]))


INVALID = grpc.StatusCode.INVALID_ARGUMENT
RANGE = grpc.StatusCode.OUT_OF_RANGE
CASES: dict[str, tuple[pb.GenerateRequest, grpc.StatusCode, str]] = {
    "no input at all": (pb.GenerateRequest(), INVALID, "input"),
    "empty text": (pb.GenerateRequest(text=""), INVALID, "text"),
    "empty token ids": (request(input_ids=[]), INVALID, "tokenized.input_ids"),
    "prompt past the context": (request(input_ids=[1] * (CONTEXT + 1)), RANGE, "tokenized.input_ids"),
    "max_tokens past the context": (request(max_tokens=CONTEXT), RANGE, "sampling_params.max_tokens"),
    "token id out of range": (request(input_ids=[1, 320]), RANGE, "tokenized.input_ids[1]"),
    "NaN temperature": (request(temperature=math.nan), INVALID, "sampling_params.temperature"),
    "negative temperature": (request(temperature=-1.0), INVALID, "sampling_params.temperature"),
    "infinite temperature": (request(temperature=math.inf), INVALID, "sampling_params.temperature"),
    "top_p above one": (request(top_p=1.5), INVALID, "sampling_params.top_p"),
    "no tokens wanted": (request(max_tokens=0), INVALID, "sampling_params.max_tokens"),
    "unknown model": (pb.GenerateRequest(text="a", model="gpt-9"), grpc.StatusCode.NOT_FOUND, "model"),
    "unknown role": (chat("wizard"), INVALID, "chat.messages[0].role"),
    "bad request id": (pb.GenerateRequest(text="a", request_id="no spaces"), INVALID, "request_id"),
    "long cache salt": (pb.GenerateRequest(text="a", cache_salt="s" * 65), INVALID, "cache_salt"),
    "priority": (pb.GenerateRequest(text="a", priority=8), INVALID, "priority"),
    "can never fit": (request(input_ids=[1] * (POOL_TOKENS + 1)), RANGE, "sampling_params.max_tokens"),
}


async def refused(channel: grpc.aio.Channel, message: pb.GenerateRequest) -> tuple[grpc.StatusCode, str, str]:
    stub: Any = GenerationServiceStub(channel)  # type: ignore[no-untyped-call]  # generated
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in stub.Generate(message, timeout=20):
            pass
    return caught.value.code(), caught.value.details() or "", violated_field(caught.value)


def violated_field(error: grpc.aio.AioRpcError) -> str:
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # an AioRpcError carries what a call does
    for detail in status.details if status else ():
        bad_request = error_details_pb2.BadRequest()
        if detail.Unpack(bad_request):
            return str(bad_request.field_violations[0].field)
    return ""


async def nothing_left(served: Served) -> None:
    async with BatonClient(served.cluster.address) as client:
        view = await at_rest(client)
    assert view.queued_requests == 0
    assert [worker.state for worker in view.workers] == ["ready", "ready"]


@pytest.mark.parametrize("case", CASES)
async def test_a_request_that_cannot_be_served(served: Served, channel: grpc.aio.Channel, case: str) -> None:
    message, expected_code, field = CASES[case]
    code, text, violated = await refused(channel, message)
    assert code is expected_code, text
    assert violated == field, text
    assert field in text
    assert "\n" not in text
    await nothing_left(served)


async def test_text_that_is_not_utf_8(served: Served, channel: grpc.aio.Channel) -> None:
    raw = b"\x22\x03a\xff\xfe"  # field 4, `text`, three bytes
    call = channel.unary_stream(
        "/cluster_rpc.v1.GenerationService/Generate", request_serializer=bytes, response_deserializer=bytes
    )(raw, timeout=20)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in call:
            pass
    assert caught.value.code() is INVALID
    assert violated_field(caught.value) == "text"
    await nothing_left(served)


async def test_an_id_that_a_live_request_has(served: Served, channel: grpc.aio.Channel) -> None:
    async with BatonClient(served.cluster.address) as client:
        stream = client.generate(
            prompt_tokens(20), max_tokens=1_000, temperature=0.0, ignore_eos=True, request_id="twin"
        )
        await anext(stream)
        code, _, violated = await refused(channel, pb.GenerateRequest(text="a", request_id="twin"))
        assert code is grpc.StatusCode.ALREADY_EXISTS
        assert violated == "request_id"
        await stream.aclose()
        await at_rest(client)
        again = await client.generate_text("a", max_tokens=2, request_id="twin")
        assert again.completion.request_id == "twin"
