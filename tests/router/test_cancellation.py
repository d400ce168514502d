"""A request that ends early, at each stage and in each way: exactly one terminal event, and nothing is left."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import grpc
import pytest

from cluster_core.errors import BatonError, Cancelled, DeadlineExceeded, NoWorker
from cluster_core.identity import RequestId
from cluster_core.sampling import Sampling
from cluster_rpc.v1 import generation_pb2
from router.prompt import PreparedRequest
from router.request_flow import RequestFlow
from router.text_stream import TextOptions, TextStream
from router.timeline import Timeline
from tests.router.fake_workers import answer
from tests.router.router_harness import SETTINGS, RouterHarness, collect, running_router, word_tokenizer

PROMPT = [1, 2, 3, 4, 5]
STAGES = ("queued", "waiting for a worker", "prefill queued", "prefill", "transfer", "decode")


class Stuck:
    """A hook that waits for ever at one place, and tells when it does."""

    def __init__(self, place: int) -> None:
        self._place = place
        self.reached = asyncio.Event()

    async def __call__(self, at: int) -> None:
        if at == self._place:
            self.reached.set()
            await asyncio.Event().wait()


async def arrange(router: RouterHarness, stage: str) -> Callable[[], Awaitable[None]]:
    """Make requests get stuck in ``stage``; return how to wait until one is."""
    if stage == "waiting for a worker":
        return lambda: router.until(lambda: router.core.admission.live)
    decode, prefill = await router.add("decode-0"), await router.add("prefill-0")
    if stage == "queued":
        return lambda: router.until(lambda: router.core.admission.queued)
    stuck = Stuck({"prefill queued": 0, "prefill": 1, "transfer": 1, "decode": 4}[stage])
    if stage in {"prefill queued", "prefill"}:
        prefill.on_prefill = stuck
    else:
        decode.on_token = stuck

    async def reached() -> None:
        await stuck.reached.wait()

    return reached


async def occupy(router: RouterHarness) -> Any:
    """Take the router's only place, and keep it."""
    for worker in router.workers:
        worker.on_prefill = Stuck(0)
    call = router.call(PROMPT, 4)
    await router.until(lambda: router.core.admission.live)
    return call


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("way", ["Cancel", "disconnect", "deadline", "default deadline"])
async def test_nothing_is_left(stage: str, way: str) -> None:
    settings = replace(SETTINGS, max_live_requests=1, default_deadline_s=0.3 if way == "default deadline" else 0.0)
    async with running_router(settings) as router:
        stuck = await arrange(router, stage)
        occupant = await occupy(router) if stage == "queued" else None
        # grpc-timeout is sent by the client, so "no deadline" must really be none.
        timeout = {"deadline": 0.3}.get(way)
        call = router.call(PROMPT, 8, request_id="r", timeout=timeout)
        got = asyncio.create_task(collect(call))
        await stuck()
        expected: type[BaseException] = DeadlineExceeded
        if way == "Cancel":
            expected = Cancelled
            assert (await router.generation.Cancel(generation_pb2.CancelRequest(request_id="r"))).found
        elif way == "disconnect":
            expected = asyncio.CancelledError
            call.cancel()
        with pytest.raises(expected):
            await got
        if occupant is not None:
            occupant.cancel()
        await router.until_nothing_is_left()
        again = await router.generation.Cancel(generation_pb2.CancelRequest(request_id="r"))
        assert not again.found
        assert router.core.flow.history.find("r") is None or len(router.core.flow.history) >= 1  # type: ignore[arg-type]


async def run_out(flow: RequestFlow) -> None:
    while not flow.over:
        await flow.next_response()


async def test_a_worker_is_not_blamed_for_the_clients_deadline() -> None:
    async with running_router() as router:
        await arrange(router, "decode")
        clock = router.core.flow.clock
        prepared = PreparedRequest(
            request_id=RequestId("r"),
            prompt_token_ids=tuple(PROMPT),
            sampling=Sampling(temperature=0.0, top_p=1.0, top_k=0, seed=0, max_tokens=8, stop_token_ids=frozenset()),
            text=TextOptions(),
            cache_salt="",
            priority=0,
            seed=0,
        )
        flow = RequestFlow(
            router.core.flow,
            prepared,
            lambda: TextStream(word_tokenizer(), prepared.text),
            Timeline(clock),
            clock() + 0.1,
        )
        with pytest.raises(DeadlineExceeded):
            await run_out(flow)
        await flow.close()
        assert [worker.state for worker in router.core.membership.workers()] == ["ready", "ready"]


async def test_the_next_in_the_queue_takes_the_place_of_a_cancelled_request() -> None:
    async with running_router(replace(SETTINGS, max_live_requests=1)) as router:
        await router.add("decode-0")
        occupant = await occupy(router)
        router.workers[0].on_token = Stuck(0)
        waiting = asyncio.create_task(router.generate(PROMPT, 4))
        await router.until(lambda: router.core.admission.queued)
        occupant.cancel()
        router.workers[0].on_token = Stuck(-1)
        assert (await waiting).token_ids == answer(PROMPT, 4)


async def test_a_slow_client_stops_the_stream_and_can_be_cancelled() -> None:
    async with running_router(replace(SETTINGS, leg_buffer_events=8)) as router:
        decode = await router.add("decode-0", total_blocks=4096, tokens_per_event=1)
        offsets = []

        async def note(offset: int) -> None:
            offsets.append(offset)

        decode.on_token = note
        big = [5] * 4000  # the toy model's context; its answer comes in tiny messages
        call = router.call(big[:40], 4000, request_id="r", timeout=None)
        await router.until(lambda: offsets and router.core.live)
        first = await call.read()
        assert list(first.chunk.token_ids)
        assert (await router.generation.Cancel(generation_pb2.CancelRequest(request_id="r"))).found
        tokens = list(first.chunk.token_ids)
        with contextlib.suppress(grpc.aio.AioRpcError):
            while True:
                tokens += (await call.read()).chunk.token_ids
        assert await call.code() is grpc.StatusCode.CANCELLED
        assert tokens == answer(big[:40], len(tokens))
        await router.until_nothing_is_left()


async def test_a_router_that_ends_its_requests_says_why() -> None:
    async with running_router() as router:
        stuck = await arrange(router, "decode")
        got = asyncio.create_task(router.generate(PROMPT, 8))
        await stuck()
        error: BatonError = NoWorker("the router is stopping", 1.0)
        router.core.live.end_all(error)
        with pytest.raises(NoWorker, match="stopping"):
            await got
