"""What an operator does with a running cluster, and what the command line does for a user, on real parts."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from cluster_core.errors import Cancelled, DeadlineExceeded
from cluster_core.identity import Role
from cluster_rpc.client import BatonClient
from tests.end_to_end.clusters import at_rest
from tests.end_to_end.one_of_each.conftest import Served
from tests.model_fixtures import prompt_tokens


@pytest.fixture
async def client(served: Served) -> AsyncIterator[BatonClient]:
    async with BatonClient(served.cluster.address) as connected:
        yield connected


async def test_text_a_stop_string_and_a_chat(client: BatonClient) -> None:
    whole = await client.generate_text("naïve café 🙂 x", max_tokens=40, temperature=0.0, ignore_eos=True)
    assert whole.completion.finish_reason == "length"
    stop = whole.text[5:8]
    cut = await client.generate_text("naïve café 🙂 x", max_tokens=40, temperature=0.0, ignore_eos=True, stop=[stop])
    assert cut.completion.finish_reason == "stop"
    assert cut.completion.matched_stop == stop
    assert cut.text == whole.text[: whole.text.index(stop)]
    chat = await client.generate_text([{"role": "user", "content": "hello"}], max_tokens=4, temperature=0.0)
    assert chat.completion.prompt_tokens > len("hello")
    await at_rest(client)


async def test_placement_left_to_the_balancer_changes_no_token(served: Served, client: BatonClient) -> None:
    prompts = [prompt_tokens(length, seed=3) for length in (5, 40, 200, 600)] * 2
    answers = await asyncio.gather(
        *(client.generate_text(prompt, max_tokens=16, temperature=0.0) for prompt in prompts)
    )
    for prompt, answer in zip(prompts, answers, strict=True):
        assert list(answer.token_ids) == served.oracle.greedy(prompt, 16)


async def test_a_deadline_ends_the_request_everywhere(client: BatonClient) -> None:
    with pytest.raises(DeadlineExceeded):
        await client.generate_text(prompt_tokens(50), max_tokens=3_000, temperature=0.0, ignore_eos=True, timeout_s=0.5)
    await at_rest(client)


async def test_cancel_ends_the_request_everywhere(client: BatonClient) -> None:
    stream = client.generate(
        prompt_tokens(50, seed=1), max_tokens=3_000, temperature=0.0, ignore_eos=True, request_id="going"
    )
    async with aclosing(stream):
        await anext(stream)
        assert await client.cancel("going")
        with pytest.raises(Cancelled):
            async for _ in stream:
                pass
    assert not await client.cancel("going")
    await at_rest(client)


async def test_scaling_while_an_answer_is_written(served: Served, client: BatonClient) -> None:
    prompt = prompt_tokens(60, seed=2)
    running = asyncio.create_task(client.generate_text(prompt, max_tokens=400, temperature=0.0))
    assert await client.set_pools(1, 2) == (1, 2)
    view = await client.list_workers()
    assert sorted(worker.worker_id for worker in view.workers if worker.state == "ready") == [
        "decode-0",
        "decode-1",
        "prefill-0",
    ]
    assert await client.set_pools(1, 1) == (1, 1)
    assert list((await running).token_ids) == served.oracle.greedy(prompt, 400)
    view = await at_rest(client)
    assert [worker.role for worker in view.workers if worker.state == "ready"].count(Role.DECODE) == 1


def test_the_command_line_against_a_running_cluster(served: Served) -> None:
    answer = served.baton("generate", "the and of", "--max-tokens", "5", "--ignore-eos", "--json", "--explain")
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout)
    status = served.baton("status", "--json")
    assert status.returncode == 0, status.stderr
    assert len(json.loads(status.stdout)["workers"]) == 2
    for command in (("status",), ("generate", "a", "--max-tokens", "2", "--explain")):
        shown = served.baton(*command)
        assert shown.returncode == 0, shown.stderr
        assert shown.stdout
    refused = served.baton("generate", "a", "--temperature", "9")
    assert refused.returncode == 2
    assert refused.stderr.strip().count("\n") == 0
    assert "temperature" in refused.stderr
