"""Prompts that a decode worker reads itself and whose beginning another worker's cache holds."""

from dataclasses import replace

import pytest

from cluster_core.errors import Cancelled
from cluster_rpc.order_checks import Capacity
from cluster_rpc.worker_messages import WorkOrder
from decode_worker.answer import Answer, Stage
from decode_worker.answer_stream import Started
from decode_worker.scheduler import DecodeScheduler, SchedulerParts
from decode_worker.settings import DecodeSettings
from inference_engine.borrowed_prefixes import BorrowedPrefixes
from tests.decode_worker.bench import ORIGIN, Bench
from tests.fake_engine import FAKE_LAYOUT, FAKE_MODEL, GREEDY, fake_answer
from tests.fake_lender import LENDER, FakeLender, settle, source_of
from tests.worker_orders import collect, make_order, make_prompt

LONG = make_prompt(41)
OTHER = make_prompt(9, seed=5)
EXPECTED = fake_answer(LONG, GREEDY)


class Borrower(Bench):
    """A bench with a lender."""

    def __init__(self, total_blocks: int = 32) -> None:
        super().__init__(total_blocks)
        self.lender = FakeLender(self.engine, LONG, OTHER)
        self.borrowed = BorrowedPrefixes(self.lender.fetch)
        parts = SchedulerParts(
            pool=self.pool,
            capacity=Capacity(model=FAKE_MODEL, layout=FAKE_LAYOUT, total_blocks=total_blocks, max_waiting=8),
            source=self.source,
            borrowed=self.borrowed,
            settings=DecodeSettings(),
            copy_block=self.engine.memory.copy_block,
            clock=lambda: self.now_s,
        )
        self.scheduler = DecodeScheduler(parts, lambda: None)

    def submit(self, name: str, blocks: int = 9) -> Answer:
        return self.scheduler.submit(lent(name, blocks))

    def assert_free(self) -> None:
        assert self.pool.counts().held == 0
        self.pool.audit()


def lent(name: str, blocks: int) -> WorkOrder:
    return replace(make_order(name, LONG), fetch=source_of(blocks))


async def test_a_prefix_is_fetched_while_others_are_written() -> None:
    bench = Borrower()
    answer, other = bench.submit("a"), bench.scheduler.submit(make_order("b", OTHER))
    bench.step()
    await settle()
    bench.run()
    assert await collect(other) == fake_answer(OTHER, GREEDY)
    assert answer.stage is Stage.FETCHING
    bench.lender.go.set()
    await settle()
    bench.run()
    started = await answer.stream.take()
    assert isinstance(started, Started)
    assert started.cached_tokens == 36
    assert started.fetch is not None
    assert (started.fetch.lender, started.fetch.moved_blocks) == (LENDER, 9)
    assert await collect(answer) == EXPECTED
    bench.assert_free()


@pytest.mark.parametrize(("gives", "failure"), [(0, "it died"), (4, "it died"), (0, "")])
async def test_what_does_not_come_is_computed(gives: int, failure: str) -> None:
    bench = Borrower()
    bench.lender.gives, bench.lender.failure = gives, failure
    bench.lender.go.set()
    answer = bench.submit("a")
    bench.step()
    await settle()
    bench.run()
    assert await collect(answer) == EXPECTED
    assert len(bench.lender.jobs) == 1
    bench.assert_free()


async def test_an_answer_that_is_cancelled_in_mid_fetch_leaves_nothing() -> None:
    bench = Borrower()
    answer = bench.submit("a")
    bench.step()
    await settle()
    bench.scheduler.abort(answer)
    assert bench.scheduler.idle
    await settle()
    bench.assert_free()


async def test_a_worker_that_ends_stops_its_fetches() -> None:
    bench = Borrower()
    answers = [bench.submit(name) for name in "ab"]
    bench.step()
    await settle()
    await bench.scheduler.close(Cancelled("the worker ends"))
    await bench.borrowed.close()
    for answer in answers:
        with pytest.raises(Cancelled, match="the worker ends"):
            await answer.stream.take()
    bench.assert_free()


async def test_what_is_handed_over_is_not_fetched() -> None:
    bench = Borrower()
    bench.source.prompts["a"] = tuple(LONG)
    order = replace(lent("a", 9), origin=ORIGIN)
    answer = bench.scheduler.submit(order)
    bench.step()
    await settle()
    bench.run()
    assert (await collect(answer), bench.lender.jobs) == (EXPECTED[1:], [])
    bench.assert_free()
