"""Random requests, pools, imports, failures and aborts: every answer is right as far as it goes, nothing is left."""

import asyncio
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from cluster_core.errors import TransferFailed
from decode_worker.answer import Answer, Stage
from decode_worker.settings import DecodeSettings
from tests.decode_worker.bench import ORIGIN, Bench
from tests.fake_engine import fake_answer
from tests.worker_orders import make_order, make_prompt

SMALL = DecodeSettings(token_budget=16, chunk_tokens=6, max_running=8, passing_s=1.0)
MOST_STEPS = 3000


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request, when it comes, and when it is aborted, in steps."""

    prompt: int
    max_tokens: int
    seed: int
    imported: bool
    comes_at: int
    aborted_at: int | None


REQUESTS = st.builds(
    Request,
    prompt=st.integers(1, 20),
    max_tokens=st.integers(1, 20),
    seed=st.integers(0, 2),
    imported=st.booleans(),
    comes_at=st.integers(0, 20),
    aborted_at=st.none() | st.integers(0, 30),
)


@settings(max_examples=80, deadline=None)
@given(
    requests=st.lists(REQUESTS, min_size=1, max_size=8),
    spare=st.integers(0, 6),
    imports_go_at=st.integers(0, 60),
    imports_fail=st.booleans(),
    landed=st.frozensets(st.integers(0, 5)),
)
def test_every_request_ends_in_any_pool_that_holds_the_largest(
    requests: list[Request], spare: int, imports_go_at: int, imports_fail: bool, landed: frozenset[int]
) -> None:
    asyncio.run(_run(requests, spare, imports_go_at, imports_fail, landed))


async def _run(
    requests: list[Request], spare: int, imports_go_at: int, imports_fail: bool, landed: frozenset[int]
) -> None:
    largest = max(-(-(request.prompt + request.max_tokens) // 4) for request in requests)
    bench = Bench(total_blocks=largest + spare, settings=SMALL)
    bench.source.go.clear()
    bench.source.landed = landed
    bench.source.error = TransferFailed("planted") if imports_fail else None
    answers: dict[int, Answer] = {}
    for now in range(MOST_STEPS):
        for place, request in enumerate(requests):
            if request.comes_at == now:
                order = make_order(
                    f"r{place}",
                    make_prompt(request.prompt, request.seed),
                    max_tokens=request.max_tokens,
                    origin=ORIGIN if request.imported else None,
                )
                bench.source.prompts[order.request_id] = order.prompt_token_ids
                answers[place] = bench.scheduler.submit(order)
            if place in answers and request.aborted_at == now:
                bench.scheduler.abort(answers[place])
        if now == imports_go_at:
            bench.source.go.set()
        bench.step()
        bench.now_s += 0.3
        bench.scheduler.sweep()
        await bench.settle()
        assert bench.scheduler.known_holds().issuperset(bench.pool.holders()), "the sweeper would take a hold away"
        if len(answers) == len(requests) and bench.scheduler.idle:
            break
    await bench.settle()
    assert bench.scheduler.idle, "no progress"
    for place, answer in answers.items():
        _check(requests[place], answer, imports_fail)
    assert bench.pool.counts().held == 0
    bench.pool.audit()


def _check(request: Request, answer: Answer, imports_fail: bool) -> None:
    assert answer.stage is Stage.ENDED
    prompt = list(answer.order.prompt_token_ids)
    expected = fake_answer(prompt, answer.order.sampling)
    written = answer.sequence.token_ids[len(prompt) :]
    assert written == expected[: len(written)]
    whole = request.aborted_at is None and not (imports_fail and request.imported)
    assert written == expected or not whole
