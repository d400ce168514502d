"""A request through a router and fake workers, undisturbed."""

import asyncio

import pytest

from cluster_core.errors import ContextTooLong, DuplicateRequest, InvalidField, NoWorker
from cluster_core.identity import RequestId
from cluster_rpc.v1 import cluster_pb2, generation_pb2
from tests.router.fake_workers import answer
from tests.router.router_harness import STOP_ID, running_router

PROMPT = [1, 2, 3, 4, 5]


async def test_a_split_request_gets_every_token_once_and_one_terminal_message() -> None:
    async with running_router() as router:
        prefill, decode = await router.add("prefill-0", cached_tokens=3), await router.add("decode-0")
        got = await router.generate(PROMPT, 8)
        assert got.token_ids == answer(PROMPT, 8)
        assert got.text.split() == [f"w{token}" for token in got.token_ids]
        assert got.complete is not None
        assert got.complete.finish_reason == "length"
        assert (got.complete.prompt_tokens, got.complete.completion_tokens, got.complete.cached_tokens) == (5, 8, 3)
        assert got.complete.timings.ttft_s > 0
        assert len(prefill.orders) == len(decode.orders) == 1
        assert decode.orders[0].source.worker_id == "prefill-0"
        assert (prefill.cancelled, decode.cancelled) == (0, 0)


async def test_without_a_prefill_worker_the_decode_worker_reads_the_prompt() -> None:
    async with running_router() as router:
        decode = await router.add("decode-0", cached_tokens=2)
        got = await router.generate(PROMPT, 8)
        assert got.token_ids == answer(PROMPT, 8)
        assert got.complete is not None
        assert got.complete.cached_tokens == 2
        assert got.complete.timings.handover_s == 0
        assert not decode.orders[0].HasField("source")


async def test_the_first_token_does_not_wait_for_the_transfer() -> None:
    async with running_router() as router:
        decode = await router.add("decode-0")
        await router.add("prefill-0")
        arrived = asyncio.Event()

        async def hand_over_is_slow(_: int) -> None:
            await arrived.wait()

        decode.on_token = hand_over_is_slow
        responses = aiter(router.call(PROMPT, 3))
        first = await anext(responses)
        assert list(first.chunk.token_ids) == answer(PROMPT, 1)
        arrived.set()
        rest = [token async for response in responses for token in response.chunk.token_ids]
        assert rest == answer(PROMPT, 3)[1:]


async def test_decode_tokens_that_overtake_the_first_one_wait_for_it() -> None:
    async with running_router() as router:
        decode, prefill = await router.add("decode-0"), await router.add("prefill-0")
        decoded = asyncio.Event()

        async def prefill_is_told_late(stage: int) -> None:
            if stage == 1:
                await decoded.wait()

        async def all_is_written(_: int) -> None:
            decoded.set()

        prefill.on_prefill, decode.before_finish = prefill_is_told_late, all_is_written
        assert (await router.generate(PROMPT, 6)).token_ids == answer(PROMPT, 6)


async def test_a_first_token_that_ends_the_answer_cancels_the_decode_leg() -> None:
    async with running_router() as router:
        decode = await router.add("decode-0")
        await router.add("prefill-0")
        first = answer(PROMPT, 1)[0]
        never = asyncio.Event()
        decode.on_token = lambda _: never.wait()
        got = await router.generate(PROMPT, 8, stop_token_ids=[first])
        assert got.token_ids == [first]
        assert got.text == ""
        assert got.complete is not None
        assert (got.complete.finish_reason, got.complete.matched_token_id) == ("stop", first)
        await router.until_nothing_is_left()
        assert decode.cancelled == 1


async def test_a_single_token_is_not_handed_over() -> None:
    async with running_router() as router:
        prefill = await router.add("prefill-0")
        await router.add("decode-0")
        got = await router.generate(PROMPT, 1)
        assert got.token_ids == answer(PROMPT, 1)
        assert got.complete is not None
        assert got.complete.finish_reason == "length"
        assert prefill.orders == []


async def test_a_stop_string_ends_answer_and_legs() -> None:
    async with running_router() as router:
        decode = await router.add("decode-0")
        await router.add("prefill-0")
        tokens = answer(PROMPT, 8)
        got = await router.generate(PROMPT, 8, stop=[f"w{tokens[3]}"])
        assert got.token_ids == tokens[:4]
        assert got.text.split() == [f"w{token}" for token in tokens[:3]]
        assert got.complete is not None
        assert got.complete.matched_stop_str == f"w{tokens[3]}"
        await router.until_nothing_is_left()
        assert decode.live_calls == 0


async def test_a_stop_string_in_a_batch_of_tokens_cuts_the_batch() -> None:
    async with running_router() as router:
        await router.add("decode-0", tokens_per_event=8)
        tokens = answer(PROMPT, 8)
        got = await router.generate(PROMPT, 8, stop=[f"w{tokens[3]}"])
        assert got.token_ids == tokens[:4]
        assert got.complete is not None
        assert got.complete.completion_tokens == 4


async def test_the_end_of_text_token_ends_the_answer_without_text() -> None:
    async with running_router() as router:
        prompt = next([1, n, m] for n in range(1, 9) for m in range(1, 9) if STOP_ID not in answer([1, n, m], 4))
        await router.add("decode-0")
        tokens = answer(prompt, 4)
        got = await router.generate(prompt, 8, stop_token_ids=[tokens[2]])
        assert got.token_ids == tokens[:3]
        assert got.text.split() == [f"w{token}" for token in tokens[:2]]


async def test_a_live_request_id_cannot_be_used_twice_and_is_free_afterwards() -> None:
    async with running_router() as router:
        decode = await router.add("decode-0")
        go = asyncio.Event()
        decode.on_token = lambda _: go.wait()
        first = asyncio.create_task(router.generate(PROMPT, 4, request_id="same"))
        await router.until(lambda: decode.live_calls)
        with pytest.raises(DuplicateRequest, match="same"):
            await router.generate(PROMPT, 4, request_id="same")
        go.set()
        assert (await first).token_ids == answer(PROMPT, 4)
        assert (await router.generate(PROMPT, 4, request_id="same")).token_ids == answer(PROMPT, 4)


async def test_a_request_that_can_never_fit_is_refused_at_once() -> None:
    async with running_router() as router:
        await router.add("decode-0", total_blocks=4)
        await router.add("prefill-0")
        with pytest.raises(ContextTooLong, match="64 tokens of the largest worker"):
            await router.generate(PROMPT, 60)
        assert len((await router.generate(PROMPT, 59)).token_ids) == 59


async def test_placements_are_explained_and_bounded() -> None:
    async with running_router() as router:
        await router.add("decode-0")
        await router.add("decode-1")
        await router.add("prefill-0")
        await router.generate(PROMPT, 4, request_id="explained")
        response = await router.cluster.GetPlacement(cluster_pb2.GetPlacementRequest(request_id="explained"))
        (attempt,) = response.attempts
        assert attempt.outcome == "finished"
        assert attempt.chosen.prefill_worker == "prefill-0"
        assert len(attempt.candidates) == 2
        assert attempt.chosen.total_s == pytest.approx(sum(term.seconds for term in attempt.chosen.terms))
        assert attempt.handoff.moved_bytes == 64
        assert (attempt.handoff.wire_format, attempt.handoff.exact_bytes) == ("fp8", 128)
        assert [span.name for span in attempt.spans] == ["queue", "prefill", "transfer", "decode"]
        assert all(0 <= span.start_s <= span.end_s for span in attempt.spans)


async def test_a_router_that_stops_refuses_and_lets_live_requests_end() -> None:
    async with running_router() as router:
        decode = await router.add("decode-0")
        go = asyncio.Event()
        decode.on_token = lambda _: go.wait()
        live = asyncio.create_task(router.generate(PROMPT, 4))
        await router.until(lambda: decode.live_calls)
        router.service.stopping = True
        with pytest.raises(NoWorker, match="stopping"):
            await router.generate(PROMPT, 4)
        drained = asyncio.create_task(router.core.live.wait_until_none())
        go.set()
        assert (await live).token_ids == answer(PROMPT, 4)
        await drained


async def test_cancelling_an_unknown_request_says_so() -> None:
    async with running_router() as router:
        response = await router.generation.Cancel(generation_pb2.CancelRequest(request_id="nobody"))
        assert not response.found
        with pytest.raises(InvalidField):
            await router.generate([], 4)
        assert router.core.flow.history.find(RequestId("nobody")) is None
