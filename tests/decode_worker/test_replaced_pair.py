"""A worker whose place another life of it has taken finishes what it has begun, takes nothing new, and ends."""

import asyncio

import pytest

from tests.eventually import eventually
from tests.fake_engine import GREEDY, StepGate, fake_answer
from tests.worker_orders import make_prompt
from tests.worker_pair import running_pair


async def test_a_decode_worker_that_was_replaced_writes_its_answers_and_ends(caplog: pytest.LogCaptureFixture) -> None:
    async with running_pair() as pair:
        gate = pair.decode_engine.gate = StepGate()
        asking = asyncio.create_task(pair.client.local("a", make_prompt(5)))
        await eventually(lambda: pair.decode.load().running_requests == 1)
        pair.decode.leave_to_successor()
        await eventually(lambda: pair.decode.load().draining)
        gate.release(100)
        assert (await asking).tokens == fake_answer(make_prompt(5), GREEDY)
        async with asyncio.timeout(5):
            await pair.decode.wait_until_broken()
        assert "another life of decode-0 has its place" in caplog.text


async def test_a_prefill_worker_that_was_replaced_ends() -> None:
    async with running_pair() as pair:
        pair.prefill.leave_to_successor()
        async with asyncio.timeout(5):
            await pair.prefill.wait_until_broken()
        assert pair.prefill.load().draining
