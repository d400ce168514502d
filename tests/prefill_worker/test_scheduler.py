"""Prompts on the fake engine, stepped by hand; exports are recorded."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from cluster_core.errors import (
    Cancelled,
    ContextTooLong,
    DuplicateRequest,
    InvalidField,
    LegFailed,
    NoWorker,
    Overloaded,
    TokenOutOfRange,
)
from cluster_core.hash_chain import chain_hashes
from cluster_core.holds import LeaseHold, RequestHold
from cluster_core.identity import Attempt, RequestId
from cluster_core.sampling import ThinkingLimit, choice_seed
from cluster_rpc.order_checks import Capacity
from inference_engine.block_pool import BlockPool
from kv_transfer.export_memory import SealedBlock
from prefill_worker.prompt import FirstToken, PartRead, Prompt, Started
from prefill_worker.scheduler import PrefillScheduler, SchedulerParts
from prefill_worker.settings import PrefillSettings
from tests.fake_engine import FAKE_LAYOUT, FAKE_MODEL, GREEDY, VOCAB_SIZE, FakeEngine, fake_answer
from tests.worker_orders import ROOT, make_order, make_prompt

SMALL = PrefillSettings(token_budget=12, chunk_tokens=8, max_running=4)


class RecordedExport:
    """What an export was told; takes the lease's holds as the real one does."""

    def __init__(self, pool: BlockPool, lease: LeaseHold, *, claimed: bool) -> None:
        self.claimed = claimed
        self.over = False
        self.sealed: list[SealedBlock] = []
        self.sealings = 0
        self.first_token_id: int | None = None
        self.fork_token_ids: tuple[int, ...] = ()
        self.reason: str | None = None
        self.lease = lease
        self._pool = pool

    def seal(self, blocks: Sequence[SealedBlock]) -> None:
        for block in blocks:
            self._pool.acquire(block.index, self.lease)
        self.sealed += blocks
        self.sealings += 1

    def finish(self, first_token_id: int, fork_token_ids: tuple[int, ...] = ()) -> None:
        self.first_token_id = first_token_id
        self.fork_token_ids = fork_token_ids

    def fail(self, reason: str) -> None:
        self.reason = reason
        self.end()

    async def until_over(self) -> None:
        """Never: nobody waits for it here."""
        await asyncio.Event().wait()

    def end(self) -> None:
        """Let the blocks go, as at an acceptance, or where the lease's time is up."""
        self.over = True
        self._pool.release(self.lease)


class Bench:
    """A prefill scheduler and what surrounds it."""

    def __init__(self, total_blocks: int = 32, settings: PrefillSettings = SMALL) -> None:
        self.engine = FakeEngine(total_blocks)
        self.pool = BlockPool(total_blocks)
        self.exports: list[RecordedExport] = []
        self.claims = True
        """Whether an importer is there as soon as a prompt is."""
        self.now_s = 100.0
        capacity = Capacity(
            model=FAKE_MODEL, layout=FAKE_LAYOUT, total_blocks=total_blocks, max_waiting=settings.max_waiting
        )
        parts = SchedulerParts(
            pool=self.pool, capacity=capacity, exports=self, settings=settings, clock=lambda: self.now_s
        )
        self.scheduler = PrefillScheduler(parts, lambda: None)

    def open(self, request_id: RequestId, attempt: Attempt) -> RecordedExport:
        self.exports.append(RecordedExport(self.pool, LeaseHold(request_id, attempt), claimed=self.claims))
        return self.exports[-1]

    def step(self) -> bool:
        plan = self.scheduler.next_step()
        if plan is None:
            return False
        held = (hold for hold in self.pool.holders() if isinstance(hold, RequestHold) and not hold.fetching)
        assert self.scheduler.known_holds().issuperset(held), "the sweeper would take a hold away"
        self.scheduler.step_done(self.engine.step(plan))
        self.pool.audit()
        return True

    def run(self) -> None:
        while self.step():
            pass

    def accept_all(self) -> None:
        for export in self.exports:
            if export.first_token_id is not None:
                export.end()


async def first_token(prompt: Prompt) -> int:
    started = await prompt.next_event()
    assert isinstance(started, Started)
    event = await prompt.next_event()
    assert isinstance(event, FirstToken)
    return event.token_id


@pytest.mark.parametrize("length", [1, 3, 4, 9, 40])
async def test_first_token_and_exported_blocks_are_those_of_one_engine(length: int) -> None:
    bench = Bench()
    tokens = make_prompt(length)
    prompt = bench.scheduler.submit(make_order("a", tokens))
    bench.run()
    (export,) = bench.exports
    expected = fake_answer(tokens, GREEDY)[0]
    assert await first_token(prompt) == export.first_token_id == expected
    assert [block.position for block in export.sealed] == list(range(FAKE_LAYOUT.blocks_for(length)))
    assert export.sealings == -(-length // SMALL.chunk_tokens), "what a step filled is sealed in one go"
    hashes = [block.hash for block in export.sealed]
    assert hashes[: length // 4] == chain_hashes(ROOT, tokens, 4)
    if length % 4:
        assert (hashes[-1], export.sealed[-1].tokens) == (None, length % 4)
    assert bench.pool.counts().held == FAKE_LAYOUT.blocks_for(length), "the lease keeps the blocks"
    bench.accept_all()
    assert bench.pool.counts() == (32, 0, length // 4)


async def test_blocks_are_exported_chunk_by_chunk() -> None:
    bench = Bench()
    bench.scheduler.submit(make_order("a", make_prompt(20)))
    sealed = []
    while bench.step():
        sealed.append(len(bench.exports[0].sealed))
    assert sealed == [2, 4, 5]


async def test_cached_blocks_are_exported_before_anything_is_computed() -> None:
    bench = Bench()
    bench.scheduler.submit(make_order("a", make_prompt(20)))
    bench.run()
    again = bench.scheduler.submit(make_order("b", make_prompt(20)))
    plan = bench.scheduler.next_step()
    assert plan is not None
    (part,) = plan.slices
    assert (part.start, len(part.token_ids)) == (16, 4), "the last token is computed even when its block is cached"
    assert len(bench.exports[1].sealed) == 4
    bench.scheduler.step_done(bench.engine.step(plan))
    started = await again.next_event()
    assert isinstance(started, Started)
    assert started.cached_tokens == 16


async def test_two_prompts_with_one_prefix_compute_it_once() -> None:
    bench = Bench(settings=replace(SMALL, token_budget=8, chunk_tokens=8))
    prompts = [[*make_prompt(32), 1], [*make_prompt(32), 2]]
    running = [bench.scheduler.submit(make_order(f"r{i}", prompt)) for i, prompt in enumerate(prompts)]
    bench.run()
    for tokens, prompt in zip(prompts, running, strict=True):
        assert await first_token(prompt) == fake_answer(tokens, GREEDY)[0]
    computed = sum(len(part.token_ids) for plan in bench.engine.plans for part in plan.slices)
    assert computed <= 32 + 2 + 8


async def test_sixteen_at_once_equal_each_alone() -> None:
    bench = Bench(total_blocks=40)
    prompts = [make_prompt(1 + 5 * seed % 23, seed) for seed in range(16)]
    running = [bench.scheduler.submit(make_order(f"r{i}", prompt)) for i, prompt in enumerate(prompts)]
    while not bench.scheduler.idle:
        assert bench.step() or bench.pool.counts().held
        bench.accept_all()
    for tokens, prompt in zip(prompts, running, strict=True):
        assert await first_token(prompt) == fake_answer(tokens, GREEDY)[0]
    assert bench.pool.counts().held == 0


async def test_a_short_prompt_overtakes_a_long_one() -> None:
    bench = Bench()
    bench.scheduler.submit(make_order("long", make_prompt(60)))
    bench.step()
    short = bench.scheduler.submit(make_order("short", make_prompt(3, 1)))
    bench.step()
    assert await first_token(short) == fake_answer(make_prompt(3, 1), GREEDY)[0]
    assert bench.exports[0].first_token_id is None


async def test_an_abort_at_any_stage_frees_everything() -> None:
    for steps in range(4):
        bench = Bench()
        prompt = bench.scheduler.submit(make_order("a", make_prompt(20)))
        for _ in range(steps):
            bench.step()
        if bench.exports[0].first_token_id is not None:
            break
        bench.scheduler.abort(prompt)
        assert bench.pool.counts().held == 0
        assert bench.exports[0].reason is not None
        assert not bench.step()


async def test_blocks_that_a_step_writes_go_back_after_the_step() -> None:
    bench = Bench()
    prompt = bench.scheduler.submit(make_order("a", make_prompt(20)))
    plan = bench.scheduler.next_step()
    assert plan is not None
    bench.scheduler.abort(prompt)
    assert bench.pool.counts().held == 5
    bench.scheduler.step_done(bench.engine.step(plan))
    assert bench.pool.counts().held == 0
    with pytest.raises(Cancelled):
        await first_token(prompt)


async def test_a_step_that_raises_fails_its_prompts_and_their_exports() -> None:
    bench = Bench()
    prompt = bench.scheduler.submit(make_order("a", make_prompt(20)))
    assert bench.scheduler.next_step() is not None
    bench.scheduler.step_failed(RuntimeError("planted"), None)
    with pytest.raises(LegFailed, match="planted"):
        await first_token(prompt)
    assert "planted" in str(bench.exports[0].reason)
    assert bench.pool.counts().held == 0


def test_orders_that_cannot_be_served_are_refused_at_once() -> None:
    bench = Bench(total_blocks=2, settings=replace(SMALL, max_waiting=1))
    with pytest.raises(ContextTooLong):
        bench.scheduler.submit(make_order("a", make_prompt(9)))
    bench.scheduler.submit(make_order("a", make_prompt(3)))
    with pytest.raises(DuplicateRequest):
        bench.scheduler.submit(make_order("a", make_prompt(3)))
    with pytest.raises(Overloaded):
        bench.scheduler.submit(make_order("b", make_prompt(3)))
    bench.scheduler.draining = True
    with pytest.raises(NoWorker):
        bench.scheduler.submit(make_order("b", make_prompt(3)))
    assert len(bench.exports) == 1


async def test_a_prompt_waits_for_leased_blocks() -> None:
    bench = Bench(total_blocks=5)
    bench.scheduler.submit(make_order("a", make_prompt(17)))
    bench.run()
    waiting = bench.scheduler.submit(make_order("b", make_prompt(17, 1)))
    assert not bench.step()
    assert bench.scheduler.load().waiting_requests == 1
    bench.accept_all()
    bench.run()
    assert await first_token(waiting) == fake_answer(make_prompt(17, 1), GREEDY)[0]


async def events(prompt: Prompt) -> tuple[list[PartRead], list[FirstToken]]:
    """Read a prompt's events to their end."""
    read: list[PartRead] = []
    first: list[FirstToken] = []
    while len(first) < prompt.order.choices:
        event = await prompt.next_event()
        read += [event] if isinstance(event, PartRead) else []
        first += [event] if isinstance(event, FirstToken) else []
    return read, first


async def test_the_prompts_logprobs_are_told_in_order_and_nothing_is_taken_from_the_cache() -> None:
    tokens = make_prompt(20)
    told = []
    for settings in (SMALL, replace(SMALL, token_budget=64, chunk_tokens=64)):
        bench = Bench(settings=settings)
        bench.scheduler.submit(make_order("warm", tokens))
        bench.run()
        sampling = replace(GREEDY, prompt_logprobs=1, logprobs=1)
        prompt = bench.scheduler.submit(make_order("a", tokens, sampling=sampling))
        bench.run()
        read, (first,) = await events(prompt)
        positions = [part.position + place for part in read for place in range(len(part.logprobs))]
        assert positions == list(range(1, 20))
        assert [entry.token_id for part in read for entry in part.logprobs] == tokens[1:]
        assert first.logprobs is not None
        assert first.logprobs.token_id == first.token_id == fake_answer(tokens, GREEDY)[0]
        told.append([entry for part in read for entry in part.logprobs])
    assert told[0] == told[1]


async def test_every_choice_has_its_first_token_from_one_prefill() -> None:
    bench = Bench()
    tokens = make_prompt(20)
    sampling = replace(GREEDY, temperature=1.0, seed=5, logprobs=0)
    order = replace(make_order("a", tokens, sampling=sampling), choices=4)
    prompt = bench.scheduler.submit(order)
    bench.run()
    _, first = await events(prompt)
    assert [event.choice for event in first] == [0, 1, 2, 3]
    expected = [fake_answer(tokens, replace(sampling, seed=choice_seed(5, choice)))[0] for choice in range(4)]
    assert [event.token_id for event in first] == expected
    assert [event.logprobs.token_id for event in first if event.logprobs] == expected
    (export,) = bench.exports
    assert (export.first_token_id, *export.fork_token_ids) == tuple(expected)
    assert sum(len(part.token_ids) for plan in bench.engine.plans for part in plan.slices) == 20


async def test_draws_that_look_back_see_the_whole_prompt() -> None:
    bench = Bench()
    tokens = make_prompt(20)
    sampling = replace(GREEDY, repetition_penalty=1.5)
    prompt = bench.scheduler.submit(make_order("a", tokens, sampling=sampling))
    bench.run()
    assert await first_token(prompt) == fake_answer(tokens, sampling)[0]
    assert all(part.before == () for plan in bench.engine.plans for part in plan.slices if part.draw is None)


async def test_a_request_that_leaves_no_token_fails_as_the_clients_mistake() -> None:
    bench = Bench()
    prompt = bench.scheduler.submit(make_order("a", make_prompt(3)))
    assert bench.scheduler.next_step() is not None
    bench.scheduler.step_failed(InvalidField("sampling", "leaves nothing"), frozenset({0}))
    with pytest.raises(InvalidField, match="leaves nothing"):
        await first_token(prompt)


def test_token_ids_beyond_the_vocabulary_never_reach_a_step() -> None:
    bench = Bench()
    for wrong in (
        {"logit_bias": ((VOCAB_SIZE, 1.0),)},
        {"allowed_token_ids": frozenset({VOCAB_SIZE})},
        {"banned_sequences": ((1, VOCAB_SIZE),)},
        {"forced_token_ids": (VOCAB_SIZE,)},
        {"thinking": ThinkingLimit(start=(), end=(VOCAB_SIZE,), max_tokens=1)},
        {"min_tokens": 1, "stop_token_ids": frozenset({VOCAB_SIZE})},
    ):
        sampling = replace(GREEDY, **wrong)
        with pytest.raises(TokenOutOfRange):
            bench.scheduler.submit(make_order("a", make_prompt(3), sampling=sampling))
