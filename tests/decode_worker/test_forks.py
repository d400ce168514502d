"""Several answers to one prompt: read or moved once, blocks shared, each answer what its seed writes alone."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster_core.errors import Cancelled, ContextTooLong
from cluster_core.identity import RequestId
from cluster_core.sampling import Sampling, choice_seed
from decode_worker.answer import Answer
from decode_worker.answer_stream import Finished, TokensWritten
from decode_worker.settings import DecodeSettings
from tests.decode_worker.bench import ORIGIN, Bench
from tests.fake_engine import FAKE_LAYOUT, GREEDY, fake_answer
from tests.worker_orders import make_order, make_prompt
from tests.worker_pair import running_pair

SEED = 5
SAMPLED = replace(GREEDY, temperature=1.0, seed=SEED)
SMALL = DecodeSettings(token_budget=16, chunk_tokens=6, max_running=8, passing_s=1.0)
LENGTHS = (1, 3, 4, 5, 8, 14)


def expected(prompt: Sequence[int], choices: int, sampling: Sampling) -> list[list[int]]:
    return [fake_answer(prompt, replace(sampling, seed=choice_seed(SEED, choice))) for choice in range(choices)]


async def collect_all(answer: Answer) -> list[list[int]]:
    """Read the answers to an order to their end."""
    tokens: list[list[int]] = [[] for _ in range(answer.order.choices)]
    unfinished = len(tokens)
    while unfinished:
        event = await answer.stream.take()
        if isinstance(event, TokensWritten):
            assert event.offset == len(tokens[event.choice])
            tokens[event.choice] += event.token_ids
        unfinished -= isinstance(event, Finished)
    return tokens


@pytest.mark.parametrize("length", LENGTHS)
async def test_a_prompt_is_read_once_for_all_answers(length: int) -> None:
    bench = Bench(settings=SMALL)
    prompt = make_prompt(length)
    answer = bench.scheduler.submit(replace(make_order("a", prompt, sampling=SAMPLED), choices=4))
    bench.run()
    assert await collect_all(answer) == expected(prompt, 4, SAMPLED)
    read = [part for plan in bench.engine.plans for part in plan.slices if part.start < length]
    assert sum(len(part.token_ids) for part in read) == length
    assert bench.pool.counts().held == 0


async def test_full_blocks_are_shared_and_the_last_one_is_copied() -> None:
    bench = Bench(settings=SMALL)
    bench.scheduler.submit(replace(make_order("a", make_prompt(14), sampling=SAMPLED), choices=4))
    while not any(part.draw for plan in bench.engine.plans for part in plan.slices):
        bench.step()
    assert bench.pool.counts().held == 14 // 4 + 4


async def test_an_answer_that_ends_frees_none_of_what_the_others_use() -> None:
    bench = Bench(settings=SMALL)
    prompt = make_prompt(9)
    stop = expected(prompt, 3, SAMPLED)[0][1]
    sampling = replace(SAMPLED, stop_token_ids=frozenset({stop}))
    answer = bench.scheduler.submit(replace(make_order("a", prompt, max_tokens=20, sampling=sampling), choices=3))
    bench.run()
    assert await collect_all(answer) == expected(prompt, 3, replace(sampling, max_tokens=20))
    assert bench.pool.counts().held == 0


async def test_an_abort_ends_all_answers_also_when_the_first_has_ended() -> None:
    bench = Bench(settings=SMALL)
    prompt = make_prompt(9)
    stop = expected(prompt, 3, SAMPLED)[0][1]
    sampling = replace(SAMPLED, stop_token_ids=frozenset({stop}))
    answer = bench.scheduler.submit(replace(make_order("a", prompt, max_tokens=20, sampling=sampling), choices=3))
    for _ in range(5):
        bench.step()
    assert not bench.scheduler.idle
    bench.scheduler.abort(answer)
    assert bench.scheduler.idle
    assert bench.pool.counts().held == 0
    with pytest.raises(Cancelled):
        await collect_all(answer)


async def test_an_answer_of_which_the_reader_has_enough_ends_by_itself() -> None:
    bench = Bench(settings=SMALL)
    prompt = make_prompt(9)
    order = replace(make_order("a", prompt, max_tokens=20, sampling=SAMPLED), choices=3)
    answer = bench.scheduler.submit(order)
    for _ in range(4):
        bench.step()
    plan = bench.scheduler.next_step()
    assert plan is not None
    held = bench.pool.counts().held
    assert bench.scheduler.end_choice(order.request_id, order.attempt, 1)
    assert bench.pool.counts().held == held, "a step is writing to its blocks"
    bench.scheduler.step_done(bench.engine.step(plan))
    assert bench.pool.counts().held < held
    assert not bench.scheduler.end_choice(order.request_id, order.attempt, 1)
    bench.run()
    whole = expected(prompt, 3, replace(SAMPLED, max_tokens=20))
    written = await collect_all(answer)
    assert [written[0], written[2]] == [whole[0], whole[2]]
    assert written[1] == whole[1][: len(written[1])] != whole[1]
    assert bench.pool.counts().held == 0


@pytest.mark.parametrize("unwanted", [(0,), (2,), (0, 2), (0, 1, 2)])
@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("imported", [False, True])
async def test_an_answer_that_is_unwanted_before_it_began_takes_none_of_the_others_with_it(
    imported: bool, begun: bool, unwanted: tuple[int, ...]
) -> None:
    bench = Bench(settings=SMALL)
    prompt = make_prompt(9)
    order = replace(make_order("a", prompt, max_tokens=20, sampling=SAMPLED), choices=3)
    if imported:
        order = replace(order, origin=ORIGIN, sampling=replace(GREEDY, max_tokens=20))
    whole = expected(prompt, 3, order.sampling)
    bench.source.prompts["a"] = tuple(prompt)
    bench.source.fork_token_ids = (whole[1][0], whole[2][0])
    bench.source.go.clear()
    answer = bench.scheduler.submit(order)
    if begun:
        bench.step()
        await bench.settle()
    for choice in unwanted:
        assert bench.scheduler.end_choice(order.request_id, order.attempt, choice)
    assert not bench.scheduler.end_choice(order.request_id, order.attempt, 3)
    bench.source.go.set()
    bench.run()
    await bench.settle()
    bench.run()
    assert bench.scheduler.idle
    assert bench.pool.counts().held == 0
    events = list(answer.stream._events)
    written: list[list[int]] = [[], [], []]
    for event in events:
        if isinstance(event, TokensWritten):
            written[event.choice] += event.token_ids
    told = 1 if imported else 0  # the prefill worker tells the first tokens
    assert written == [(tokens[:1] if i in unwanted else tokens)[told:] for i, tokens in enumerate(whole)]
    assert sorted(event.choice for event in events if isinstance(event, Finished)) == [0, 1, 2]


def test_answers_that_would_not_fit_together_are_refused_on_arrival() -> None:
    bench = Bench(total_blocks=10)
    order = make_order("a", make_prompt(9), max_tokens=10, sampling=SAMPLED)
    bench.scheduler.submit(order)
    with pytest.raises(ContextTooLong, match="in each of 4 choices need 14 blocks"):
        bench.scheduler.submit(replace(order, request_id=RequestId("b"), choices=4))


@settings(max_examples=60, deadline=None)
@given(
    requests=st.lists(st.tuples(st.integers(1, 14), st.integers(1, 12), st.integers(1, 3)), min_size=1, max_size=4),
    spare=st.integers(0, 4),
)
def test_in_any_pool_every_answer_is_what_it_would_be_alone(requests: list[tuple[int, int, int]], spare: int) -> None:
    largest = max(FAKE_LAYOUT.blocks_for_answers(length, most, choices) for length, most, choices in requests)
    bench = Bench(total_blocks=largest + spare, settings=SMALL)
    answers = [
        bench.scheduler.submit(
            replace(make_order(f"r{i}", make_prompt(length, i % 2), max_tokens=most, sampling=SAMPLED), choices=choices)
        )
        for i, (length, most, choices) in enumerate(requests)
    ]
    bench.run()
    assert bench.scheduler.idle, "no progress"
    for answer in answers:
        written: dict[int, list[int]] = {choice: [] for choice in range(answer.order.choices)}
        for event in answer.stream._events:
            if isinstance(event, TokensWritten):
                written[event.choice] += event.token_ids
        assert list(written.values()) == expected(
            answer.order.prompt_token_ids, answer.order.choices, answer.order.sampling
        )
    assert bench.pool.counts().held == 0
    bench.pool.audit()


@pytest.mark.parametrize("split", [True, False])
async def test_one_transfer_serves_all_answers(split: bool) -> None:
    async with running_pair() as pair:
        for length in (*LENGTHS, 30):
            prompt = make_prompt(length, length)
            answers = await pair.client.several(f"r{length}", prompt, 4, SAMPLED, split=split)
            assert [answer.tokens for answer in answers] == expected(prompt, 4, SAMPLED)
            assert {answer.finish_reason for answer in answers} == {"length"}
            if split:
                assert answers[0].report is not None
                assert answers[0].report.moved_blocks == FAKE_LAYOUT.blocks_for(length)
        await pair.until_free()


@pytest.mark.parametrize("split", [True, False])
async def test_logprobs_of_tokens_and_prompt_come_through_both_workers(split: bool) -> None:
    async with running_pair() as pair:
        sampling = replace(SAMPLED, logprobs=2, prompt_logprobs=1)
        prompt = make_prompt(30)
        once = await pair.client.several("a", prompt, 2, sampling, split=split)
        again = await pair.client.several("b", prompt, 2, sampling, split=split)
        for answer, repeated in zip(once, again, strict=True):
            assert [told.token_id for told in answer.logprobs] == answer.tokens
            assert [told.token_id for told in answer.prompt_logprobs] == prompt[1:]
            assert (answer.logprobs, answer.prompt_logprobs) == (repeated.logprobs, repeated.prompt_logprobs)
        await pair.until_free()
