"""Who is read next: short prompts do not wait for long ones, and nobody waits for ever."""

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from prefill_worker.prompt import Prompt, Stage
from prefill_worker.settings import PrefillSettings
from tests.prefill_worker.test_scheduler import Bench
from tests.worker_orders import make_order, make_prompt

FEW = PrefillSettings(token_budget=12, chunk_tokens=8, max_running=2, passing_s=1.0)


def submit(bench: Bench, name: str, length: int) -> Prompt:
    return bench.scheduler.submit(make_order(name, make_prompt(length, len(bench.exports))))


def test_a_short_prompt_passes_long_ones_that_wait_for_their_turn() -> None:
    bench = Bench(total_blocks=200, settings=FEW)
    long = [submit(bench, f"long{place}", 60) for place in range(4)]
    bench.step()
    assert [prompt.stage for prompt in long] == [Stage.READING] * 2 + [Stage.WAITING] * 2
    short = submit(bench, "short", 6)
    bench.step()
    assert short.stage is Stage.ENDED, "one step was enough"
    bench.run()
    assert all(prompt.stage is Stage.ENDED for prompt in long)


def test_a_prompt_without_blocks_is_passed_only_for_a_while() -> None:
    bench = Bench(total_blocks=12, settings=FEW)
    first = submit(bench, "first", 16)
    bench.run()
    assert first.stage is Stage.ENDED
    assert bench.pool.counts().held == 4, "its lease"
    big = submit(bench, "big", 40)
    passing = submit(bench, "passing", 4)
    bench.step()
    assert (big.stage, passing.stage) == (Stage.WAITING, Stage.ENDED)
    bench.now_s += FEW.passing_s
    late = submit(bench, "late", 4)
    bench.step()
    assert late.stage is Stage.WAITING
    bench.accept_all()
    bench.run()
    assert (big.stage, late.stage) == (Stage.ENDED, Stage.ENDED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    length: int
    comes_at: int


@settings(max_examples=60, deadline=None)
@given(
    requests=st.lists(
        st.builds(Request, length=st.integers(1, 60), comes_at=st.integers(0, 60)), min_size=1, max_size=24
    ),
    spare=st.integers(0, 20),
)
def test_everybody_is_read_within_bounds(requests: list[Request], spare: int) -> None:
    """Whatever comes: the work ahead of a prompt bounds when it is read, and what passes it is bounded by time."""
    bench = Bench(total_blocks=15 + spare, settings=FEW)
    prompts: dict[int, Prompt] = {}
    most_steps = 61 + sum(-(-request.length // 6) for request in requests) + len(requests)
    for now in range(most_steps):
        for place, request in enumerate(requests):
            if request.comes_at == now:
                prompts[place] = submit(bench, f"r{place}", request.length)
        bench.step()
        bench.accept_all()
        bench.now_s += 0.1
    assert len(prompts) == len(requests)
    assert all(prompt.stage is Stage.ENDED for prompt in prompts.values())
    assert bench.pool.counts().held == 0
