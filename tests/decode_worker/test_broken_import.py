"""What a hand-over that died half-way is still worth to the decode worker."""

import pytest

from cluster_core.errors import ExportGone, LegFailed, TransferFailed
from decode_worker.answer import Answer, Stage
from decode_worker.answer_stream import HandedOver, Kept, Started
from decode_worker.settings import DecodeSettings
from tests.decode_worker.bench import ORIGIN, Bench
from tests.fake_engine import GREEDY, fake_answer
from tests.worker_orders import collect, make_order, make_prompt

PROMPT = make_prompt(18)
"""Four full blocks and one that is not."""


async def broken(landed: set[int], name: str = "a", bench: Bench | None = None) -> tuple[Bench, Answer]:
    """Return a bench on which an import has died when the blocks at these positions had arrived."""
    bench = bench or Bench()
    bench.source.prompts[name] = tuple(PROMPT)
    bench.source.landed = frozenset(landed)
    bench.source.error = TransferFailed("block 4 did not arrive")
    answer = bench.scheduler.submit(make_order(name, PROMPT, origin=ORIGIN))
    bench.step()
    await bench.settle()
    bench.source.error, bench.source.landed = None, frozenset()
    return bench, answer


async def events_of(answer: Answer) -> list[object]:
    events: list[object] = []
    try:
        while True:
            events.append(await answer.stream.take())
    except LegFailed as error:
        return [*events, str(error)]


@pytest.mark.parametrize(
    ("landed", "kept"), [({0, 1, 2}, 3), ({0, 1, 3}, 2), ({1, 2, 3}, 0), ({0, 1, 2, 3, 4}, 4), (set(), 0)]
)
async def test_the_leading_run_that_had_arrived_is_kept_and_told(landed: set[int], kept: int) -> None:
    bench, answer = await broken(landed)
    told = [Kept(blocks=kept)] if kept else []
    started, *rest = await events_of(answer)
    assert isinstance(started, Started)
    assert rest == [*told, "block 4 did not arrive"]
    counts = bench.pool.counts()
    assert (counts.held, counts.cached) == (0, kept)
    bench.pool.audit()


async def test_the_next_import_brings_only_the_rest() -> None:
    bench, _ = await broken({0, 1, 2})
    bench.source.prompts["b"] = tuple(PROMPT)
    again = bench.scheduler.submit(make_order("b", PROMPT, origin=ORIGIN))
    bench.step()
    await bench.settle()
    bench.run()
    assert bench.source.jobs[-1].kept == {0, 1, 2}
    assert isinstance(await again.stream.take(), Started)
    handed_over = await again.stream.take()
    assert isinstance(handed_over, HandedOver)
    assert handed_over.report.moved_blocks == 2
    assert await collect(again) == fake_answer(PROMPT, GREEDY)[1:]


async def test_a_prompt_that_is_read_here_begins_after_what_was_kept() -> None:
    bench, _ = await broken({0, 1, 2})
    again = bench.scheduler.submit(make_order("b", PROMPT))
    bench.run()
    started = await again.stream.take()
    assert isinstance(started, Started)
    assert started.cached_tokens == 12
    assert await collect(again) == fake_answer(PROMPT, GREEDY)


async def test_what_was_cached_before_counts_among_what_was_kept() -> None:
    bench = Bench()
    warm = bench.scheduler.submit(make_order("warm", PROMPT[:9]))
    bench.run()
    await collect(warm)
    _, answer = await broken({2}, bench=bench)
    assert Kept(blocks=3) in await events_of(answer)


async def test_an_import_that_is_cancelled_leaves_its_blocks_in_the_cache() -> None:
    bench = Bench()
    bench.source.go.clear()
    bench.source.prompts["a"] = tuple(PROMPT)
    bench.source.landed = frozenset({0, 1})
    answer = bench.scheduler.submit(make_order("a", PROMPT, origin=ORIGIN))
    bench.step()
    await bench.settle()
    bench.scheduler.abort(answer)
    await bench.settle()
    assert answer.stage is Stage.ENDED
    assert (bench.pool.counts().held, bench.pool.counts().cached) == (0, 2)


async def test_an_import_that_is_called_back_is_read_on_from_where_it_was() -> None:
    bench = Bench()
    bench.source.go.clear()
    bench.source.prompts["a"] = tuple(PROMPT)
    bench.source.landed = frozenset({0, 1, 2})
    answer = bench.scheduler.submit(make_order("a", PROMPT, origin=ORIGIN))
    bench.step()
    await bench.settle()
    bench.scheduler._call_back_youngest([answer])  # as an older answer that grows would
    await bench.settle()
    bench.run()
    assert await collect(answer) == fake_answer(PROMPT, GREEDY)
    computed = sum(len(part.token_ids) for plan in bench.engine.plans for part in plan.slices)
    assert computed == len(PROMPT) - 12 + len(fake_answer(PROMPT, GREEDY)) - 1


@pytest.mark.parametrize("waited_s", [0.5, 12.0])
async def test_an_export_that_ended_while_the_answer_waited_for_room_costs_it_no_place(waited_s: float) -> None:
    bench = Bench(total_blocks=8)
    older = bench.scheduler.submit(make_order("older", make_prompt(20, 1), max_tokens=10))
    bench.step()
    bench.source.prompts["a"] = tuple(PROMPT)
    bench.source.error = ExportGone("nobody came for its blocks in time")
    answer = bench.scheduler.submit(make_order("a", PROMPT, origin=ORIGIN))
    bench.step()
    assert answer.stage is Stage.WAITING
    bench.now_s += waited_s
    while older.stage is not Stage.ENDED:
        bench.step()
    bench.step()
    await bench.settle()
    bench.run()
    if waited_s < DecodeSettings().passing_s:
        with pytest.raises(ExportGone):
            await collect(answer)
    else:
        assert await collect(answer) == fake_answer(PROMPT, GREEDY), "the first token too, so that it can be compared"
    assert bench.pool.counts().held == 0
