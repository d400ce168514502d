"""Answers on the fake engine, stepped by hand: equal to the oracle, whatever the pool does."""

from dataclasses import replace

import pytest

from cluster_core.errors import (
    Cancelled,
    ContextTooLong,
    DuplicateRequest,
    LegFailed,
    NoWorker,
    Overloaded,
    TokenOutOfRange,
    TransferFailed,
)
from decode_worker.answer import Stage
from decode_worker.answer_stream import Finished, HandedOver, Started, TokensWritten
from decode_worker.settings import DecodeSettings
from tests.decode_worker.bench import ORIGIN, Bench
from tests.fake_engine import GREEDY, VOCAB_SIZE, fake_answer
from tests.worker_orders import collect, make_order, make_prompt

SMALL = DecodeSettings(token_budget=16, chunk_tokens=6, max_running=8, passing_s=1.0)
SAMPLED = replace(GREEDY, temperature=1.0)


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED])
async def test_answers_of_many_requests_equal_each_alone(sampling: object) -> None:
    assert isinstance(sampling, type(GREEDY))
    bench = Bench(total_blocks=100, settings=SMALL)
    prompts = [make_prompt(length, seed) for seed, length in enumerate([1, 3, 4, 5, 17, 30, 8, 2])]
    answers = [
        bench.scheduler.submit(make_order(f"r{i}", prompt, sampling=sampling)) for i, prompt in enumerate(prompts)
    ]
    bench.run()
    for prompt, answer in zip(prompts, answers, strict=True):
        assert await collect(answer) == fake_answer(prompt, replace(sampling, max_tokens=8))
    assert bench.pool.counts().held == 0
    assert bench.scheduler.idle


async def test_a_tiny_pool_preempts_and_nobody_notices() -> None:
    bench = Bench(total_blocks=12, settings=SMALL)
    prompts = [make_prompt(9, seed) for seed in range(4)]
    answers = [bench.scheduler.submit(make_order(f"r{i}", p, max_tokens=30)) for i, p in enumerate(prompts)]
    bench.run()
    for prompt, answer in zip(prompts, answers, strict=True):
        assert await collect(answer) == fake_answer(prompt, replace(GREEDY, max_tokens=30))
    assert bench.scheduler.load().preemptions > 0
    assert bench.pool.counts().held == 0


async def test_the_next_turn_finds_prompt_and_answer_in_the_cache() -> None:
    bench = Bench()
    first = make_prompt(10)
    answer = bench.scheduler.submit(make_order("a", first, max_tokens=11))
    bench.run()
    said = await collect(answer)
    follow_up = bench.scheduler.submit(make_order("b", first + said + [1, 2, 3]))
    bench.run()
    started = await follow_up.stream.take()
    assert isinstance(started, Started)
    assert started.cached_tokens == 20, "all full blocks of 10 + 11 tokens, less the last token, which has no KV"
    assert await collect(follow_up) == fake_answer(first + said + [1, 2, 3], GREEDY)


async def test_a_stop_token_ends_the_answer_and_is_part_of_it() -> None:
    bench = Bench()
    whole = fake_answer(make_prompt(6), GREEDY)
    sampling = replace(GREEDY, stop_token_ids=frozenset({whole[2]}))
    answer = bench.scheduler.submit(make_order("a", make_prompt(6), sampling=sampling))
    bench.run()
    assert await collect(answer) == whole[: whole.index(whole[2]) + 1]


async def test_a_cached_prompt_is_still_computed_for_its_last_token() -> None:
    bench = Bench()
    for name in ("a", "b"):
        answer = bench.scheduler.submit(make_order(name, make_prompt(8)))
        bench.run()
        assert await collect(answer) == fake_answer(make_prompt(8), GREEDY)


def test_orders_that_cannot_be_served_are_refused_at_once() -> None:
    bench = Bench(total_blocks=4, settings=replace(SMALL, max_waiting=2))
    with pytest.raises(ContextTooLong, match="5 blocks"):
        bench.scheduler.submit(make_order("a", make_prompt(10), max_tokens=7))
    with pytest.raises(ContextTooLong, match="context of 4096"):
        bench.scheduler.submit(make_order("a", make_prompt(10), max_tokens=5000))
    with pytest.raises(TokenOutOfRange):
        bench.scheduler.submit(make_order("a", [VOCAB_SIZE]))
    bench.scheduler.submit(make_order("a", [1]))
    with pytest.raises(DuplicateRequest):
        bench.scheduler.submit(make_order("a", [1]))
    bench.scheduler.submit(make_order("b", [1]))
    with pytest.raises(Overloaded):
        bench.scheduler.submit(make_order("c", [1]))
    bench.scheduler.draining = True
    with pytest.raises(NoWorker):
        bench.scheduler.submit(make_order("c", [1]))
    assert bench.pool.counts().held == 0


async def test_a_newer_attempt_ends_the_older_one() -> None:
    bench = Bench()
    older = bench.scheduler.submit(make_order("a", make_prompt(5)))
    bench.step()
    newer = bench.scheduler.submit(make_order("a", make_prompt(5), attempt=2))
    with pytest.raises(Cancelled):
        await collect(older)
    bench.run()
    assert await collect(newer) == fake_answer(make_prompt(5), GREEDY)
    assert bench.pool.counts().held == 0


async def test_a_slow_reader_pauses_its_answer_alone() -> None:
    bench = Bench(settings=replace(SMALL, stream_tokens=4))
    slow = bench.scheduler.submit(make_order("slow", make_prompt(5), max_tokens=20))
    quick = bench.scheduler.submit(make_order("quick", make_prompt(7), max_tokens=3))
    bench.run()
    assert await collect(quick) == fake_answer(make_prompt(7), replace(GREEDY, max_tokens=3))
    assert slow.written == 4
    tokens: list[int] = []
    while len(tokens) < 20:
        event = await slow.stream.take()
        if isinstance(event, TokensWritten):
            tokens += event.token_ids
            bench.run()
    assert tokens == fake_answer(make_prompt(5), replace(GREEDY, max_tokens=20))


async def test_a_reader_that_never_reads_is_given_up() -> None:
    bench = Bench(settings=replace(SMALL, stream_tokens=2, slow_reader_s=30.0))
    answer = bench.scheduler.submit(make_order("a", make_prompt(5)))
    bench.run()
    bench.scheduler.sweep()
    bench.now_s += 29.0
    bench.scheduler.sweep()
    assert answer.stage is Stage.RUNNING
    bench.now_s += 1.0
    bench.scheduler.sweep()
    with pytest.raises(Cancelled, match="took nothing for 30 s"):
        await collect(answer)
    assert bench.pool.counts().held == 0


async def test_a_paused_answer_is_preempted_before_the_others() -> None:
    bench = Bench(total_blocks=6, settings=replace(SMALL, stream_tokens=2))
    paused = bench.scheduler.submit(make_order("paused", make_prompt(5), max_tokens=8))
    bench.run()
    other = bench.scheduler.submit(make_order("other", make_prompt(7), max_tokens=16, sampling=GREEDY))
    read: list[int] = []
    while other.stage is not Stage.ENDED:
        bench.run()
        event = await other.stream.take()
        if isinstance(event, TokensWritten):
            read += event.token_ids
    assert read == fake_answer(make_prompt(7), replace(GREEDY, max_tokens=16))[: len(read)]
    assert paused.stage is Stage.WAITING
    assert bench.scheduler.load().preemptions == 1


def test_smaller_requests_pass_a_blocked_one_only_for_a_while() -> None:
    bench = Bench(total_blocks=8, settings=SMALL)
    bench.scheduler.submit(make_order("running", make_prompt(15), max_tokens=17))
    bench.step()
    big = bench.scheduler.submit(make_order("big", make_prompt(20, 1), max_tokens=4))
    passing = bench.scheduler.submit(make_order("passing", make_prompt(2, 2), max_tokens=1))
    bench.step()
    assert (big.stage, passing.stage) == (Stage.WAITING, Stage.ENDED)
    bench.now_s += 1.0
    late = bench.scheduler.submit(make_order("late", make_prompt(2, 3), max_tokens=1))
    bench.step()
    assert late.stage is Stage.WAITING
    bench.run()
    assert (big.stage, late.stage) == (Stage.ENDED, Stage.ENDED)


def test_blocks_that_a_step_writes_go_back_after_the_step() -> None:
    bench = Bench()
    answer = bench.scheduler.submit(make_order("a", make_prompt(5)))
    plan = bench.scheduler.next_step()
    assert plan is not None
    bench.scheduler.abort(answer)
    assert bench.pool.counts().held == 2
    bench.scheduler.step_done(bench.engine.step(plan))
    assert bench.pool.counts().held == 0


async def test_a_step_that_raises_ends_its_requests_and_no_more() -> None:
    bench = Bench()
    answer = bench.scheduler.submit(make_order("a", make_prompt(5)))
    assert bench.scheduler.next_step() is not None
    bench.scheduler.step_failed(RuntimeError("out of memory"), None)
    with pytest.raises(LegFailed, match="RuntimeError: out of memory"):
        await collect(answer)
    assert bench.pool.counts().held == 0
    again = bench.scheduler.submit(make_order("a", make_prompt(5)))
    bench.run()
    assert await collect(again) == fake_answer(make_prompt(5), GREEDY)


@pytest.mark.parametrize("length", [1, 3, 4, 8, 13])
async def test_an_imported_prompt_goes_on_at_the_second_token(length: int) -> None:
    bench = Bench()
    order = make_order("a", make_prompt(length), origin=ORIGIN)
    bench.source.prompts["a"] = order.prompt_token_ids
    answer = bench.scheduler.submit(order)
    assert not bench.step(), "nothing to compute before the blocks are there"
    await bench.settle()
    bench.run()
    assert isinstance(await answer.stream.take(), Started)
    assert isinstance(await answer.stream.take(), HandedOver)
    event = await answer.stream.take()
    assert isinstance(event, TokensWritten)
    assert (event.offset, list(event.token_ids)) == (1, fake_answer(order.prompt_token_ids, GREEDY)[1:])
    assert bench.pool.counts().held == 0
    assert bench.scheduler.load().transfer_bytes_per_s > 0


async def test_only_what_is_missing_is_imported() -> None:
    bench = Bench()
    warm = bench.scheduler.submit(make_order("warm", make_prompt(9)))
    bench.run()
    await collect(warm)
    longer = [*make_prompt(9), 5, 6, 7]
    bench.source.prompts["a"] = tuple(longer)
    answer = bench.scheduler.submit(make_order("a", longer, origin=ORIGIN))
    bench.step()
    await bench.settle()
    bench.run()
    (job,) = bench.source.jobs
    assert (len(job.targets), job.kept) == (3, frozenset({0, 1}))
    assert await collect(answer) == fake_answer(longer, GREEDY)[1:]


async def test_an_answer_of_one_token_ends_with_the_import() -> None:
    bench = Bench()
    bench.source.prompts["a"] = tuple(make_prompt(5))
    answer = bench.scheduler.submit(make_order("a", make_prompt(5), max_tokens=1, origin=ORIGIN))
    bench.step()
    await bench.settle()
    events = [await answer.stream.take() for _ in range(3)]
    assert events[2] == Finished(reason="length")
    assert bench.pool.counts().held == 0


async def test_an_import_that_fails_says_why_and_leaves_nothing() -> None:
    bench = Bench()
    bench.source.error = TransferFailed("block 1 did not arrive")
    answer = bench.scheduler.submit(make_order("a", make_prompt(5), origin=ORIGIN))
    bench.step()
    await bench.settle()
    with pytest.raises(TransferFailed, match="block 1"):
        await collect(answer)
    assert bench.pool.counts().held == 0


async def test_a_cancelled_import_keeps_its_blocks_until_it_has_stopped() -> None:
    bench = Bench()
    bench.source.go.clear()
    answer = bench.scheduler.submit(make_order("a", make_prompt(5), origin=ORIGIN))
    bench.step()
    await bench.settle()
    bench.scheduler.abort(answer)
    assert bench.pool.counts().held == 2
    await bench.settle()
    assert bench.pool.counts().held == 0
    assert bench.scheduler.idle


async def test_a_preempted_import_is_read_here() -> None:
    bench = Bench(total_blocks=8, settings=SMALL)
    older = bench.scheduler.submit(make_order("older", make_prompt(9, 1), max_tokens=22))
    bench.step()
    bench.source.prompts["a"] = tuple(make_prompt(9))
    younger = bench.scheduler.submit(make_order("a", make_prompt(9), max_tokens=22, origin=ORIGIN))
    bench.step()
    await bench.settle()
    bench.run()
    assert await collect(older) == fake_answer(make_prompt(9, 1), replace(GREEDY, max_tokens=22))
    assert await collect(younger) == fake_answer(make_prompt(9), replace(GREEDY, max_tokens=22))[1:]
    assert bench.scheduler.load().preemptions > 0


async def test_only_the_answers_at_fault_end_when_the_engine_names_them() -> None:
    bench = Bench()
    poisoned = bench.scheduler.submit(make_order("poisoned", make_prompt(5)))
    sound = bench.scheduler.submit(make_order("sound", make_prompt(6)))
    plan = bench.scheduler.next_step()
    assert plan is not None
    bench.engine.step(plan)
    bench.scheduler.step_failed(RuntimeError("not a number"), frozenset({0}))
    with pytest.raises(LegFailed, match="not a number"):
        await collect(poisoned)
    bench.run()
    assert await collect(sound) == fake_answer(make_prompt(6), GREEDY)


async def test_an_import_is_called_back_for_an_older_answer_that_grows() -> None:
    bench = Bench(total_blocks=8, settings=SMALL)
    older = bench.scheduler.submit(make_order("older", make_prompt(9, 1), max_tokens=22))
    bench.step()
    bench.source.go.clear()
    younger = bench.scheduler.submit(make_order("a", make_prompt(9), max_tokens=22, origin=ORIGIN))
    while older.stage is not Stage.ENDED:
        bench.step()
        await bench.settle()
    assert await collect(older) == fake_answer(make_prompt(9, 1), replace(GREEDY, max_tokens=22))
    bench.run()
    whole = fake_answer(make_prompt(9), replace(GREEDY, max_tokens=22))
    assert await collect(younger) == whole, "its first token is told too, so that it can be compared"
    assert bench.pool.counts().held == 0


async def test_an_import_that_others_wait_for_is_called_back_in_time() -> None:
    bench = Bench(total_blocks=4, settings=SMALL)
    bench.source.go.clear()
    stuck = bench.scheduler.submit(make_order("stuck", make_prompt(9), max_tokens=4, origin=ORIGIN))
    bench.step()
    waiting = bench.scheduler.submit(make_order("waiting", make_prompt(8), max_tokens=4))
    bench.step()
    bench.scheduler.sweep()
    await bench.settle()
    assert (stuck.stage, waiting.stage) == (Stage.IMPORTING, Stage.WAITING)
    bench.now_s += SMALL.import_patience_s
    bench.scheduler.sweep()
    await bench.settle()
    bench.run()
    assert await collect(waiting) == fake_answer(make_prompt(8), replace(GREEDY, max_tokens=4))
    assert await collect(stuck) == fake_answer(make_prompt(9), replace(GREEDY, max_tokens=4))


async def test_an_id_may_come_again_while_the_import_of_its_first_use_still_stops() -> None:
    bench = Bench()
    warm = bench.scheduler.submit(make_order("warm", make_prompt(8)))
    bench.run()
    await collect(warm)
    bench.source.go.clear()
    order = make_order("a", make_prompt(9), origin=ORIGIN)
    bench.source.prompts["a"] = order.prompt_token_ids
    first = bench.scheduler.submit(order)
    bench.step()
    bench.scheduler.abort(first)
    second = bench.scheduler.submit(order)
    bench.step()
    bench.source.go.set()
    await bench.settle()
    bench.run()
    assert await collect(second) == fake_answer(make_prompt(9), GREEDY)[1:]
    assert bench.pool.counts().held == 0
