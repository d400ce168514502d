"""Several answers to one prompt: one prefill, one hand-over, a terminal message each."""

import asyncio

import pytest

from cluster_core.errors import ContextTooLong
from cluster_core.sampling import choice_seed
from cluster_rpc.v1 import generation_pb2
from tests.router.fake_workers import FakeWorker, answer
from tests.router.router_harness import Answer, RouterHarness, running_router
from tests.router.test_failures import _first_of, outcomes

PROMPT = [1, 2, 3, 4, 5]
TOKENS = 8
SEED = 3
CHOICES = 4
SEVERAL = {"n": CHOICES, "temperature": 1.0, "seed": SEED}


def check(answers: list[Answer]) -> None:
    for index, got in enumerate(answers):
        seed = choice_seed(SEED, index)
        assert got.token_ids == answer(PROMPT, TOKENS, seed)
        assert got.text.split() == [f"w{token}" for token in got.token_ids]
        assert got.complete is not None
        assert (got.complete.index, got.complete.seed) == (index, seed)
        assert (got.complete.prompt_tokens, got.complete.completion_tokens) == (len(PROMPT), TOKENS)


@pytest.mark.parametrize("split", [True, False])
async def test_all_answers_come_of_one_order_to_each_worker(split: bool) -> None:
    async with running_router() as router:
        workers = [await router.add("decode-0")]
        if split:
            workers.append(await router.add("prefill-0"))
        check(await router.generate_all(PROMPT, TOKENS, **SEVERAL))
        for worker in workers:
            (order,) = worker.orders
            assert (order.choices, order.sampling.seed) == (CHOICES, SEED)


async def test_a_choice_is_what_its_seed_writes_alone() -> None:
    async with running_router() as router:
        await router.add("decode-0")
        answers = await router.generate_all(PROMPT, TOKENS, **SEVERAL)
        for got in answers:
            assert got.complete is not None
            alone = await router.generate(PROMPT, TOKENS, temperature=1.0, seed=got.complete.seed)
            assert alone.token_ids == got.token_ids


async def decoding(router: RouterHarness) -> list[FakeWorker]:
    await router.add("prefill-0")
    return [await router.add("decode-0"), await router.add("decode-1")]


async def test_a_failure_before_the_decode_legs_first_token_leaves_them_together() -> None:
    async with running_router() as router:
        decodes = await decoding(router)
        decodes[0].on_token = decodes[1].on_token = _first_of(decodes, 1)
        check(await router.generate_all(PROMPT, TOKENS, request_id="r", **SEVERAL))
        assert await outcomes_of(router) == ["WorkerLost", "finished"]
        assert [[order.choices for order in worker.orders] for worker in decodes] == [[CHOICES], [CHOICES]]


@pytest.mark.parametrize("place", [4, 7])
async def test_after_a_failure_each_choice_goes_on_by_itself(place: int) -> None:
    async with running_router() as router:
        decodes = await decoding(router)
        decodes[0].on_token = decodes[1].on_token = _first_of(decodes, place)
        check(await router.generate_all(PROMPT, TOKENS, request_id="r", **SEVERAL))
        assert await outcomes_of(router) == ["WorkerLost"] + ["finished"] * CHOICES
        resumed = [order for worker in decodes for order in worker.orders if order.attempt == 2]
        assert sorted(order.request_id for order in resumed) == [f"r~{index}" for index in range(CHOICES)]
        for order in resumed:
            index = int(order.request_id[-1])
            kept = list(order.prompt_token_ids)[len(PROMPT) :]
            assert kept == answer(PROMPT, len(kept), choice_seed(SEED, index))
            assert (order.choices, order.sampling.seed) == (1, choice_seed(SEED, index))
            assert (order.sampling.answer_start, order.sampling.max_tokens) == (len(PROMPT), TOKENS - len(kept))


async def outcomes_of(router: RouterHarness) -> list[str]:
    record = router.core.flow.history.find("r")  # type: ignore[arg-type]
    assert record is not None
    return [attempt.outcome.partition(":")[0] for attempt in record.attempts]


async def test_a_failure_before_the_first_token_begins_all_of_them_again_together() -> None:
    async with running_router() as router:
        await router.add("decode-0")
        prefills = [await router.add("prefill-0"), await router.add("prefill-1")]
        prefills[0].on_prefill = prefills[1].on_prefill = _first_of(prefills, 1)
        check(await router.generate_all(PROMPT, TOKENS, request_id="r", **SEVERAL))
        assert await outcomes(router, "r") == ["WorkerLost", "finished"]
        assert [order.choices for worker in prefills for order in worker.orders] == [CHOICES, CHOICES]


async def test_a_choice_that_stops_early_ends_early() -> None:
    async with running_router() as router:
        decode = await router.add("decode-0")
        stop = answer(PROMPT, TOKENS, choice_seed(SEED, 2))[1]
        go = asyncio.Event()

        async def hold(offset: int) -> None:
            if offset == 3:
                await go.wait()

        decode.on_token = hold
        responses = aiter(router.call(PROMPT, TOKENS, stop=[f"w{stop}"], **SEVERAL))
        ended = [response.complete.index async for response in responses if ends_the_first(response, go)]
        assert ended[0] == 2
        assert sorted(ended) == [0, 1, 2, 3]
        assert decode.ended_choices == [2]


def ends_the_first(response: generation_pb2.GenerateResponse, go: asyncio.Event) -> bool:
    """Say whether a response ends an answer; the first that does lets the others go on."""
    if response.HasField("complete"):
        go.set()
    return bool(response.HasField("complete"))


async def test_choices_that_would_not_fit_a_pool_together_are_refused() -> None:
    async with running_router() as router:
        await router.add("decode-0", total_blocks=8)
        assert len((await router.generate(PROMPT, 60)).token_ids) == 60
        with pytest.raises(ContextTooLong, match="in each of 4 choices need more than the 128 tokens"):
            await router.generate_all(PROMPT, 60, **SEVERAL)
        assert len(await router.generate_all(PROMPT, 16, **SEVERAL)) == CHOICES


async def test_a_cancelled_request_leaves_none_of_its_choices() -> None:
    async with running_router() as router:
        decodes = await decoding(router)
        decodes[0].on_token = decodes[1].on_token = _first_of(decodes, 2)
        never = asyncio.Event()
        asking = asyncio.create_task(router.generate_all(PROMPT, TOKENS, **SEVERAL))
        await router.until(lambda: sum(len(worker.orders) for worker in decodes) > 1)
        for worker in decodes:
            worker.on_token = lambda _: never.wait()
        asking.cancel()
        await asyncio.wait({asking})
        await router.until_nothing_is_left()
