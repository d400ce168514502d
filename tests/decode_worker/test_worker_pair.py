"""Both workers over real gRPC: what was handed over is what one engine would have written, and nothing stays behind."""

import asyncio
from dataclasses import replace
from typing import Any

import grpc
import pytest

from block_directory.memory_directory import MemoryDirectory
from cluster_core.identity import BlockHash, Incarnation, WorkerId
from cluster_rpc.v1 import worker_pb2 as pb
from cluster_rpc.v1 import worker_pb2_grpc
from cluster_rpc.worker_messages import PrefillOrigin, WorkOrder, decode_to_proto, prefill_to_proto
from decode_worker.worker import DecodeWorker
from prefill_worker.worker import PrefillWorker
from tests.eventually import eventually
from tests.fake_engine import FAKE_LAYOUT, GREEDY, StepGate, fake_answer
from tests.worker_orders import make_order, make_prompt
from tests.worker_pair import DECODE, PREFILL, TRANSFER, WorkerPair, running_pair

SAMPLED = replace(GREEDY, temperature=1.0, seed=11)


async def code_of(call: "asyncio.Task[Any] | Any") -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    code = caught.value.code()
    assert isinstance(code, grpc.StatusCode)
    return code


async def drain(call: Any) -> None:
    async for _ in call:
        pass


async def until_read(pair: WorkerPair, order: WorkOrder) -> Any:
    """Have a prompt read; return the call, which lasts for as long as the prompt's blocks are on offer."""
    call = pair.client.prefill.Prefill(prefill_to_proto(order))
    while not (await call.read()).HasField("first_token"):
        pass
    return call


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
async def test_split_and_local_write_the_same(sampling: Any) -> None:
    async with running_pair() as pair:
        for length in (1, 3, 4, 5, 16, 50):
            prompt = make_prompt(length, length)
            expected = fake_answer(prompt, replace(sampling, max_tokens=8))
            split = await pair.client.split(f"split{length}", prompt, sampling=sampling)
            assert split.tokens == expected
            assert split.finish_reason == "length"
            assert split.report is not None
            assert split.report.moved_blocks == FAKE_LAYOUT.blocks_for(length)
            local = await pair.client.local(f"local{length}", prompt, sampling=sampling)
            assert local.tokens == expected
        await pair.until_free()


async def test_sixteen_at_once() -> None:
    async with running_pair() as pair:
        prompts = [make_prompt(1 + 7 * seed % 30, seed % 5) for seed in range(16)]
        calls = [
            pair.client.split(f"r{i}", prompt) if i % 3 else pair.client.local(f"r{i}", prompt)
            for i, prompt in enumerate(prompts)
        ]
        answers = await asyncio.gather(*calls)
        for prompt, answer in zip(prompts, answers, strict=True):
            assert answer.tokens == fake_answer(prompt, GREEDY)
        await pair.until_free()


async def test_tiny_pools_change_nothing() -> None:
    settings = replace(PREFILL, total_blocks=14), replace(DECODE, total_blocks=14)
    async with running_pair(*settings) as pair:
        prompts = [make_prompt(9 + seed, seed % 3) for seed in range(10)]
        answers = await asyncio.gather(*(pair.client.split(f"r{i}", p, max_tokens=24) for i, p in enumerate(prompts)))
        for prompt, answer in zip(prompts, answers, strict=True):
            assert answer.tokens == fake_answer(prompt, replace(GREEDY, max_tokens=24))
        await pair.until_free()


async def test_the_second_time_nothing_moves_and_the_next_turn_only_its_own_blocks() -> None:
    async with running_pair() as pair:
        prompt = make_prompt(20)
        first = await pair.client.split("a", prompt)
        again = await pair.client.split("b", prompt)
        assert again.tokens == first.tokens
        assert again.report is not None
        assert (again.report.moved_blocks, again.report.kept_blocks) == (0, 5)
        assert (again.prefill_cached, again.decode_cached) == (16, 20)
        turn = [*prompt, *first.tokens, 1, 2, 3]
        answer = await pair.client.split("c", turn)
        assert answer.tokens == fake_answer(turn, GREEDY)
        assert answer.report is not None
        assert answer.decode_cached == 24
        assert answer.report.moved_blocks == 2
        await pair.until_free()


def published(worker: PrefillWorker | DecodeWorker) -> set[BlockHash]:
    directory = worker._directory
    assert isinstance(directory, MemoryDirectory)
    return set(directory._shelves[worker.site.worker_id, worker.site.incarnation].hashes)


def live_requests(pair: WorkerPair) -> int:
    load = pair.decode.load()
    return load.waiting_requests + load.running_requests


async def open_legs(pair: WorkerPair, prompt: list[int], max_tokens: int = 8) -> tuple[Any, Any]:
    prefill = pair.client.prefill.Prefill(prefill_to_proto(make_order("a", prompt, max_tokens=max_tokens)))
    handed = make_order("a", prompt, max_tokens=max_tokens, origin=pair.client.origin)
    decode = pair.client.decode.Decode(decode_to_proto(handed))
    return prefill, decode


@pytest.mark.parametrize("steps", [0, 1, 2, 4, 6, 8])
async def test_a_cancel_at_any_step_leaves_nothing(steps: int) -> None:
    async with running_pair() as pair:
        gate = pair.prefill_engine.gate = pair.decode_engine.gate = StepGate()
        prefill, decode = await open_legs(pair, make_prompt(30), max_tokens=40)
        reads = [asyncio.create_task(drain(prefill)), asyncio.create_task(drain(decode))]
        gate.release(steps)
        await gate.until_used()
        prefill.cancel()
        decode.cancel()
        await asyncio.gather(*reads, return_exceptions=True)
        gate.release(100)
        await pair.until_free()
        assert pair.prefill.parts.scheduler.idle
        assert pair.decode.parts.scheduler.idle


async def test_a_deadline_ends_a_request_in_the_queue_and_in_the_middle() -> None:
    async with running_pair(decode=replace(DECODE, max_running=1)) as pair:
        gate = pair.decode_engine.gate = StepGate()
        gate.release(3)
        running = pair.client.decode.Decode(
            decode_to_proto(make_order("a", make_prompt(5), max_tokens=50)), timeout=0.4
        )
        queued = pair.client.decode.Decode(decode_to_proto(make_order("b", make_prompt(5))), timeout=0.4)
        codes = await asyncio.gather(code_of(drain(running)), code_of(drain(queued)))
        assert set(codes) == {grpc.StatusCode.DEADLINE_EXCEEDED}
        gate.release(100)
        await pair.until_free()


async def test_an_exporter_that_does_not_exist_is_a_clear_failure() -> None:
    async with running_pair() as pair:
        nowhere = PrefillOrigin(worker_id=WorkerId("prefill-9"), incarnation=Incarnation(3), address="127.0.0.1:1")
        order = make_order("a", make_prompt(9), origin=nowhere)
        assert await code_of(drain(pair.client.decode.Decode(decode_to_proto(order)))) is grpc.StatusCode.UNAVAILABLE
        wrong_life = replace(pair.client.origin, incarnation=Incarnation(3))
        order = make_order("b", make_prompt(9), origin=wrong_life)
        await code_of(drain(pair.client.decode.Decode(decode_to_proto(order))))
        await pair.until_free()
        known = pair.decode.parts.channels._channels
        assert nowhere.address not in known
        assert pair.client.origin.address in known


async def test_an_exporter_that_ends_in_the_middle_is_a_clear_failure() -> None:
    async with running_pair() as pair:
        gate = pair.prefill_engine.gate = StepGate()
        prefill, decode = await open_legs(pair, make_prompt(30))
        reads = [asyncio.create_task(drain(prefill)), asyncio.create_task(drain(decode))]
        gate.release(2)
        await gate.until_used()
        closing = asyncio.create_task(pair.prefill.close())
        await eventually(lambda: pair.prefill.parts.scheduler.idle)
        gate.release(100)
        await closing
        for read in reads:
            assert await code_of(read) in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ABORTED}
        pool = pair.decode.parts.pool
        await eventually(lambda: pool.counts().held == 0)
        again = await pair.client.local("again", make_prompt(30))
        assert again.tokens == fake_answer(make_prompt(30), GREEDY)


async def test_a_prefill_whose_blocks_nobody_fetches_frees_them_with_its_lease() -> None:
    async with running_pair() as pair:
        call = await until_read(pair, make_order("a", make_prompt(9)))
        assert pair.prefill.parts.pool.counts().held == 3
        assert await call.code() is grpc.StatusCode.OK
        await pair.until_free()


async def test_a_prefill_whose_caller_leaves_frees_its_blocks_at_once() -> None:
    async with running_pair(transfer=replace(TRANSFER, lease_s=60.0, grace_s=60.0)) as pair:
        call = await until_read(pair, make_order("a", make_prompt(9)))
        assert pair.prefill.parts.pool.counts().held == 3
        call.cancel()
        await pair.until_free()


async def test_refusals_have_their_codes() -> None:
    settings = replace(PREFILL, total_blocks=4), replace(DECODE, total_blocks=4, max_running=1, max_waiting=1)
    async with running_pair(*settings) as pair:
        too_long = make_order("a", make_prompt(40))
        assert (
            await code_of(drain(pair.client.prefill.Prefill(prefill_to_proto(too_long))))
            is grpc.StatusCode.OUT_OF_RANGE
        )
        assert (
            await code_of(drain(pair.client.decode.Decode(decode_to_proto(too_long)))) is grpc.StatusCode.OUT_OF_RANGE
        )
        gate = pair.decode_engine.gate = StepGate()
        calls = []
        for name in ("a", "b"):
            call = pair.client.decode.Decode(decode_to_proto(make_order(name, make_prompt(3))))
            calls.append(asyncio.create_task(drain(call)))
            await eventually(lambda: live_requests(pair) == len(calls))
        duplicate = pair.client.decode.Decode(decode_to_proto(make_order("a", make_prompt(3))))
        assert await code_of(drain(duplicate)) is grpc.StatusCode.ALREADY_EXISTS
        one_more = pair.client.decode.Decode(decode_to_proto(make_order("c", make_prompt(3))))
        assert await code_of(drain(one_more)) is grpc.StatusCode.RESOURCE_EXHAUSTED
        gate.release(100)
        await asyncio.gather(*calls)
        await pair.until_free()


async def test_a_reader_that_does_not_read_is_paused_and_the_others_are_not() -> None:
    async with running_pair(decode=replace(DECODE, stream_tokens=8)) as pair:
        slow = pair.client.decode.Decode(decode_to_proto(make_order("slow", make_prompt(5), max_tokens=200)))
        quick = await pair.client.local("quick", make_prompt(7), max_tokens=100)
        assert quick.tokens == fake_answer(make_prompt(7), replace(GREEDY, max_tokens=100))
        tokens: list[int] = []
        async for event in slow:
            tokens += event.tokens.token_ids
        assert tokens == fake_answer(make_prompt(5), replace(GREEDY, max_tokens=200))
        await pair.until_free()


async def test_the_status_stream_tells_load_and_draining() -> None:
    async with running_pair() as pair:
        await pair.client.split("a", make_prompt(30))
        await pair.until_free()
        for record in (pair.prefill_record, pair.decode_record):
            async with grpc.aio.insecure_channel(record.address) as channel:
                stub: Any = worker_pb2_grpc.WorkerServiceStub(channel)  # type: ignore[no-untyped-call]  # generated
                watch = stub.Watch(pb.WatchRequest(period_s=0.01))
                status = await watch.read()
                assert (status.worker_id, status.incarnation) == (record.worker_id, record.incarnation)
                assert status.total_blocks == 64
                assert status.held_blocks == 0
                assert status.cached_blocks >= 7
                assert status.engine_steps > 0
                assert not status.draining
                await stub.DrainWorker(pb.DrainWorkerRequest())
                async with asyncio.timeout(5):
                    while not (await watch.read()).draining:
                        pass
                watch.cancel()
        assert await code_of(pair.client.split("b", make_prompt(3))) is grpc.StatusCode.UNAVAILABLE


async def test_drain_waits_for_running_answers() -> None:
    async with running_pair() as pair:
        gate = pair.decode_engine.gate = StepGate()
        answer = asyncio.create_task(pair.client.local("a", make_prompt(5)))
        gate.release(1)
        await gate.until_used()
        draining = asyncio.create_task(pair.decode.drain())
        gate.release(100)
        await draining
        assert (await answer).tokens == fake_answer(make_prompt(5), GREEDY)


async def test_published_blocks_are_those_of_the_caches() -> None:
    async with running_pair() as pair:
        await pair.client.split("a", make_prompt(30))
        await pair.until_free()
        await eventually(lambda: published(pair.prefill) == set(pair.prefill.parts.pool.cached_hashes()) != set())
        await eventually(lambda: published(pair.decode) == set(pair.decode.parts.pool.cached_hashes()) != set())


async def test_an_engine_that_keeps_failing_breaks_its_worker() -> None:
    async with running_pair() as pair:
        pair.decode_engine.failures = 1
        assert await code_of(pair.client.local("a", make_prompt(5))) is grpc.StatusCode.UNAVAILABLE
        assert (await pair.client.local("b", make_prompt(5))).tokens == fake_answer(make_prompt(5), GREEDY)
        pair.decode_engine.failures = 2
        for name in ("c", "d"):
            assert await code_of(pair.client.local(name, make_prompt(5))) is grpc.StatusCode.UNAVAILABLE
        async with asyncio.timeout(5):
            await pair.decode.wait_until_broken()
        await pair.until_free()


@pytest.mark.parametrize("role", ["prefill", "decode"])
async def test_a_step_that_hangs_breaks_its_worker(role: str) -> None:
    settings = replace(PREFILL, step_timeout_s=0.01), replace(DECODE, step_timeout_s=0.01)
    async with running_pair(*settings) as pair:
        prefill = role == "prefill"
        engine = pair.prefill_engine if prefill else pair.decode_engine
        gate = engine.gate = StepGate()
        worker = pair.prefill if prefill else pair.decode
        asking = asyncio.create_task(pair.client.split("a", make_prompt(5)))
        async with asyncio.timeout(5):
            await worker.wait_until_broken()
        gate.release(100)
        await asking


async def test_a_prefill_that_fails_fails_both_legs_and_frees_both_pools() -> None:
    async with running_pair() as pair:
        pair.prefill_engine.failures = 1
        prefill, decode = await open_legs(pair, make_prompt(30))
        codes = await asyncio.gather(code_of(drain(prefill)), code_of(drain(decode)))
        assert set(codes) <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ABORTED, grpc.StatusCode.DATA_LOSS}
        await pair.until_free()
        assert (await pair.client.split("b", make_prompt(30))).tokens == fake_answer(make_prompt(30), GREEDY)


async def test_an_attempt_is_read_once_and_the_next_one_again() -> None:
    async with running_pair() as pair:
        first = make_order("a", make_prompt(9))
        call = await until_read(pair, first)
        again = pair.client.prefill.Prefill(prefill_to_proto(first))
        assert await code_of(drain(again)) is grpc.StatusCode.ABORTED
        later = await until_read(pair, make_order("a", make_prompt(9), attempt=2))
        assert await call.code() is grpc.StatusCode.OK
        order = make_order("a", make_prompt(9), attempt=2, origin=pair.client.origin)
        await drain(pair.client.decode.Decode(decode_to_proto(order)))
        assert await later.code() is grpc.StatusCode.OK
        await pair.until_free()
