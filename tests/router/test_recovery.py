"""The recovery ladder: which way a request goes on after a failure, what is said of it, and what it may not cost."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import grpc
import pytest

from cluster_core.errors import (
    BatonError,
    ExportGone,
    InvalidField,
    LegFailed,
    NoWorker,
    Overloaded,
    TransferFailed,
    WorkerLost,
)
from cluster_core.identity import Role
from cluster_core.workers import WorkerLoad
from cluster_rpc.errors import from_rpc_error
from cluster_rpc.v1 import cluster_pb2, generation_pb2
from router import attempt_run, request_flow
from router.legs import Leg
from router.recovery import NO_ROOM
from tests.router.fake_workers import FakeWorker, answer, nothing_happens
from tests.router.router_harness import PATIENCE_S, SETTINGS, RouterHarness, running_router

PROMPT = [1 + place % 9 for place in range(70)]
TOKENS = 12
FULL = Overloaded("8 requests wait here already", 0.5)
WEIGHED = replace(SETTINGS, placement="auto")


def failing(error: BatonError, at: int = 1, times: int = 1) -> Callable[[int], Awaitable[None]]:
    """Return a hook, of several workers perhaps, that raises the first ``times`` it is called with ``at``."""
    left = times

    async def hook(place: int) -> None:
        nonlocal left
        if place == at and left:
            left -= 1
            raise error

    return hook


def in_turn(*errors: BatonError | None) -> Callable[[int], Awaitable[None]]:
    """Return a hook, of several workers perhaps, that raises these one after the other, then nothing."""
    left = list(errors)

    async def hook(_place: int) -> None:
        error = left.pop(0) if left else None
        if error is not None:
            raise error

    return hook


async def attempts_of(router: RouterHarness) -> list[cluster_pb2.Attempt]:
    response = await router.cluster.GetPlacement(cluster_pb2.GetPlacementRequest(request_id="r"))
    return list(response.attempts)


async def rungs(router: RouterHarness) -> list[str]:
    return [attempt.rung for attempt in await attempts_of(router)]


async def pools(router: RouterHarness, prefills: int, decodes: int) -> tuple[list[FakeWorker], list[FakeWorker]]:
    readers = [await router.add(f"prefill-{number}") for number in range(prefills)]
    return readers, [await router.add(f"decode-{number}") for number in range(decodes)]


def hooked(workers: list[FakeWorker], hook: Callable[[int], Awaitable[None]]) -> None:
    for worker in workers:
        worker.on_token = hook


async def test_a_decode_worker_that_came_too_late_for_the_export_counts_as_no_try() -> None:
    async with running_router() as router:
        _, decodes = await pools(router, 1, 3)
        failed, too_late = LegFailed("a step failed"), ExportGone("its blocks were accepted")
        handoff = in_turn(failed, too_late, failed, None)
        for worker in decodes:
            worker.before_handoff = handoff
        got = await router.generate(PROMPT, TOKENS, request_id="r")
        assert got.token_ids == answer(PROMPT, TOKENS)
        tried = await attempts_of(router)
        assert [attempt.attempt for attempt in tried] == [1, 1, 2, 2]
        assert SETTINGS.max_attempts == 3


async def test_each_choice_has_tries_of_its_own() -> None:
    async with running_router() as router:
        _, decodes = await pools(router, 1, 6)
        failed = LegFailed("a step failed")
        hooked(decodes, failing(failed, at=3))
        handoff = in_turn(None, failed, failed)
        for worker in decodes:
            worker.before_handoff = handoff
        answers = await router.generate_all(PROMPT, TOKENS, request_id="r", n=2)
        assert [got.token_ids for got in answers] == [answer(PROMPT, TOKENS)] * 2
        assert sorted(attempt.attempt for attempt in await attempts_of(router)) == [1, 2, 2, 2, 2]


@pytest.mark.parametrize("error", [FULL, LegFailed("a step failed"), NoWorker("this worker is draining", 0.5)])
async def test_a_decode_leg_that_fails_before_its_first_token_moves_alone(error: BatonError) -> None:
    async with running_router() as router:
        (prefill,), decodes = await pools(router, 1, 2)
        hooked(decodes, failing(error))
        got = await router.generate(PROMPT, TOKENS, request_id="r")
        assert got.token_ids == answer(PROMPT, TOKENS)
        assert len(prefill.orders) == 1, "what was read is not read again"
        orders = sorted(
            (order for worker in decodes for order in worker.orders), key=lambda order: order.source.binding
        )
        assert [(order.attempt, order.source.binding) for order in orders] == [(1, 0), (1, 1)]
        first, second = await attempts_of(router)
        assert (first.attempt, first.rung, second.attempt, second.rung) == (1, "first try", 1, "other decode worker")
        assert first.outcome == f"{type(error).__name__}: {error}"
        assert second.outcome == "finished"
        assert {first.chosen.decode_worker, second.chosen.decode_worker} == {"decode-0", "decode-1"}
        assert second.link == f"prefill-0 → {second.chosen.decode_worker} over loopback"
        assert second.overlapped_s == pytest.approx(1.5e-6)
        assert second.bytes_per_s == pytest.approx(32e6)


async def test_the_prefill_goes_on_while_the_decode_leg_moves() -> None:
    async with running_router() as router:
        (prefill,), decodes = await pools(router, 1, 2)
        read = asyncio.Event()
        prefill.on_prefill = lambda place: read.wait() if place else asyncio.sleep(0)
        hooked(decodes, failing(FULL))
        waiting = asyncio.create_task(router.generate(PROMPT, TOKENS, request_id="r"))
        await router.until(lambda: all(worker.orders for worker in decodes))
        read.set()
        assert (await waiting).token_ids == answer(PROMPT, TOKENS)
        assert (len(prefill.orders), prefill.cancelled) == (1, 0)


async def test_what_the_first_decode_leg_had_written_early_is_dropped() -> None:
    async with running_router() as router:
        (prefill,), decodes = await pools(router, 1, 2)
        read = asyncio.Event()
        prefill.on_prefill = lambda place: read.wait() if place else asyncio.sleep(0)
        hooked(decodes, failing(LegFailed("a step failed"), at=4))
        waiting = asyncio.create_task(router.generate(PROMPT, TOKENS, request_id="r"))
        await router.until(lambda: all(worker.orders for worker in decodes))
        read.set()
        got = await waiting
        assert got.token_ids == answer(PROMPT, TOKENS)
        assert await rungs(router) == ["first try", "other decode worker"]


async def test_refusals_cost_no_attempt_and_failures_do() -> None:
    async with running_router() as router:
        (prefill,), decodes = await pools(router, 1, 5)
        hooked(decodes, failing(FULL, times=4))
        assert (await router.generate(PROMPT, TOKENS)).token_ids == answer(PROMPT, TOKENS)
        assert [len(worker.orders) for worker in decodes] == [1] * 5
        hooked(decodes, failing(LegFailed("a step failed"), times=9))
        with pytest.raises(NoWorker, match="3 attempts failed, the last one because a step failed"):
            await router.generate(PROMPT, TOKENS)
        assert sum(len(worker.orders) for worker in decodes) == 5 + 3
        assert len(prefill.orders) == 2


async def test_after_the_decode_legs_first_token_the_prompt_is_handed_over_from_its_holder() -> None:
    async with running_router() as router:
        (prefill,), decodes = await pools(router, 1, 2)
        hooked(decodes, failing(LegFailed("a step failed"), at=5))
        assert (await router.generate(PROMPT, TOKENS, request_id="r")).token_ids == answer(PROMPT, TOKENS)
        assert await rungs(router) == ["first try", "other holder"]
        assert [order.attempt for order in prefill.orders] == [1, 2]


async def test_another_prefill_worker_and_a_local_prefill_are_named() -> None:
    async with running_router() as router:
        readers, (decode,) = await pools(router, 2, 1)
        for reader in readers:
            reader.on_prefill = failing(LegFailed("a step failed"), at=0)
        assert (await router.generate(PROMPT, TOKENS, request_id="r")).token_ids == answer(PROMPT, TOKENS)
        assert await rungs(router) == ["first try", "other prefill worker", "local prefill"]
        assert not decode.orders[-1].HasField("source")


@pytest.mark.parametrize(("prefills", "way"), [(2, "partial pull"), (1, "local prefill")])
async def test_what_a_broken_hand_over_has_left_is_known_at_once(prefills: int, way: str) -> None:
    async with running_router() as router:
        _, (decode,) = await pools(router, prefills, 1)
        decode.kept_blocks = 3
        decode.before_handoff = failing(TransferFailed("block 3 did not arrive"), at=0)
        assert (await router.generate(PROMPT, TOKENS, request_id="r")).token_ids == answer(PROMPT, TOKENS)
        broken, second = await attempts_of(router)
        assert (broken.kept_of_failed, second.kept_of_failed) == (3, 0)
        assert second.rung == way
        assert second.chosen.decode_cached_tokens == 48


async def test_a_decode_worker_that_lost_its_prefill_worker_is_heard_before_the_next_attempt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attempt_run, "LAST_WORDS_S", PATIENCE_S)
    importing, take_note = asyncio.Event(), Leg._note

    def note(leg: Leg, event: Any) -> None:
        take_note(leg, event)
        if leg.started and leg.role is Role.DECODE:
            importing.set()

    monkeypatch.setattr(Leg, "_note", note)
    async with running_router() as router:
        readers, (decode,) = await pools(router, 2, 1)
        lost = asyncio.Event()

        async def dies(place: int) -> None:
            if place == 1 and not lost.is_set():
                await importing.wait()
                lost.set()
                message = "a step failed"
                raise LegFailed(message)

        async def import_breaks(_: int) -> None:
            if decode.orders[-1].attempt == 1:
                await lost.wait()
                message = "prefill ended the hand-over's stream"
                raise WorkerLost(message)

        for reader in readers:
            reader.on_prefill = dies
        decode.before_handoff = import_breaks
        decode.kept_blocks = 2
        assert (await router.generate(PROMPT, TOKENS, request_id="r")).token_ids == answer(PROMPT, TOKENS)
        broken, second = await attempts_of(router)
        assert (broken.kept_of_failed, second.rung) == (2, "partial pull")
        assert second.chosen.decode_cached_tokens == 32


@pytest.mark.parametrize(("place", "delivered"), [(1, "1 token was"), (6, "6 tokens were")])
async def test_a_request_that_wants_no_recovery_ends_at_the_first_failure(place: int, delivered: str) -> None:
    async with running_router() as router:
        _, decodes = await pools(router, 1, 2)
        hooked(decodes, failing(TransferFailed("block 3 is torn"), at=place))
        call = router.call(PROMPT, TOKENS, request_id="r", recovery=generation_pb2.RECOVERY_FAIL)
        told: list[int] = []

        async def read() -> None:
            async for response in call:
                told.extend(response.chunk.token_ids)

        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await read()
        assert told == answer(PROMPT, TOKENS)[:place]
        assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
        error = from_rpc_error(failed.value)
        assert type(error) is LegFailed
        expected = f"prefill-0: block 3 is torn; {delivered} delivered, and the request asked for no recovery"
        assert str(error) == expected
        assert len(await attempts_of(router)) == 1
        assert sum(len(worker.orders) for worker in decodes) == 1


async def test_a_refusal_is_no_failure_for_a_request_that_wants_no_recovery() -> None:
    async with running_router() as router:
        (prefill,), decodes = await pools(router, 1, 2)
        hooked(decodes, failing(FULL))
        got = await router.generate(PROMPT, TOKENS, request_id="r", recovery=generation_pb2.RECOVERY_FAIL)
        assert got.token_ids == answer(PROMPT, TOKENS)
        prefill.on_prefill = failing(FULL, at=0)
        got = await router.generate(PROMPT, TOKENS, recovery=generation_pb2.RECOVERY_FAIL)
        assert got.token_ids == answer(PROMPT, TOKENS)


async def test_an_unknown_way_of_recovery_is_refused() -> None:
    async with running_router() as router:
        await pools(router, 0, 1)
        with pytest.raises(
            InvalidField, match=r"^recovery: is 7: must be RECOVERY_RECOVER \(1\) or RECOVERY_FAIL \(2\)"
        ):
            await router.generate(PROMPT, TOKENS, recovery=7)


async def test_a_way_that_comes_too_late_is_passed_over() -> None:
    idle = WorkerLoad(total_blocks=256, decode_step_s=0.001, prefill_s_per_token=0.001)
    async with running_router(WEIGHED) as router:
        (prefill,), (decode,) = await pools(router, 1, 1)
        prefill.report(replace(idle, queued_prefill_tokens=2_000))
        decode.report(replace(idle, running_requests=64))
        known = router.core.membership.workers()
        await router.until(lambda: sum(worker.load.prefill_s_per_token for worker in known) > 0.0015)
        await router.generate(PROMPT, TOKENS, request_id="r", timeout=60)
        (patient,) = await attempts_of(router)
        assert patient.chosen.prefill_worker, "reading here would take from 64 streams, so it is worth the wait"
        await router.generate([*PROMPT, 1], TOKENS, request_id="r", timeout=1.5)
        (urgent,) = await attempts_of(router)
        assert not urgent.chosen.prefill_worker, "but there is no time to wait"


async def test_an_order_that_waits_for_room_goes_where_there_is_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_flow, "LOOK_FOR_ROOM_S", 0.01)
    async with running_router() as router:
        (prefill,), decodes = await pools(router, 1, 2)
        for decode in decodes:
            decode.report(WorkerLoad(waiting_requests=3, total_blocks=256))
            decode.before_start = lambda _: asyncio.Event().wait()
        known = [worker for worker in router.core.membership.workers() if worker.record.role is Role.DECODE]
        await router.until(lambda: all(worker.load.waiting_requests for worker in known))
        waiting = asyncio.create_task(router.generate(PROMPT, TOKENS, request_id="r"))
        await router.until(lambda: any(worker.orders for worker in decodes))
        full, other = sorted(decodes, key=lambda worker: -len(worker.orders))
        other.before_start = nothing_happens
        assert not other.orders
        other.report(WorkerLoad(total_blocks=256))
        assert (await waiting).token_ids == answer(PROMPT, TOKENS)
        assert (len(prefill.orders), len(full.orders), len(other.orders)) == (1, 1, 1)
        first, second = await attempts_of(router)
        assert first.outcome == NO_ROOM
        assert (second.attempt, second.rung, second.outcome) == (1, "other decode worker", "finished")


async def test_a_prompt_that_is_on_offer_no_more_is_read_again() -> None:
    async with running_router() as router:
        (prefill,), decodes = await pools(router, 1, 2)
        prefill.export_over.set()

        def prefill_leg_is_over() -> bool:
            return not any(task.get_name() == "prefill leg" for task in asyncio.all_tasks())

        fails_once = failing(LegFailed("a step failed"))

        async def fails_late(place: int) -> None:
            await router.until(prefill_leg_is_over)
            await fails_once(place)

        hooked(decodes, fails_late)
        assert (await router.generate(PROMPT, TOKENS, request_id="r")).token_ids == answer(PROMPT, TOKENS)
        ways = [(attempt.attempt, attempt.rung) for attempt in await attempts_of(router)]
        assert ways == [(1, "first try"), (2, "other holder")]
