"""Prompts whose beginning another worker's cache holds: fetched while others are read, computed if it does not come."""

from dataclasses import replace

import pytest

from cluster_core.errors import Cancelled
from cluster_core.hash_chain import chain_hashes
from cluster_core.sampling import Sampling
from cluster_rpc.order_checks import Capacity
from cluster_rpc.worker_messages import WorkOrder
from inference_engine.borrowed_prefixes import BorrowedPrefixes
from prefill_worker.prompt import FirstToken, Prompt, Stage, Started
from prefill_worker.scheduler import PrefillScheduler, SchedulerParts
from tests.fake_engine import FAKE_LAYOUT, FAKE_MODEL, GREEDY, FakeEngine, fake_answer
from tests.fake_lender import LENDER, FakeLender, settle, source_of
from tests.prefill_worker.test_scheduler import SMALL, Bench
from tests.worker_orders import ROOT, make_order, make_prompt

LONG = make_prompt(41)
OTHER = make_prompt(9, seed=5)


def lent(name: str, prompt: list[int], blocks: int, sampling: Sampling = GREEDY) -> WorkOrder:
    return replace(make_order(name, prompt, sampling=sampling), fetch=source_of(blocks))


class Borrower(Bench):
    """A bench with a lender."""

    def __init__(self, total_blocks: int = 32) -> None:
        super().__init__(total_blocks)
        self.lender = FakeLender(self.engine, LONG, OTHER)
        self.borrowed = BorrowedPrefixes(self.lender.fetch)
        capacity = Capacity(model=FAKE_MODEL, layout=FAKE_LAYOUT, total_blocks=total_blocks, max_waiting=8)
        parts = SchedulerParts(
            pool=self.pool,
            capacity=capacity,
            exports=self,
            settings=SMALL,
            borrowed=self.borrowed,
            clock=lambda: self.now_s,
        )
        self.scheduler = PrefillScheduler(parts, lambda: None)

    def assert_free(self) -> None:
        self.accept_all()
        assert self.pool.counts().held == 0
        self.pool.audit()


async def heard(prompt: Prompt) -> tuple[Started, int]:
    started = await prompt.next_event()
    first = await prompt.next_event()
    assert isinstance(started, Started)
    assert isinstance(first, FirstToken)
    return started, first.token_id


def computed_tokens(engine: FakeEngine) -> int:
    return sum(len(part.token_ids) for plan in engine.plans for part in plan.slices)


async def test_a_prefix_is_fetched_while_others_are_read_and_only_the_rest_is_computed() -> None:
    bench = Borrower()
    prompt = bench.scheduler.submit(lent("a", LONG, 9))
    other = bench.scheduler.submit(make_order("b", OTHER))
    assert prompt.stage is Stage.FETCHING
    await settle()
    bench.run()
    assert (await heard(other))[1] == fake_answer(OTHER, GREEDY)[0]
    assert prompt.stage is Stage.FETCHING
    assert bench.scheduler.load().waiting_requests == 1
    assert bench.scheduler.load().queued_prefill_tokens == 41 - 36
    computed = computed_tokens(bench.engine)
    bench.lender.go.set()
    await settle()
    bench.run()
    started, first = await heard(prompt)
    assert first == fake_answer(LONG, GREEDY)[0]
    assert started.cached_tokens == 36
    assert started.fetch is not None
    assert (started.fetch.lender, started.fetch.moved_blocks) == (LENDER, 9)
    assert computed_tokens(bench.engine) == computed + 5
    assert [block.hash for block in bench.exports[0].sealed[:10]] == chain_hashes(ROOT, LONG, 4)
    assert bench.scheduler.load().transfer_bytes_per_s > 0
    bench.assert_free()


@pytest.mark.parametrize(("gives", "failure"), [(0, "it died"), (4, "it died"), (4, ""), (0, "")])
async def test_what_does_not_come_is_computed(gives: int, failure: str) -> None:
    bench = Borrower()
    bench.lender.gives, bench.lender.failure = gives, failure
    bench.lender.go.set()
    prompt = bench.scheduler.submit(lent("a", LONG, 10))
    await settle()
    bench.run()
    started, first = await heard(prompt)
    assert first == fake_answer(LONG, GREEDY)[0]
    assert started.cached_tokens == 4 * gives
    assert started.fetch is not None
    assert started.fetch.failure == failure
    assert computed_tokens(bench.engine) == 41 - 4 * gives
    assert len(bench.lender.jobs) == 1, "a second try would most likely end like the first"
    bench.assert_free()


async def test_only_what_the_own_cache_lacks_is_fetched_and_what_came_is_kept() -> None:
    bench = Borrower()
    bench.scheduler.submit(make_order("a", LONG[:17]))
    bench.run()
    bench.lender.go.set()
    bench.scheduler.submit(lent("b", LONG, 8))
    await settle()
    bench.run()
    (job,) = bench.lender.jobs
    assert (job.first, len(job.targets)) == (4, 4)
    bench.accept_all()
    again = bench.scheduler.submit(lent("c", LONG, 8))
    assert again.stage is Stage.READING, "there is nothing to fetch any more"
    bench.run()
    assert (await heard(again))[0].cached_tokens == 40
    events = [block_hash for event in bench.pool.drain_events() for block_hash in event.hashes]  # type: ignore[union-attr]
    assert events == chain_hashes(ROOT, LONG, 4), "all of it is published"
    bench.assert_free()


async def test_a_prompt_that_is_cancelled_in_mid_fetch_leaves_nothing() -> None:
    bench = Borrower()
    prompt = bench.scheduler.submit(lent("a", LONG, 9))
    await settle()
    assert bench.pool.counts().held == 9
    bench.scheduler.abort(prompt)
    assert bench.scheduler.idle
    await settle()
    bench.assert_free()
    with pytest.raises(Cancelled):
        await prompt.next_event()


async def test_prompts_with_the_same_beginning_fetch_it_once() -> None:
    bench = Borrower()
    prompts = [bench.scheduler.submit(lent(name, [*LONG[:37], last], 9)) for last, name in enumerate("abc")]
    prompts.append(bench.scheduler.submit(make_order("d", [*LONG[:37], 3])))
    bench.run()
    await settle()
    assert [prompt.stage for prompt in prompts] == [Stage.FETCHING] * 4
    bench.lender.go.set()
    await settle()
    bench.run()
    assert len(bench.lender.jobs) == 1
    for last, prompt in enumerate(prompts):
        started, first = await heard(prompt)
        assert (started.cached_tokens, first) == (36, fake_answer([*LONG[:37], last], GREEDY)[0])
    bench.assert_free()


async def test_when_the_first_of_several_is_cancelled_another_one_fetches() -> None:
    bench = Borrower()
    first, second = (bench.scheduler.submit(lent(name, LONG, 9)) for name in "ab")
    await settle()
    bench.scheduler.abort(first)
    await settle()
    bench.run()
    assert second.stage is Stage.FETCHING
    bench.lender.go.set()
    await settle()
    bench.run()
    assert (await heard(second))[0].cached_tokens == 36
    assert len(bench.lender.jobs) == 2
    bench.assert_free()


async def test_when_a_fetch_fails_those_that_waited_for_it_compute() -> None:
    bench = Borrower()
    bench.lender.gives, bench.lender.failure = 0, "it died"
    prompts = [bench.scheduler.submit(lent(name, LONG, 9)) for name in "abc"]
    await settle()
    bench.lender.go.set()
    await settle()
    bench.run()
    for prompt in prompts:
        assert (await heard(prompt))[1] == fake_answer(LONG, GREEDY)[0]
    assert len(bench.lender.jobs) == 1
    bench.assert_free()


async def test_a_fetch_waits_for_room_as_a_prompt_does() -> None:
    bench = Borrower(total_blocks=14)
    bench.scheduler.submit(make_order("a", make_prompt(24, seed=3)))
    bench.run()
    prompt = bench.scheduler.submit(lent("b", LONG, 9))
    await settle()
    assert (prompt.stage, bench.lender.jobs) == (Stage.WAITING, [])
    bench.accept_all()
    bench.lender.go.set()
    bench.run()
    assert prompt.stage is Stage.FETCHING
    await settle()
    bench.run()
    assert (await heard(prompt))[0].cached_tokens == 36
    bench.assert_free()


async def test_a_prompt_whose_logprobs_are_wanted_is_computed() -> None:
    bench = Borrower()
    prompt = bench.scheduler.submit(lent("a", LONG, 9, replace(GREEDY, prompt_logprobs=1)))
    assert prompt.stage is Stage.READING
    bench.run()
    assert bench.lender.jobs == []
    bench.assert_free()


async def test_a_worker_that_ends_stops_its_fetches() -> None:
    bench = Borrower()
    prompts = [bench.scheduler.submit(lent(name, LONG, 9)) for name in "ab"]
    await settle()
    bench.scheduler.fail_all(Cancelled("the worker ends"))
    await bench.borrowed.close()
    for prompt in prompts:
        with pytest.raises(Cancelled, match="the worker ends"):
            await prompt.next_event()
    bench.assert_free()
