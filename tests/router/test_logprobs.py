"""Logprobs on their way through the router: one for each token, whatever happens to the workers."""

import pytest

from cluster_core.logprobs import TokenLogprobs
from cluster_rpc.logprob_messages import logprobs_from_proto
from tests.router.fake_workers import answer, told
from tests.router.router_harness import Answer, running_router
from tests.router.test_failures import _first_of

PROMPT = [1, 2, 3, 4, 5, 6, 7, 8]
TOKENS = 12


def expected(tokens: list[int], first: int) -> list[TokenLogprobs]:
    return list(logprobs_from_proto([told(tokens, place) for place in range(first, len(tokens))], "test"))


def check(got: Answer, count: int = TOKENS) -> None:
    whole = [*PROMPT, *answer(PROMPT, count)]
    assert got.token_ids == whole[len(PROMPT) :]
    assert got.logprobs == expected(whole, len(PROMPT))


@pytest.mark.parametrize("split", [True, False])
async def test_every_token_has_its_logprobs(split: bool) -> None:
    async with running_router() as router:
        await router.add("decode-0", tokens_per_event=5)
        if split:
            await router.add("prefill-0")
        check(await router.generate(PROMPT, TOKENS, logprobs=1))
        assert (await router.generate(PROMPT, TOKENS)).logprobs == []


@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("prompt", [PROMPT, PROMPT[:1], PROMPT[:2]], ids=len)
async def test_the_prompts_logprobs_come_before_the_first_token(split: bool, prompt: list[int]) -> None:
    async with running_router() as router:
        await router.add("decode-0")
        if split:
            await router.add("prefill-0")
        got = await router.generate(prompt, 4, prompt_logprobs=1)
        assert got.prompt_logprobs == [None, *expected(prompt, 1)]
        assert got.token_ids == answer(prompt, 4)
        assert got.logprobs == []


@pytest.mark.parametrize("place", [1, 2, 11])
async def test_a_resumed_answer_neither_repeats_nor_loses_any(place: int) -> None:
    async with running_router() as router:
        await router.add("prefill-0")
        decodes = [await router.add("decode-0"), await router.add("decode-1")]
        decodes[0].on_token = decodes[1].on_token = _first_of(decodes, place)
        got = await router.generate(PROMPT, TOKENS, logprobs=1, prompt_logprobs=0)
        check(got)
        assert got.prompt_logprobs == [None, *expected(PROMPT, 1)]
        resumed = [order for worker in decodes for order in worker.orders if order.attempt == 2]
        assert resumed or place < TOKENS // 2, "only a leg that told nothing moves within its attempt"
        for order in resumed:
            assert not order.sampling.HasField("prompt_logprobs"), "the client has them"
            assert order.sampling.answer_start == len(PROMPT)


async def test_a_prefill_that_dies_after_half_of_the_prompts_logprobs_is_taken_up() -> None:
    async with running_router() as router:
        await router.add("decode-0")
        prefills = [await router.add("prefill-0"), await router.add("prefill-1")]
        prefills[0].on_prefill = prefills[1].on_prefill = _first_of(prefills, 1)
        got = await router.generate(PROMPT, TOKENS, logprobs=1, prompt_logprobs=1)
        check(got)
        assert got.prompt_logprobs == [None, *expected(PROMPT, 1)]


async def test_a_stop_string_cuts_the_logprobs_too() -> None:
    async with running_router() as router:
        await router.add("decode-0", tokens_per_event=8)
        got = await router.generate(PROMPT, 8, stop=[f"w{answer(PROMPT, 8)[3]}"], logprobs=1)
        check(got, 4)
