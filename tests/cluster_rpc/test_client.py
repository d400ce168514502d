import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest

from cluster_core import errors as tree
from cluster_core.identity import Role
from cluster_rpc.client import BatonClient, ask
from cluster_rpc.generate_request import FillIn, GenerateOptions, make_request
from cluster_rpc.limits import PUBLIC
from cluster_rpc.server import CLUSTER, GENERATION, RpcServer
from cluster_rpc.v1 import generation_pb2
from tests.cluster_rpc.small_services import ScriptedCluster, ScriptedGeneration

WAIT_S = 10.0


@pytest.fixture
async def service() -> ScriptedGeneration:
    return ScriptedGeneration()


@pytest.fixture
async def address(service: ScriptedGeneration) -> AsyncIterator[str]:
    server = RpcServer(PUBLIC)
    server.add(GENERATION, service)
    server.add(CLUSTER, ScriptedCluster())
    yield await server.start("127.0.0.1", 0)
    await server.close()


@pytest.fixture
async def client(address: str) -> AsyncIterator[BatonClient]:
    async with BatonClient(address) as client:
        yield client


async def test_chunks_arrive_in_order_and_the_last_has_the_completion(client: BatonClient) -> None:
    chunks = [chunk async for chunk in client.generate("ok", max_tokens=2)]
    assert [(chunk.token_index, chunk.token_ids, chunk.text) for chunk in chunks] == [
        (0, (0,), "t0"),
        (1, (1,), "t1"),
        (2, (), "."),
    ]
    assert [chunk.completion is None for chunk in chunks] == [True, True, False]
    completion = chunks[-1].completion
    assert completion is not None
    assert (completion.finish_reason, completion.matched_stop, completion.matched_token_id) == ("length", "#", None)


async def test_a_whole_answer_is_collected(client: BatonClient) -> None:
    answer = await client.generate_text("ok")
    assert (answer.text, answer.token_ids, answer.completion.seed) == ("t0t1.", (0, 1), 7)


async def test_a_script_without_a_loop_can_ask(address: str) -> None:
    answer = await asyncio.to_thread(ask, address, "ok", temperature=0)
    assert answer.text == "t0t1."


async def test_every_option_reaches_its_field(client: BatonClient, service: ScriptedGeneration) -> None:
    options = GenerateOptions(
        max_tokens=9,
        temperature=0.5,
        top_p=0.25,
        top_k=4,
        stop=["a", "b"],
        stop_token_ids=[5],
        ignore_eos=True,
        seed=-3,
        include_stop_str_in_output=True,
        skip_special_tokens=False,
        request_id="r",
        model="m",
        cache_salt="s",
        priority=2,
    )
    await client.generate_text("ok", **options)
    (request,) = service.requests
    params = {field.name: value for field, value in request.sampling_params.ListFields()}
    outside = {name: getattr(request, name) for name in ("request_id", "model", "cache_salt", "priority")}
    assert {**params, **outside} == options


@pytest.mark.parametrize(
    ("prompt", "field"),
    [("text", "text"), ([1, 2], "tokenized"), ([], "tokenized"), ([{"role": "user", "content": "hi"}], "chat")],
)
def test_the_kind_of_prompt_chooses_the_input(prompt: Any, field: str) -> None:
    assert make_request(prompt, {}).WhichOneof("input") == field


@pytest.mark.parametrize(
    ("prompt", "options", "field"),
    [
        ("\ud800", {}, "text"),
        ([1, -1], {}, "tokenized.input_ids"),
        ([1, 2**40], {}, "tokenized.input_ids"),
        ([{"role": "user", "content": "\udfff"}], {}, "chat.messages[0].content"),
        ("ok", {"max_tokens": -1}, "sampling_params.max_tokens"),
        ("ok", {"seed": 2**63}, "sampling_params.seed"),
        ("ok", {"stop": [b"\xff"]}, "sampling_params.stop"),
        ("ok", {"request_id": 5}, "request_id"),
        ("ok", {"best_of": 2}, "best_of"),
    ],
)
async def test_what_cannot_be_sent_is_refused_by_field(
    client: BatonClient, service: ScriptedGeneration, prompt: Any, options: Any, field: str
) -> None:
    with pytest.raises(tree.InvalidField) as caught:
        await client.generate_text(prompt, **options)
    assert caught.value.field == field
    assert service.requests == []


@pytest.mark.parametrize(
    "error",
    [
        tree.NotServed("model", "is not served here"),
        tree.Overloaded("the queue is full", 3.0),
        tree.Cancelled("cancelled by another call"),
        tree.DeadlineExceeded("time is up"),
    ],
)
async def test_the_servers_error_is_raised_as_it_was(
    client: BatonClient, service: ScriptedGeneration, error: tree.BatonError
) -> None:
    service.error = error
    with pytest.raises(type(error), match=str(error)):
        await client.generate_text("error")
    with pytest.raises(type(error), match=str(error)):
        await client.cancel("error")


async def test_leaving_the_loop_early_cancels_the_request(client: BatonClient, service: ScriptedGeneration) -> None:
    async with aclosing(client.generate("forever")) as chunks:
        async for _ in chunks:
            break
    await asyncio.wait_for(service.closed.wait(), WAIT_S)


async def test_closing_the_client_cancels_what_still_runs(address: str, service: ScriptedGeneration) -> None:
    async with BatonClient(address) as client:
        chunks = client.generate("forever")
        await anext(chunks)
    await asyncio.wait_for(service.closed.wait(), WAIT_S)
    with pytest.raises(tree.Cancelled, match="client was closed"):
        _ = [chunk async for chunk in chunks]


async def test_cancelling_the_task_cancels_the_request(client: BatonClient, service: ScriptedGeneration) -> None:
    started = asyncio.Event()

    async def read() -> None:
        async for _ in client.generate("forever"):
            started.set()

    task = asyncio.create_task(read())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(service.closed.wait(), WAIT_S)


async def test_a_timeout_becomes_the_deadline(client: BatonClient, service: ScriptedGeneration) -> None:
    with pytest.raises(tree.DeadlineExceeded):
        await client.generate_text("forever", timeout_s=0.05)
    await asyncio.wait_for(service.closed.wait(), WAIT_S)


async def test_nothing_listening_says_what_to_do() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    async with BatonClient(f"127.0.0.1:{port}") as client:
        with pytest.raises(tree.PartUnavailable, match=f"nothing answers at 127.0.0.1:{port} .*start the cluster"):
            await client.list_workers()


async def test_operators_calls(client: BatonClient) -> None:
    view = await client.list_workers()
    assert [(worker.worker_id, worker.role, worker.load.held_blocks) for worker in view.workers] == [
        ("decode-0", Role.DECODE, 4)
    ]
    (attempt,) = await client.get_placement("r")
    assert attempt.chosen.prefill_worker is None
    assert attempt.chosen.terms == (("queue", 0.5),)
    assert await client.set_pools(1, 3) == (1, 3)
    assert await client.drain("decode-0")
    assert not await client.drain("decode-7")
    assert await client.cancel("live")
    assert not await client.cancel("gone")


def test_an_empty_request_has_no_presence() -> None:
    assert make_request("x", {}) == generation_pb2.GenerateRequest(text="x")


def test_every_option_of_the_client_has_a_field_and_every_field_an_option() -> None:
    fields = set(generation_pb2.SamplingParams.DESCRIPTOR.fields_by_name)
    outside = {"request_id", "model", "cache_salt", "priority", "recovery"}
    assert set(GenerateOptions.__annotations__) == fields | outside


def test_options_are_written_as_users_have_them() -> None:
    request = make_request("x", {"json_schema": {"type": "object"}, "logit_bias": {5: -1.5}, "n": 2})
    assert request.sampling_params.json_schema == '{"type": "object"}'
    assert dict(request.sampling_params.logit_bias) == {5: -1.5}
    assert request.sampling_params.n == 2
    assert list(make_request("x", {"choice": ["a", "b"]}).sampling_params.choice.choices) == ["a", "b"]
    assert make_request("x", {"recovery": "fail"}).recovery == generation_pb2.RECOVERY_FAIL
    with pytest.raises(tree.InvalidField, match="recovery: is 'hope': must be 'recover' or 'fail'"):
        make_request("x", {"recovery": "hope"})
    assert make_request("x", {"json_object": True}).sampling_params.WhichOneof("constraint") == "json_object"


def test_two_grammars_at_once_are_refused() -> None:
    with pytest.raises(tree.InvalidField, match="regex: cannot stand beside choice"):
        make_request("x", {"choice": ["a"], "regex": "a"})


def test_a_gap_is_written_with_both_texts() -> None:
    request = make_request(FillIn(prefix="a", suffix="b", prefix_first=True), {})
    assert request.fim == generation_pb2.FimInput(prefix="a", suffix="b", prefix_first=True)


async def test_several_answers_are_told_apart(client: BatonClient, service: ScriptedGeneration) -> None:
    first, second = await client.generate_all("several", n=2, logprobs=0, prompt_logprobs=0)
    assert (first.text, first.token_ids, first.completion.index) == ("a.", (0,), 0)
    assert (second.text, second.token_ids, second.completion.index) == ("b.", (1,), 1)
    assert [told.logprob for told in (*first.logprobs, *second.logprobs)] == [0.0, -1.0]
    assert first.prompt_logprobs == (None,)
    with pytest.raises(tree.InvalidField, match="generate_all"):
        await client.generate_text("several", n=2)
    assert len(service.requests) == 1
