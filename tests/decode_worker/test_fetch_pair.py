"""Prefixes between real workers over gRPC: each lends to the other, and what cannot be lent is computed."""

import asyncio
from dataclasses import replace

import grpc
import pytest

from cluster_core.handoff import FetchSource
from cluster_core.identity import Incarnation
from cluster_core.workers import WorkerRecord
from cluster_rpc.v1 import worker_pb2 as pb
from cluster_rpc.worker_messages import prefill_to_proto
from tests.eventually import eventually
from tests.fake_engine import GREEDY, StepGate, fake_answer
from tests.worker_orders import make_order, make_prompt
from tests.worker_pair import PREFILL, TRANSFER, WorkerPair, running_pair

FIRST = make_prompt(30)
MANY = replace(GREEDY, max_tokens=12)


def lender(record: WorkerRecord, blocks: int, patience_s: float = 5.0) -> FetchSource:
    return FetchSource(
        worker_id=record.worker_id,
        incarnation=record.incarnation,
        address=record.address,
        blocks=blocks,
        patience_s=patience_s,
    )


async def next_turn(pair: WorkerPair) -> list[int]:
    """Let the decode worker read and answer a prompt by itself; return the next turn's prompt."""
    first = await pair.client.local("first", FIRST, max_tokens=12)
    assert first.tokens == fake_answer(FIRST, MANY)
    return [*FIRST, *first.tokens, *make_prompt(7, seed=4)]


async def test_the_next_turn_takes_the_generated_blocks_from_the_decode_worker() -> None:
    async with running_pair() as pair:
        prompt = await next_turn(pair)
        got = await pair.client.split("second", prompt, fetch=lender(pair.decode_record, 10))
        assert got.tokens == fake_answer(prompt, GREEDY)
        assert got.fetch is not None
        assert (got.fetch.lender, got.fetch.moved_blocks, got.fetch.failure) == ("decode-0", 10, "")
        assert got.prefill_cached == 40, "30 of the prompt and 12 of the answer, less what fills no block"
        assert sum(len(part.token_ids) for plan in pair.prefill_engine.plans for part in plan.slices) == 49 - 40
        assert got.report is not None
        assert got.report.kept_blocks == 10, "the lender need not be given its own blocks back"
        await pair.until_free()


async def test_a_decode_worker_that_reads_a_prompt_borrows_from_a_prefill_worker() -> None:
    async with running_pair(transfer=replace(TRANSFER, lease_s=0.1)) as pair:
        order = make_order("read", FIRST)
        async for _ in pair.client.prefill.Prefill(prefill_to_proto(replace(order, root_hash=pair.client.root))):
            pass
        got = await pair.client.local("second", FIRST, fetch=lender(pair.prefill_record, 7))
        assert got.tokens == fake_answer(FIRST, GREEDY)
        assert got.fetch is not None
        assert (got.fetch.lender, got.fetch.moved_blocks, got.decode_cached) == ("prefill-0", 7, 28)
        again = await pair.client.local("third", FIRST, fetch=lender(pair.prefill_record, 7))
        assert (again.tokens, again.fetch) == (got.tokens, None), "what was fetched is cached"
        await pair.until_free()


async def gone(pair: WorkerPair) -> FetchSource:
    return replace(lender(pair.decode_record, 10), address="127.0.0.1:1")


async def restarted(pair: WorkerPair) -> FetchSource:
    return replace(lender(pair.decode_record, 10), incarnation=Incarnation(5))


async def mute(pair: WorkerPair) -> FetchSource:
    """Return a lender that accepts connections and says nothing."""

    async def say_nothing(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    return replace(lender(pair.decode_record, 10, patience_s=0.05), address=f"127.0.0.1:{port}")


async def forgetful(pair: WorkerPair) -> FetchSource:
    """Return a lender that has dropped what it was said to hold."""
    pool = pair.decode.parts.pool
    hold = make_order("hog", [1])
    pool.allocate(pool.available(), hold)  # type: ignore[arg-type]  # any value serves as a hold here
    pool.release(hold)  # type: ignore[arg-type]  # as above
    return lender(pair.decode_record, 10)


@pytest.mark.parametrize("make", [gone, restarted, mute, forgetful], ids=lambda make: make.__name__)
async def test_without_its_lender_a_prompt_is_computed(make: object) -> None:
    async with running_pair() as pair:
        prompt = await next_turn(pair)
        source = await make(pair)  # type: ignore[operator]  # one of the functions above
        got = await pair.client.split("second", prompt, fetch=source)
        assert got.tokens == fake_answer(prompt, GREEDY)
        assert got.fetch is not None
        assert got.fetch.moved_blocks == 0
        assert (got.fetch.failure == "") == (make is forgetful)
        await pair.until_free()


async def test_a_call_that_is_cancelled_in_mid_fetch_leaves_nothing_on_either_side() -> None:
    async with running_pair() as pair:
        prompt = await next_turn(pair)
        source = await mute(pair)
        order = replace(make_order("second", prompt), root_hash=pair.client.root, fetch=replace(source, patience_s=30))
        call = pair.client.prefill.Prefill(prefill_to_proto(order))
        await eventually(lambda: pair.prefill.parts.pool.counts().held == 10)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call.read()
        await pair.until_free()


async def test_a_fetch_begins_while_a_step_runs() -> None:
    async with running_pair() as pair:
        prompt = await next_turn(pair)
        gate = pair.prefill_engine.gate = StepGate()
        other = make_prompt(PREFILL.chunk_tokens * 2, seed=9)
        reading = pair.client.prefill.Prefill(
            prefill_to_proto(replace(make_order("b", other), root_hash=pair.client.root))
        )
        await eventually(lambda: bool(pair.prefill_engine.plans))
        second = asyncio.create_task(pair.client.split("second", prompt, fetch=lender(pair.decode_record, 10)))
        await eventually(lambda: pair.prefill.parts.importer.links.reports() != ())
        assert len(pair.prefill_engine.plans) == 1, "the step has not ended"
        gate.release(100)
        assert (await second).tokens == fake_answer(prompt, GREEDY)
        async for event in reading:
            assert isinstance(event, pb.PrefillEvent)
        assert await reading.code() is grpc.StatusCode.OK
