"""Answers with guesses on the fake engine equal those without, whoever guesses, however badly, in whatever pool."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster_rpc.worker_messages import WorkOrder
from decode_worker.answer import Answer, Stage
from decode_worker.answer_stream import TokensWritten
from decode_worker.draft_guesses import DraftGuesses
from decode_worker.guess_source import LookupGuesses
from decode_worker.settings import DecodeSettings
from decode_worker.speculation import Speculation
from decode_worker.step_share import StepShare
from inference_engine.acceptance import GuessKind
from inference_engine.speculation_control import Offer, SpeculationControl
from inference_engine.step import DraftSlice
from tests.decode_worker.bench import ORIGIN, Bench
from tests.fake_engine import FAKE_LAYOUT, FAKE_MODEL, GREEDY, VOCAB_SIZE, FakeEngine, fake_answer
from tests.worker_orders import collect, make_order, make_prompt

SMALL = DecodeSettings(token_budget=40, chunk_tokens=6, max_running=8, passing_s=1.0)
SAMPLED = replace(GREEDY, temperature=1.0)
PENALISED = replace(GREEDY, temperature=0.7, repetition_penalty=1.3)
MOST_STEPS = 3000


class Eager(SpeculationControl):
    """Checks every guess that there is."""

    def wants_guesses(self, batch: int) -> bool:
        return batch > 0

    def choose(self, offers: Sequence[Offer], room: int) -> list[int]:
        counts = []
        for offer in offers:
            counts.append(min(offer.most, room))
            room -= counts[-1]
        return counts

    def promised_gain(self, batch: int) -> float:
        return 2.0 if batch else 1.0

    def may_catch_up(self, batch: int, gain: float, *, tokens: int, to_write: int) -> bool:
        return batch > 0 and gain > 1.0 and tokens > 0 and to_write > 0


class Fortune:
    """A `GuessSource` that knows the answers, and is wrong with some chance."""

    def __init__(self, chance: float, seed: int) -> None:
        self.held_blocks = 0
        self._chance = chance
        self._draw = random.Random(seed)  # noqa: S311  # a test
        self._offered: dict[Answer, tuple[int, ...]] = {}
        self._answers: dict[Answer, list[int]] = {}

    def offer(self, answer: Answer, most: int) -> tuple[GuessKind, int]:
        prompt = answer.order.prompt_token_ids
        whole = self._answers.setdefault(answer, fake_answer(prompt, answer.order.sampling))
        written = len(answer.sequence.token_ids) - len(prompt)
        coming = (whole[written:] + [0] * most)[:most]
        self._offered[answer] = tuple(
            token if self._draw.random() < self._chance else (token + 1) % VOCAB_SIZE for token in coming
        )
        return GuessKind.MATCH, most

    def take(self, shares: Sequence[StepShare], control: SpeculationControl) -> tuple[DraftSlice, ...]:
        assert control is not None
        for share in shares:
            if share.guessed:
                share.guesses = self._offered[share.answer][: share.guessed]
        return ()

    def settle(self, share: StepShare, token_ids: Sequence[int]) -> None:
        assert len(token_ids) <= share.guessed + 1

    def give_back(self, answer: Answer) -> None:
        pass

    def forget(self, answer: Answer) -> None:
        self._answers.pop(answer, None)


def drafting_bench(total_blocks: int = 60, draft_blocks: int = 60, chunk_tokens: int = 6) -> tuple[Bench, DraftGuesses]:
    """Return a bench whose draft model is the model itself: as long as its blocks are right, it is always right."""
    source = DraftGuesses(identity=FAKE_MODEL, layout=FAKE_LAYOUT, total_blocks=draft_blocks, chunk_tokens=chunk_tokens)
    speculation = Speculation(source, Eager(), most=5)
    return Bench(total_blocks, SMALL, speculation=speculation, draft=FakeEngine(draft_blocks)), source


def fortune_bench(chance: float, total_blocks: int = 60, most: int = 5, seed: int = 0) -> tuple[Bench, Speculation]:
    speculation = Speculation(Fortune(chance, seed), Eager(), most=most)
    return Bench(total_blocks, SMALL, speculation=speculation), speculation


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED, PENALISED], ids=["greedy", "sampled", "penalised"])
@pytest.mark.parametrize("chance", [0.0, 0.6, 1.0])
async def test_answers_are_what_they_are_without_guesses(sampling: object, chance: float) -> None:
    assert isinstance(sampling, type(GREEDY))
    bench, speculation = fortune_bench(chance)
    prompts = [make_prompt(length, seed) for seed, length in enumerate([1, 3, 4, 17, 8])]
    answers = [
        bench.scheduler.submit(make_order(f"r{i}", prompt, sampling=sampling, max_tokens=23))
        for i, prompt in enumerate(prompts)
    ]
    bench.run()
    for prompt, answer in zip(prompts, answers, strict=True):
        assert await collect(answer) == fake_answer(prompt, replace(sampling, max_tokens=23))
    assert bench.pool.counts().held == 0
    counts = speculation.counts
    assert counts.guessed > 0
    assert counts.written == counts.answer_steps + counts.accepted
    assert chance < 1.0 or counts.accepted == counts.guessed


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED, PENALISED], ids=["greedy", "sampled", "penalised"])
async def test_a_draft_model_keeps_its_own_blocks_right(sampling: object) -> None:
    assert isinstance(sampling, type(GREEDY))
    bench, source = drafting_bench()
    prompts = [make_prompt(length, seed) for seed, length in enumerate([1, 20, 4, 7])]
    answers = [
        bench.scheduler.submit(make_order(f"r{i}", prompt, sampling=sampling, max_tokens=30))
        for i, prompt in enumerate(prompts)
    ]
    bench.run()
    for prompt, answer in zip(prompts, answers, strict=True):
        assert await collect(answer) == fake_answer(prompt, replace(sampling, max_tokens=30))
    load = bench.scheduler.load()
    assert load.accepted_guesses == load.guessed_tokens > 60, "one model twice never disagrees, if its blocks are right"
    assert source.pool.counts().held == 0
    source.pool.audit()


async def test_a_draft_model_without_room_for_all_serves_some() -> None:
    bench, source = drafting_bench(draft_blocks=9)
    prompts = [make_prompt(10, seed) for seed in range(4)]
    answers = [bench.scheduler.submit(make_order(f"r{i}", p, max_tokens=20)) for i, p in enumerate(prompts)]
    bench.run()
    for prompt, answer in zip(prompts, answers, strict=True):
        assert await collect(answer) == fake_answer(prompt, replace(GREEDY, max_tokens=20))
    load = bench.scheduler.load()
    assert load.accepted_guesses == load.guessed_tokens > 0
    assert source.pool.counts().held == 0
    source.pool.audit()


async def test_a_preempted_answer_gives_its_draft_back_and_drafts_again() -> None:
    bench, source = drafting_bench(total_blocks=12)
    prompts = [make_prompt(9, seed) for seed in range(4)]
    answers = [bench.scheduler.submit(make_order(f"r{i}", p, max_tokens=30)) for i, p in enumerate(prompts)]
    bench.run()
    for prompt, answer in zip(prompts, answers, strict=True):
        assert await collect(answer) == fake_answer(prompt, replace(GREEDY, max_tokens=30))
    load = bench.scheduler.load()
    assert load.preemptions > 0
    assert load.accepted_guesses == load.guessed_tokens > 0
    assert (bench.pool.counts().held, source.pool.counts().held) == (0, 0)


async def test_several_tokens_come_in_one_message_and_end_at_the_limit() -> None:
    bench, _ = fortune_bench(1.0, most=4)
    answer = bench.scheduler.submit(make_order("a", make_prompt(6), max_tokens=8))
    bench.step()
    events = [await answer.stream.take(), await answer.stream.take()]
    while answer.stage is not Stage.ENDED:
        bench.step()
        events.append(await answer.stream.take())
    sizes = [len(event.token_ids) for event in events if isinstance(event, TokensWritten)]
    assert sizes == [1, 5, 2], "the first token ends the prompt; then 4 guesses and 1; then what is left"


async def test_nothing_is_told_after_a_stop_token_within_the_guesses() -> None:
    whole = fake_answer(make_prompt(6), replace(GREEDY, max_tokens=20))
    sampling = replace(GREEDY, stop_token_ids=frozenset({whole[7]}))
    expected = fake_answer(make_prompt(6), replace(sampling, max_tokens=20))
    for most in range(1, 9):
        bench, _ = fortune_bench(1.0, most=most)
        answer = bench.scheduler.submit(make_order("a", make_prompt(6), sampling=sampling, max_tokens=20))
        bench.run()
        assert await collect(answer) == expected
        assert bench.pool.counts().held == 0


async def test_guesses_take_blocks_that_nobody_else_needs_and_give_them_back() -> None:
    plain = Bench(9, SMALL)
    guessing, speculation = fortune_bench(0.3, total_blocks=9, most=8)
    for bench in (plain, guessing):
        for place in range(2):
            bench.scheduler.submit(make_order(f"r{place}", make_prompt(8, place), max_tokens=8))
        bench.step()
        while bench.step():
            running = bench.scheduler.load().running_requests
            assert bench.pool.counts().held <= 4 * running
    assert plain.scheduler.load().preemptions == guessing.scheduler.load().preemptions == 0
    assert speculation.counts.guessed > speculation.counts.accepted > 0


def test_guesses_shrink_to_the_token_budget() -> None:
    bench, _ = fortune_bench(1.0, most=64)
    for place in range(8):
        bench.scheduler.submit(make_order(f"r{place}", make_prompt(1, place), max_tokens=60))
    while (plan := bench.scheduler.next_step()) is not None:
        assert sum(len(piece.token_ids) for piece in plan.slices) <= SMALL.token_budget
        bench.scheduler.step_done(bench.engine.step(plan))


async def test_answers_that_repeat_themselves_are_looked_up() -> None:
    source = LookupGuesses()
    bench = Bench(60, SMALL, speculation=Speculation(source, Eager(), most=5))
    first = fake_answer(make_prompt(9), replace(GREEDY, max_tokens=20))
    answer = bench.scheduler.submit(make_order("a", [*make_prompt(9), *first, *make_prompt(9)], max_tokens=20))
    bench.run()
    assert await collect(answer) == fake_answer(answer.order.prompt_token_ids, replace(GREEDY, max_tokens=20))
    assert bench.scheduler.load().guessed_tokens > 0


async def test_an_aborted_answer_leaves_nothing_of_its_draft() -> None:
    bench, source = drafting_bench()
    answer = bench.scheduler.submit(make_order("a", make_prompt(20), max_tokens=30))
    for _ in range(6):
        bench.step()
    plan = bench.scheduler.next_step()
    assert plan is not None
    assert plan.drafts
    bench.scheduler.abort(answer)
    assert source.pool.counts().held > 0, "a step writes them"
    bench.scheduler.step_failed(RuntimeError("planted"), None)
    assert (bench.pool.counts().held, source.pool.counts().held) == (0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request, when it comes, and when it is aborted, in steps."""

    prompt: int
    max_tokens: int
    temperature: float
    imported: bool
    stops: int
    comes_at: int
    aborted_at: int | None


REQUESTS = st.builds(
    Request,
    prompt=st.integers(1, 20),
    max_tokens=st.integers(1, 25),
    temperature=st.sampled_from([0.0, 0.8]),
    imported=st.booleans(),
    stops=st.integers(0, 6),
    comes_at=st.integers(0, 12),
    aborted_at=st.none() | st.integers(0, 20),
)


@settings(max_examples=80, deadline=None)
@given(
    requests=st.lists(REQUESTS, min_size=1, max_size=7),
    spare=st.integers(0, 6),
    chance=st.sampled_from([0.0, 0.5, 0.9, 1.0]) | st.none(),
    draft_blocks=st.integers(1, 40),
    eager=st.booleans(),
)
def test_random_guesses_never_show(
    requests: list[Request], spare: int, chance: float | None, draft_blocks: int, eager: bool
) -> None:
    largest = max(-(-(request.prompt + request.max_tokens) // 4) for request in requests)
    draft_source = None
    if chance is None:
        draft_source = DraftGuesses(identity=FAKE_MODEL, layout=FAKE_LAYOUT, total_blocks=draft_blocks, chunk_tokens=6)
    source = draft_source or Fortune(chance or 0.0, spare)
    control = Eager() if eager else SpeculationControl()
    bench = Bench(
        largest + spare,
        SMALL,
        speculation=Speculation(source, control, most=6),
        draft=FakeEngine(draft_blocks) if draft_source else None,
    )
    asyncio.run(_run(bench, requests))
    if draft_source is not None:
        load = bench.scheduler.load()
        assert load.accepted_guesses <= load.guessed_tokens
        assert draft_source.pool.counts().held == 0
        draft_source.pool.audit()


async def _run(bench: Bench, requests: list[Request]) -> None:
    answers: dict[int, Answer] = {}
    for now in range(MOST_STEPS):
        for place, request in enumerate(requests):
            if request.comes_at == now:
                answers[place] = bench.scheduler.submit(_order(bench, place, request))
            if place in answers and request.aborted_at == now:
                bench.scheduler.abort(answers[place])
        bench.step()
        bench.now_s += 0.3
        bench.scheduler.sweep()
        await bench.settle()
        if len(answers) == len(requests) and bench.scheduler.idle:
            break
    assert bench.scheduler.idle, "no progress"
    for place, answer in answers.items():
        prompt = list(answer.order.prompt_token_ids)
        written = answer.sequence.token_ids[len(prompt) :]
        expected = fake_answer(prompt, answer.order.sampling)
        assert written == expected[: len(written)]
        assert written == expected or requests[place].aborted_at is not None
    assert bench.pool.counts().held == 0
    bench.pool.audit()


def _order(bench: Bench, place: int, request: Request) -> WorkOrder:
    stops = frozenset(range(request.stops))
    sampling = replace(GREEDY, temperature=0.0 if request.imported else request.temperature, stop_token_ids=stops)
    order = make_order(
        f"r{place}",
        make_prompt(request.prompt, place),
        max_tokens=request.max_tokens,
        sampling=sampling,
        origin=ORIGIN if request.imported else None,
    )
    bench.source.prompts[order.request_id] = order.prompt_token_ids
    return order
