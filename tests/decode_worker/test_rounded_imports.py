"""What came rounded over a slow link serves its own request, and no other finds it."""

from dataclasses import replace

import pytest

from tests.decode_worker.bench import ORIGIN, Bench
from tests.fake_engine import GREEDY, fake_answer
from tests.worker_orders import collect, make_order, make_prompt


@pytest.mark.parametrize("rounded", [False, True])
async def test_neither_prompt_nor_answer_is_cached(rounded: bool) -> None:
    bench, prompt = Bench(), make_prompt(13)
    bench.source.prompts["a"] = tuple(prompt)
    bench.source.rounded = rounded
    answer = bench.scheduler.submit(replace(make_order("a", prompt, max_tokens=12), origin=ORIGIN))
    bench.step()
    await bench.settle()
    bench.run()
    assert await collect(answer) == fake_answer(prompt, replace(GREEDY, max_tokens=12))[1:]
    assert bench.pool.counts().held == 0
    assert bool(bench.pool.counts().cached) is not rounded
    assert bool(bench.pool.drain_events()) is not rounded
