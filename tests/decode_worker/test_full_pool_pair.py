"""A decode pool that is full slows reading down; nobody waits for ever, and nothing stays behind on either side."""

import asyncio
from dataclasses import replace

from tests.eventually import eventually
from tests.fake_engine import GREEDY, StepGate, fake_answer
from tests.pair_client import Answered
from tests.worker_orders import make_prompt
from tests.worker_pair import DECODE, PREFILL, TRANSFER, WorkerPair, running_pair

ALL_STEPS = 100_000
PATIENT = replace(TRANSFER, lease_s=10.0)
PATIENT_DECODE = replace(DECODE, total_blocks=16, import_patience_s=60.0)
"""Nothing is called back only because a machine is slow."""


def requests(pair: WorkerPair) -> tuple[int, int]:
    """Return how many orders wait for room on the decode worker, and how many have it."""
    load = pair.decode.load()
    return load.waiting_requests, load.running_requests


async def fill_decode_pool(pair: WorkerPair) -> tuple[StepGate, "asyncio.Task[Answered]"]:
    """Stop the decode worker's engine while an answer holds eleven of its sixteen blocks."""
    gate = pair.decode_engine.gate = StepGate()
    running = asyncio.create_task(pair.client.split("first", make_prompt(40), max_tokens=4))
    await eventually(lambda: pair.decode.parts.pool.counts().held == 11)
    return gate, running


async def test_prefill_admission_waits_for_decode_workers_and_goes_on_with_them() -> None:
    settings = replace(PREFILL, total_blocks=64), PATIENT_DECODE
    async with running_pair(*settings, PATIENT) as pair:
        gate, running = await fill_decode_pool(pair)
        prompts = [make_prompt(16, 1 + seed) for seed in range(12)]
        calls = [asyncio.create_task(pair.client.split(f"r{i}", p, max_tokens=3)) for i, p in enumerate(prompts)]
        await eventually(lambda: sum(requests(pair)) == 13)
        gate.release(1)
        await eventually(lambda: requests(pair) == (11, 2))
        await eventually(lambda: pair.prefill.load().waiting_requests == 3)
        await eventually(lambda: pair.prefill.parts.pool.counts().held == 32)  # half of the pool
        gate.release(ALL_STEPS)
        for prompt, call in zip(prompts, calls, strict=True):
            assert (await call).tokens == fake_answer(prompt, replace(GREEDY, max_tokens=3))
        assert (await running).tokens == fake_answer(make_prompt(40), replace(GREEDY, max_tokens=4))
        assert pair.prefill.parts.exporter.expired == 0
        await pair.until_free()


async def test_a_small_request_passes_a_big_one_that_does_not_fit_and_both_are_served() -> None:
    settings = replace(PREFILL, total_blocks=64), replace(PATIENT_DECODE, passing_s=30.0)
    async with running_pair(*settings, PATIENT) as pair:
        gate, running = await fill_decode_pool(pair)
        big = asyncio.create_task(pair.client.split("big", make_prompt(44, 1), max_tokens=3))
        await eventually(lambda: sum(requests(pair)) == 2)
        small = asyncio.create_task(pair.client.split("small", make_prompt(9, 2), max_tokens=1))
        await eventually(lambda: sum(requests(pair)) == 3)
        gate.release(1)
        assert (await small).tokens == fake_answer(make_prompt(9, 2), replace(GREEDY, max_tokens=1))
        assert not big.done()
        assert not running.done()
        gate.release(ALL_STEPS)
        assert (await big).tokens == fake_answer(make_prompt(44, 1), replace(GREEDY, max_tokens=3))
        await running
        await pair.until_free()


async def test_an_order_that_outlives_its_export_is_read_where_it_waited() -> None:
    settings = replace(PREFILL, total_blocks=64), replace(PATIENT_DECODE, passing_s=0.0)
    async with running_pair(*settings, replace(TRANSFER, lease_s=0.05)) as pair:
        gate, running = await fill_decode_pool(pair)
        waiting = asyncio.create_task(pair.client.split("waits", make_prompt(30, 1)))
        await eventually(lambda: pair.prefill.parts.exporter.expired == 1)
        assert pair.prefill.parts.pool.counts().held == 0, "what nobody fetches is not kept for ever"
        gate.release(ALL_STEPS)
        answered = await waiting
        assert answered.tokens == fake_answer(make_prompt(30, 1), GREEDY)
        assert answered.first_again == answered.tokens[0]
        assert answered.report is None
        await running
        await pair.until_free()
