"""Legs that fail: the client gets the undisturbed answer, each token once."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from cluster_core.errors import (
    BatonError,
    DuplicateRequest,
    ExportGone,
    InvalidField,
    LegFailed,
    NoWorker,
    Overloaded,
    TransferFailed,
    WorkerLost,
)
from cluster_core.identity import Role, WorkerId
from cluster_rpc.v1 import cluster_pb2
from router import attempt_run
from router.attempt_run import AttemptRun
from router.legs import Leg
from tests.router.fake_workers import FakeWorker, answer
from tests.router.router_harness import PATIENCE_S, SETTINGS, RouterHarness, running_router

PROMPT = [1, 2, 3, 4, 5]
TOKENS = 12


def once_at(place: int, act: Callable[[], Awaitable[object]]) -> Callable[[int], Awaitable[None]]:
    """Return a hook that acts the first time it is called with ``place``."""
    done = False

    async def hook(at: int) -> None:
        nonlocal done
        if at == place and not done:
            done = True
            await act()

    return hook


def raising(error: BatonError) -> Callable[[], Awaitable[None]]:
    async def act() -> None:
        raise error

    return act


def crashing(worker: FakeWorker) -> Callable[[], Awaitable[None]]:
    """Return an act that kills the worker from outside, as a signal would, and never returns."""

    async def act() -> None:
        killer = asyncio.get_running_loop().create_task(worker.crash(), name="killer")
        await asyncio.wait((killer,))
        await asyncio.Event().wait()

    return act


async def outcomes(router: RouterHarness, request_id: str) -> list[str]:
    response = await router.cluster.GetPlacement(cluster_pb2.GetPlacementRequest(request_id=request_id))
    assert all(span.start_s <= span.end_s for attempt in response.attempts for span in attempt.spans)
    numbers = [attempt.attempt for attempt in response.attempts]
    assert list(dict.fromkeys(numbers)) == list(range(1, max(numbers) + 1)), "each attempt, and where its leg moved"
    return [attempt.outcome.partition(":")[0] for attempt in response.attempts]


@pytest.mark.parametrize("stage", [0, 1])
async def test_a_prefill_worker_that_dies_before_the_first_token_is_replaced(stage: int) -> None:
    async with running_router() as router:
        decode = await router.add("decode-0")
        prefills = [await router.add("prefill-0"), await router.add("prefill-1")]
        prefills[1].on_prefill = prefills[0].on_prefill = _first_of(prefills, stage)

        async def blocks_never_come(_: int) -> None:
            if decode.orders[-1].attempt == 1:
                await asyncio.Event().wait()

        decode.on_token = blocks_never_come
        got = await router.generate(PROMPT, TOKENS, request_id="r")
        assert got.token_ids == answer(PROMPT, TOKENS)
        assert await outcomes(router, "r") == ["WorkerLost", "finished"]
        await router.until_nothing_is_left()
        assert [order.attempt for order in decode.orders][-1] == 2
        assert decode.cancelled == len(decode.orders) - 1


def _first_of(workers: list[FakeWorker], stage: int) -> Callable[[int], Awaitable[None]]:
    """Return a hook that crashes whichever of the workers is called first."""
    crashed: list[FakeWorker] = []

    async def hook(at: int) -> None:
        if at != stage or crashed:
            return
        worker = next(worker for worker in workers if worker.live_calls)
        crashed.append(worker)
        await crashing(worker)()

    return hook


@pytest.mark.parametrize("place", [1, 2, 11])
async def test_a_decode_worker_that_dies_in_mid_answer_is_replaced(place: int) -> None:
    async with running_router() as router:
        await router.add("prefill-0")
        decodes = [await router.add("decode-0"), await router.add("decode-1")]
        decodes[0].on_token = decodes[1].on_token = _first_of(decodes, place)
        got = await router.generate(PROMPT, TOKENS, request_id="r")
        assert got.token_ids == answer(PROMPT, TOKENS)
        assert got.text.split() == [f"w{token}" for token in got.token_ids]
        assert await outcomes(router, "r") == ["WorkerLost", "finished"]
        orders = [order for worker in decodes for order in worker.orders]
        resumed = max(orders, key=lambda order: (order.attempt, order.source.binding))
        kept = len(resumed.prompt_token_ids) - len(PROMPT)
        assert list(resumed.prompt_token_ids) == [*PROMPT, *got.token_ids[:kept]]
        assert resumed.sampling.max_tokens == TOKENS - kept
        assert (resumed.attempt, resumed.source.binding) in {(2, 0), (1, 1)}, "the latter if no token of it had come"
        assert (kept >= 1) == (resumed.attempt == 2)
        assert kept >= 1 or place < TOKENS // 2


@pytest.mark.parametrize("place", [0, 1, 5])
async def test_a_local_answer_is_resumed_elsewhere(place: int) -> None:
    async with running_router() as router:
        decodes = [await router.add("decode-0"), await router.add("decode-1")]
        decodes[0].on_token = decodes[1].on_token = _first_of(decodes, place)
        got = await router.generate(PROMPT, TOKENS)
        assert got.token_ids == answer(PROMPT, TOKENS)


async def test_what_a_superseded_worker_still_writes_is_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    admitted, superseded = asyncio.Event(), asyncio.Event()
    note, close = Leg._note, AttemptRun.close

    def note_and_tell(leg: Leg, event: Any) -> None:
        note(leg, event)
        if leg.role is Role.DECODE:
            admitted.set()

    async def tell_and_close(run: AttemptRun, patience_s: float) -> None:
        superseded.set()
        await close(run, patience_s)

    async def fail(_: int) -> None:
        await admitted.wait()
        await raising(WorkerLost("prefill-0 is lost"))()

    async def go_on_afterwards(_: int) -> None:
        await superseded.wait()

    monkeypatch.setattr(Leg, "_note", note_and_tell)
    monkeypatch.setattr(AttemptRun, "close", tell_and_close)
    monkeypatch.setattr(attempt_run, "LAST_WORDS_S", PATIENCE_S)
    async with running_router() as router:
        decode, prefill = await router.add("decode-0"), await router.add("prefill-0")
        prefill.on_prefill, decode.before_handoff = fail, go_on_afterwards
        got = await router.generate(PROMPT, TOKENS, request_id="r")
        assert got.token_ids == answer(PROMPT, TOKENS)
        assert await outcomes(router, "r") == ["WorkerLost", "finished"]
        response = await router.cluster.ListWorkers(cluster_pb2.ListWorkersRequest())
        assert response.late_tokens == TOKENS - 1, "all that the first attempt's decode worker has written"


async def test_a_worker_that_dies_after_the_last_token_has_not_failed() -> None:
    async with running_router() as router:
        decode = await router.add("decode-0")
        decode.before_finish = once_at(0, crashing(decode))
        got = await router.generate(PROMPT, TOKENS, request_id="r")
        assert got.token_ids == answer(PROMPT, TOKENS)
        assert await outcomes(router, "r") == ["finished"]


@pytest.mark.parametrize("error", [ExportGone("gone"), TransferFailed("broken"), WorkerLost("prefill-0 is lost")])
async def test_a_failed_hand_over_blames_the_prefill_worker(error: BatonError) -> None:
    async with running_router() as router:
        decode = await router.add("decode-0")
        prefill = await router.add("prefill-0")
        decode.on_token = once_at(1, raising(error))
        got = await router.generate(PROMPT, TOKENS, request_id="r")
        assert got.token_ids == answer(PROMPT, TOKENS)
        assert await outcomes(router, "r") == [type(error).__name__, "finished"]
        assert [order.attempt for order in prefill.orders] == [1]
        assert [order.HasField("source") for order in decode.orders] == [True, False]
        assert router.core.membership.find(WorkerId("decode-0")).state == "ready"  # type: ignore[union-attr]


async def test_a_failed_worker_is_tried_again_when_nobody_else_is_there() -> None:
    async with running_router() as router:
        decode = await router.add("decode-0")
        decode.on_token = once_at(3, raising(LegFailed("a step failed")))
        got = await router.generate(PROMPT, TOKENS, request_id="r")
        assert got.token_ids == answer(PROMPT, TOKENS)
        assert [order.attempt for order in decode.orders] == [1, 2]


async def test_a_request_does_not_wait_for_a_worker_that_fell_silent() -> None:
    quick = replace(SETTINGS, watch_period_s=0.02, watch_silence_periods=5)
    async with running_router(quick) as router:
        decodes = [await router.add("decode-0"), await router.add("decode-1")]
        stopped: list[FakeWorker] = []

        async def stop(offset: int) -> None:
            if offset == 3 and not stopped:
                stopped.extend(worker for worker in decodes if worker.live_calls)
                stopped[0].status_allowed.clear()
                await asyncio.Event().wait()

        decodes[0].on_token = decodes[1].on_token = stop
        got = await router.generate(PROMPT, TOKENS, request_id="r")
        assert got.token_ids == answer(PROMPT, TOKENS)
        assert await outcomes(router, "r") == ["WorkerLost", "finished"]
        assert not any(worker.on_silence for worker in router.core.membership.workers())


@pytest.mark.parametrize("where", ["before_start", "before_handoff"])
async def test_a_prefill_worker_that_falls_silent_after_the_first_token_is_not_waited_for(where: str) -> None:
    quick = replace(SETTINGS, watch_period_s=0.02, watch_silence_periods=5)
    async with running_router(quick) as router:
        readers = [await router.add("prefill-0"), await router.add("prefill-1")]
        decode = await router.add("decode-0")

        async def wait(_: int) -> None:
            if decode.orders[-1].attempt == 1:
                await asyncio.Event().wait()

        setattr(decode, where, wait)
        call = router.call(PROMPT, TOKENS, request_id="r")
        told: list[int] = []
        async for response in call:
            told += response.chunk.token_ids
            if told == answer(PROMPT, 1):
                next(worker for worker in readers if worker.orders).status_allowed.clear()
        assert told == answer(PROMPT, TOKENS)
        assert await outcomes(router, "r") == ["WorkerLost", "finished"]
        assert [len(worker.orders) for worker in readers] == [1, 1]


async def test_a_prefill_worker_that_falls_silent_after_the_hand_over_has_not_failed() -> None:
    quick = replace(SETTINGS, watch_period_s=0.02, watch_silence_periods=5)
    async with running_router(quick) as router:
        reader, decode = await router.add("prefill-0"), await router.add("decode-0")

        async def stop(offset: int) -> None:
            if offset == 3:
                reader.status_allowed.clear()
                await router.until(lambda: not reader.live_calls)

        decode.on_token = stop
        got = await router.generate(PROMPT, TOKENS, request_id="r")
        assert got.token_ids == answer(PROMPT, TOKENS)
        assert await outcomes(router, "r") == ["finished"]


async def test_attempts_are_bounded() -> None:
    async with running_router() as router:
        decode = await router.add("decode-0")

        async def fails(_: int) -> None:
            message = "a step failed"
            raise LegFailed(message)

        decode.on_token = fails
        with pytest.raises(NoWorker, match="3 attempts failed, the last one because a step failed"):
            await router.generate(PROMPT, TOKENS)
        assert len(decode.orders) == 3


async def test_a_full_worker_passes_the_request_on() -> None:
    async with running_router() as router:
        decodes = [await router.add("decode-0"), await router.add("decode-1")]
        refused: list[int] = []

        async def refuses_once(_: int) -> None:
            if not refused:
                refused.append(1)
                message = "8 requests wait here already"
                raise Overloaded(message, 0.5)

        decodes[0].on_token = decodes[1].on_token = refuses_once
        assert (await router.generate(PROMPT, TOKENS)).token_ids == answer(PROMPT, TOKENS)
        assert all(len(worker.orders) == 1 for worker in decodes)


async def test_when_all_workers_are_full_the_client_is_told_when_to_come_back() -> None:
    async with running_router() as router:
        decode = await router.add("decode-0")

        async def refuses(_: int) -> None:
            message = "8 requests wait here already"
            raise Overloaded(message, 0.5)

        decode.on_token = refuses
        with pytest.raises(Overloaded) as refused:
            await router.generate(PROMPT, TOKENS)
        assert refused.value.retry_after_s == 0.5
        assert len(decode.orders) == 1


async def test_a_worker_that_has_just_begun_to_drain_is_replaced_by_the_next_to_come() -> None:
    async with running_router() as router:
        decode = await router.add("decode-0")
        decode.on_token = raise_always(NoWorker("this worker is draining", 0.5))
        waiting = asyncio.create_task(router.generate(PROMPT, TOKENS))
        await router.until(lambda: decode.orders and not decode.live_calls)
        await router.add("decode-1")
        assert (await waiting).token_ids == answer(PROMPT, TOKENS)
        assert len(decode.orders) == 1


def raise_always(error: BatonError) -> Callable[[int], Awaitable[None]]:
    async def hook(_: int) -> None:
        raise error

    return hook


async def test_what_a_worker_says_of_the_request_goes_to_the_client() -> None:
    async with running_router() as router:
        decode = await router.add("decode-0")
        decode.on_token = once_at(0, raising(InvalidField("prompt_token_ids", "no good")))
        with pytest.raises(InvalidField, match="no good"):
            await router.generate(PROMPT, TOKENS)


async def test_an_earlier_request_of_the_same_id_on_a_worker_is_outlived() -> None:
    async with running_router() as router:
        decode = await router.add("decode-0")
        decode.on_token = once_at(0, raising(DuplicateRequest("request_id", "attempt 1 of r is live here")))
        assert (await router.generate(PROMPT, TOKENS)).token_ids == answer(PROMPT, TOKENS)


async def test_a_request_waits_for_a_worker_that_is_being_restarted() -> None:
    async with running_router() as router:
        old = await router.add("decode-0")
        old.on_token = once_at(4, crashing(old))
        running = asyncio.create_task(router.generate(PROMPT, TOKENS, request_id="r"))
        await router.until(lambda: router.core.membership.find(WorkerId("decode-0")).state == "lost")  # type: ignore[union-attr]
        router.workers.remove(old)
        await router.add("decode-0")
        assert (await running).token_ids == answer(PROMPT, TOKENS)
        assert await outcomes(router, "r") == ["WorkerLost", "finished"]


async def test_a_leg_that_skips_tokens_is_not_believed() -> None:
    async with running_router() as router:
        decode = await router.add("decode-0")
        skipped: list[int] = []

        async def skip(offset: int) -> None:
            if offset == 3 and not skipped:
                skipped.append(offset)
                decode.skip_tokens = 1

        decode.on_token = skip
        got = await router.generate(PROMPT, TOKENS, request_id="r")
        assert got.token_ids == answer(PROMPT, TOKENS)
        assert await outcomes(router, "r") == ["LegFailed", "finished"]
