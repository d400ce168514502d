"""The loop between a worker's plans and its engine."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from inference_engine.engine_loop import GIVE_WAY_S, EngineLoop
from inference_engine.step import SequenceSlice, StepPlan, StepResult
from inference_engine.step_faults import BrokenLogits
from tests.fake_engine import FakeEngine

PLAN = StepPlan(slices=(SequenceSlice(token_ids=[1], start=0, block_table=[0], draw=None),))


class CountedWork:
    """Has ``left`` steps to do."""

    def __init__(self, left: int) -> None:
        self.left = left
        self.results: list[StepResult] = []
        self.errors: list[Exception] = []
        self.places: list[frozenset[int] | None] = []
        self.changed = asyncio.Event()

    def next_step(self) -> StepPlan | None:
        return PLAN if self.left else None

    def step_done(self, result: StepResult) -> None:
        self.left -= 1
        self.results.append(result)
        self.changed.set()

    def step_failed(self, error: Exception, places: frozenset[int] | None) -> None:
        self.left -= 1
        self.errors.append(error)
        self.places.append(places)
        self.changed.set()


async def until(work: CountedWork, left: int) -> None:
    async with asyncio.timeout(10):
        while work.left > left:
            work.changed.clear()
            await work.changed.wait()


@pytest.mark.parametrize("own_thread", [True, False])
async def test_it_lets_a_thread_of_its_own_begin_a_step(monkeypatch: pytest.MonkeyPatch, *, own_thread: bool) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    work = CountedWork(3)
    with ThreadPoolExecutor(1) as others:
        thread = None if own_thread else others
        loop = EngineLoop(engine=FakeEngine(2), work=work, on_broken=pytest.fail, thread=thread)
        loop.start()
        await until(work, 0)
        await loop.close()
    assert slept == [GIVE_WAY_S] * 3 * own_thread


async def test_it_steps_while_there_is_work_and_again_when_woken() -> None:
    work = CountedWork(3)
    loop = EngineLoop(engine=FakeEngine(2), work=work, on_broken=pytest.fail)
    loop.start()
    await until(work, 0)
    assert loop.steps == 3
    work.left = 2
    loop.wake()
    await until(work, 0)
    await loop.close()
    assert loop.steps == 5


async def test_one_failure_is_survived_and_two_in_a_row_are_not() -> None:
    broken = asyncio.Event()
    engine, work = FakeEngine(2), CountedWork(2)
    loop = EngineLoop(engine=engine, work=work, on_broken=broken.set)
    engine.failures = 1
    loop.start()
    await until(work, 0)
    assert (len(work.errors), len(work.results), broken.is_set()) == (1, 1, False)
    engine.failures, work.left = 2, 5
    loop.wake()
    async with asyncio.timeout(10):
        await broken.wait()
    assert len(work.errors) == 3
    await loop.close()


async def test_answers_that_are_not_numbers_do_not_count_against_the_engine() -> None:
    class Poisoned:
        def step(self, plan: StepPlan) -> StepResult:
            assert plan is PLAN
            raise BrokenLogits((0,))

    work = CountedWork(5)
    loop = EngineLoop(engine=Poisoned(), work=work, on_broken=pytest.fail)
    loop.start()
    await until(work, 0)
    await loop.close()
    assert work.places == [frozenset({0})] * 5


async def test_a_step_that_hangs_can_be_seen_and_closing_does_not_wait_for_it() -> None:
    hanging, let_go = threading.Event(), threading.Event()

    class Hanging(FakeEngine):
        def step(self, plan: StepPlan) -> StepResult:
            hanging.set()
            assert let_go.wait(20)
            return super().step(plan)

    loop = EngineLoop(engine=Hanging(2), work=CountedWork(1), on_broken=pytest.fail, close_patience_s=0.01)
    assert loop.step_age_s == 0
    loop.start()
    await asyncio.to_thread(hanging.wait, 20)
    assert loop.step_age_s > 0
    try:
        await loop.close()
        assert loop.step_age_s > 0.01
    finally:
        let_go.set()


async def test_a_mistake_in_planning_is_not_silent() -> None:
    class Mistaken(CountedWork):
        def next_step(self) -> StepPlan | None:
            raise KeyError

    broken = asyncio.Event()
    loop = EngineLoop(engine=FakeEngine(2), work=Mistaken(1), on_broken=broken.set)
    loop.start()
    async with asyncio.timeout(10):
        await broken.wait()
    await loop.close()
