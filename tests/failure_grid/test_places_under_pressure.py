"""The two places to which a single request does not come, in this process."""

import asyncio
from dataclasses import replace

import pytest

from cluster_core import failpoints
from cluster_core.failpoints import Action, Failpoints, Order
from router.admission import Admission
from router.settings import RouterSettings
from tests.eventually import eventually
from tests.fake_engine import GREEDY, fake_answer
from tests.worker_orders import make_prompt
from tests.worker_pair import DECODE, running_pair


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Failpoints:
    turned_on = Failpoints()
    monkeypatch.setattr(failpoints, "_present", turned_on)
    return turned_on


async def test_a_decode_worker_that_stalls_while_it_preempts_answers_all_the_same(on: Failpoints) -> None:
    on.arm(Order(name="d.preempt", action=Action.SLEEP, value=0.01, times=0))
    async with running_pair(decode=replace(DECODE, total_blocks=14)) as pair:
        prompts = [make_prompt(9 + seed, seed % 3) for seed in range(6)]
        answers = await asyncio.gather(*(pair.client.local(f"r{i}", p, max_tokens=24) for i, p in enumerate(prompts)))
        for prompt, answer in zip(prompts, answers, strict=True):
            assert answer.tokens == fake_answer(prompt, replace(GREEDY, max_tokens=24))
        await pair.until_free()
    assert on.release("d.preempt")


async def test_who_is_held_in_the_queue_keeps_its_place(on: Failpoints) -> None:
    on.arm(Order(name="router.enqueue", action=Action.PAUSE))
    admission = Admission(RouterSettings(max_live_requests=1), asyncio.get_running_loop().time)
    entered = asyncio.Queue[str]()

    async def enter(name: str) -> None:
        async with admission.place(3):
            entered.put_nowait(name)

    async with admission.place(3):
        held = asyncio.create_task(enter("held"))
        assert await asyncio.to_thread(on.wait_until_hit, "router.enqueue", 5.0)
        later = asyncio.create_task(enter("later"))
        await eventually(lambda: admission.queued == 2)
    assert admission.queued == 1, "whoever is held has been given the place, and has not heard of it"
    assert entered.empty()
    on.release("router.enqueue")
    await asyncio.gather(held, later)
    assert [entered.get_nowait() for _ in range(2)] == ["held", "later"]
