"""How far prompts are read ahead of decode workers that have no room: a little, and nobody waits for ever."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from prefill_worker.prompt import Prompt, Stage
from tests.prefill_worker.test_scheduler import SMALL, Bench
from tests.worker_orders import make_order, make_prompt

HALF = replace(SMALL, token_budget=64, chunk_tokens=64)
"""A step reads most prompts of these tests whole."""


def submit(bench: Bench, name: str, length: int = 16, seed: int | None = None) -> Prompt:
    tokens = make_prompt(length, len(bench.exports) if seed is None else seed)
    return bench.scheduler.submit(make_order(name, tokens))


def waiting(bench: Bench) -> int:
    return bench.scheduler.load().waiting_requests


def test_a_full_decode_pool_slows_reading_down_and_its_room_lets_it_go_on() -> None:
    bench = Bench(total_blocks=32, settings=HALF)
    bench.claims = False
    for number in range(10):
        submit(bench, f"r{number}")
    bench.run()
    assert (bench.pool.counts().held, waiting(bench)) == (16, 6), "half of the pool, four blocks each"
    for export in bench.exports[:2]:
        export.claimed = True
    bench.run()
    assert waiting(bench) == 4
    bench.accept_all()
    bench.run()
    assert waiting(bench) == 0
    bench.accept_all()
    assert bench.pool.counts().held == 0


def test_a_claimed_prompt_passes_those_that_are_held_back_however_long_they_wait() -> None:
    bench = Bench(total_blocks=32, settings=HALF)
    bench.claims = False
    for number in range(6):
        submit(bench, f"r{number}")
    bench.run()
    bench.now_s += 100 * HALF.passing_s
    bench.claims = True
    claimed = submit(bench, "claimed", length=40)
    bench.run()
    assert claimed.stage is Stage.ENDED
    assert waiting(bench) == 2


def test_one_that_is_claimed_while_it_is_held_back_is_read_at_once() -> None:
    bench = Bench(total_blocks=32, settings=HALF)
    bench.claims = False
    prompts = [submit(bench, f"r{number}") for number in range(6)]
    bench.run()
    bench.exports[5].claimed = True
    bench.run()
    assert [prompt.stage for prompt in prompts[4:]] == [Stage.WAITING, Stage.ENDED]


def test_leases_that_end_unclaimed_let_the_next_ones_be_read() -> None:
    bench = Bench(total_blocks=32, settings=HALF)
    bench.claims = False
    for number in range(10):
        submit(bench, f"r{number}")
    rounds = 0
    while waiting(bench) or bench.pool.counts().held:
        bench.run()
        bench.accept_all()
        rounds += 1
    assert rounds == 3


def test_prompts_with_one_beginning_take_its_room_once() -> None:
    bench = Bench(total_blocks=64, settings=HALF)
    bench.claims = False
    for number in range(14):
        bench.scheduler.submit(make_order(f"r{number}", [*make_prompt(40), number]))
        bench.run()
    assert waiting(bench) == 2, "of 32 blocks, ten that all share and one each leave the twelfth its eleven, no other"


def test_a_prompt_larger_than_the_share_is_read_when_it_is_alone() -> None:
    bench = Bench(total_blocks=32, settings=HALF)
    bench.claims = False
    submit(bench, "small")
    bench.run()
    large = submit(bench, "large", length=100)
    bench.run()
    assert waiting(bench) == 1
    bench.accept_all()
    bench.run()
    assert large.stage is Stage.ENDED


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 120), min_size=1, max_size=20),
    claims=st.lists(st.booleans(), min_size=20, max_size=20),
    order=st.randoms(use_true_random=False),
)
def test_every_prompt_is_read_in_the_end_whoever_comes_for_it(
    lengths: list[int], claims: list[bool], order: object
) -> None:
    bench = Bench(total_blocks=32, settings=SMALL)
    prompts = []
    for number, length in enumerate(lengths):
        bench.claims = claims[number]
        prompts.append(submit(bench, f"r{number}", length))
    for _ in range(200):
        bench.step()
        bench.now_s += 0.1
        finished = [export for export in bench.exports if export.first_token_id is not None and not export.over]
        if finished and not any(prompt.stage is Stage.READING for prompt in prompts):
            order.choice(finished).end()  # type: ignore[attr-defined]  # a random source
    assert all(prompt.stage is Stage.ENDED for prompt in prompts)
