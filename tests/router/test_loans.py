"""Fetch or compute: by predicted time, from whom, and what the workers are told of it."""

from dataclasses import replace
from typing import Any

import pytest

from cluster_core.handoff import FetchReport
from cluster_core.hash_chain import chain_hashes
from cluster_core.identity import WorkerId
from cluster_core.placement import Local, Split
from cluster_core.workers import WorkerLoad
from cluster_rpc.v1 import cluster_pb2
from cluster_rpc.v1 import worker_pb2 as pb
from router.cost_model import Assigned, RequestSize, WorkerView
from router.loans import MOST_LENDERS, best_lenders
from router.placer import Avoided
from tests.router.fake_workers import LAYOUT, FakeWorker, answer
from tests.router.router_harness import SETTINGS as HARNESS
from tests.router.router_harness import RouterHarness, running_router
from tests.router.test_balancer import SETTINGS, chosen, size, terms, view

SPLIT = replace(SETTINGS, placement="split")
BLOCK_S = LAYOUT.block_bytes / 1e6
"""What a block takes on the links of these views; computing it takes 16 ms."""


def lent(request: RequestSize, *lenders: tuple[WorkerView, int]) -> RequestSize:
    return replace(request, lenders=lenders)


def test_a_prefix_is_fetched_where_that_is_faster_than_computing_it() -> None:
    choice = chosen(lent(size(), (view("d0"), 20)), view("p0"), view("d0"), settings=SPLIT)
    found = terms(choice)
    assert choice.chosen.loan is not None
    assert (choice.chosen.loan.lender, choice.chosen.loan.blocks) == ("d0", 19), "the last token is always computed"
    assert found["fetch"] == pytest.approx(0.004 + 19 * BLOCK_S)
    assert found["prefill"] == pytest.approx(16 * 0.001)
    assert choice.chosen.prefill_tokens == 16
    assert choice.chosen.prefill_cached_tokens == 0
    assert choice.chosen.loan.spared_s == pytest.approx(19 * 0.016)


def test_over_a_slow_link_the_prefix_is_computed() -> None:
    slow = view("p0", transfer_bytes_per_s=1e5)
    choice = chosen(lent(size(), (view("d0"), 20)), slow, view("d0"), settings=SPLIT)
    assert choice.chosen.loan is None
    assert "fetch" not in terms(choice)
    assert choice.chosen.prefill_tokens == 320


def test_only_what_the_reader_lacks_is_moved() -> None:
    request = lent(size(p0=15), (view("d0"), 19))
    assert terms(chosen(request, view("p0"), view("d0"), settings=SPLIT))["fetch"] == pytest.approx(0.004 + 4 * BLOCK_S)
    assert chosen(lent(size(p0=19), (view("d0"), 20)), view("p0"), view("d0"), settings=SPLIT).chosen.loan is None


def test_the_best_of_several_holders_is_asked() -> None:
    links = {WorkerId("d0"): (0.1, 1e6), WorkerId("d1"): (0.001, 1e7)}
    reader = replace(view("p0"), links=links)
    writers = view("d0"), view("d1")
    near = chosen(lent(size(), (writers[0], 19), (writers[1], 17)), reader, *writers, settings=SPLIT)
    assert near.chosen.loan is not None
    assert (near.chosen.loan.lender, near.chosen.loan.blocks) == ("d1", 17)
    longest = chosen(lent(size(), (writers[0], 19), (writers[1], 2)), reader, *writers, settings=SPLIT)
    assert longest.chosen.loan is not None
    assert longest.chosen.loan.lender == "d0"


def test_nobody_borrows_from_itself_or_over_another_transport() -> None:
    other = view("d0", transport="loopback")
    assert chosen(lent(size(), (view("p0"), 19)), view("p0"), view("d0"), settings=SPLIT).chosen.loan is None
    assert chosen(lent(size(), (other, 19)), view("p0"), view("d1"), settings=SPLIT).chosen.loan is None


def test_a_fetch_goes_on_while_others_are_read() -> None:
    busy = view("p0", Assigned(prefill_tokens=50))
    found = terms(chosen(lent(size(), (view("d0"), 19)), busy, view("d0"), settings=SPLIT))
    assert found["prefill queue"] == pytest.approx(0.05)
    assert found["fetch"] == pytest.approx(0.004 + 19 * BLOCK_S - 0.05)
    hidden = view("p0", queued_prefill_tokens=1000)
    assert terms(chosen(lent(size(), (view("d0"), 19)), hidden, view("d0"), settings=SPLIT))["fetch"] == 0


def test_a_decode_worker_that_reads_the_prompt_fetches_too() -> None:
    choice = chosen(lent(size(), (view("p0"), 19)), view("d0"))
    assert choice.chosen.placement == Local(worker=WorkerId("d0"))
    assert choice.chosen.loan is not None
    assert terms(choice)["harm"] == pytest.approx(0.016), "only what it computes itself delays its streams"


def test_a_fetch_brings_the_prompt_to_an_idle_worker() -> None:
    holder = view("p0", queued_prefill_tokens=400)
    request = lent(size(p0=19), (holder, 19))
    choice = chosen(request, holder, view("p1"), view("d0"), settings=SPLIT)
    assert choice.chosen.placement == Split(prefill=WorkerId("p1"), decode=WorkerId("d0"))
    assert choice.chosen.loan is not None
    assert chosen(replace(request, lenders=()), holder, view("p1"), view("d0"), settings=SPLIT).chosen.loan is None


def test_a_window_model_fetches_no_more_than_is_read_again() -> None:
    window = replace(LAYOUT, window_tokens=65)
    reader, writer = (replace(one, record=replace(one.record, layout=window)) for one in (view("p0"), view("d0")))
    found = terms(chosen(lent(size(), (writer, 19)), reader, writer, settings=SPLIT))
    assert found["fetch"] == pytest.approx(0.004 + 4 * BLOCK_S)


def test_the_longest_holders_with_the_fewest_streams_are_asked_and_no_more_of_them() -> None:
    views = [view(f"d{number}", running_requests=number) for number in range(10)]
    held = {one.record.worker_id: 5 for one in views} | {WorkerId("d9"): 7, WorkerId("d0"): 0}
    failed = {views[1].record.incarnation}
    best = best_lenders(views, held, failed)
    assert [(one.record.worker_id, blocks) for one, blocks in best] == [("d9", 7), ("d2", 5), ("d3", 5), ("d4", 5)]
    assert len(best) == MOST_LENDERS


PROMPT = list(range(10, 74))
KNOWN = {"prefill_s_per_token": 1.0, "transfer_bytes_per_s": 1e9, "transfer_fixed_s": 0.001}
"""Computing takes ages here."""


class Turn:
    """A router with a prefill and two decode workers, of which one has told that it holds most of the prompt."""

    def __init__(self, router: RouterHarness, workers: list[FakeWorker]) -> None:
        self.router = router
        self.prefill, self.lender, _ = workers

    @classmethod
    async def make(cls, router: RouterHarness) -> "Turn":
        load = WorkerLoad(**KNOWN, total_blocks=256)  # type: ignore[arg-type]  # all of them are floats
        return cls(router, [await router.add(name, load=load) for name in ("prefill-0", "decode-0", "decode-1")])

    def hashes(self) -> list[Any]:
        return chain_hashes(self.router.core.flow.placer.root_hash(""), PROMPT, LAYOUT.block_size_tokens)

    def store(self) -> None:
        record = self.lender.record
        assert record is not None
        self.router.core.index.stored(record.worker_id, record.incarnation, self.hashes()[:3])


async def test_the_reader_is_told_from_whom_and_the_operator_what_came_of_it() -> None:
    async with running_router() as router:
        turn = await Turn.make(router)
        turn.store()
        turn.prefill.fetch_report = pb.FetchReport(lender="decode-0", asked_blocks=3, moved_blocks=2, failure="it died")
        got = await router.generate(PROMPT, 4, request_id="r")
        assert got.token_ids == answer(PROMPT, 4)
        (order,) = turn.prefill.orders
        assert (order.fetch.worker_id, order.fetch.blocks) == ("decode-0", 3)
        assert (order.fetch.incarnation, order.fetch.address) == (turn.lender.incarnation, turn.lender.record.address)  # type: ignore[union-attr]
        assert order.fetch.patience_s == pytest.approx(48.0), "as long as computing three blocks"
        explained = await router.cluster.GetPlacement(cluster_pb2.GetPlacementRequest(request_id="r"))
    (attempt,) = explained.attempts
    assert (attempt.chosen.fetch_worker, attempt.chosen.fetch_blocks) == ("decode-0", 3)
    assert "fetch" in {term.name for term in attempt.chosen.terms}
    assert (attempt.fetch.moved_blocks, attempt.fetch.failure) == (2, "it died")


async def test_a_worker_that_failed_to_lend_is_left_alone_for_a_while() -> None:
    async with running_router() as router:
        turn = await Turn.make(router)
        turn.store()
        placer, avoided = router.core.flow.placer, Avoided()
        bad = FetchReport(
            lender=WorkerId("decode-0"),
            asked_blocks=3,
            moved_blocks=0,
            moved_bytes=0,
            transfer_s=0.0,
            elapsed_s=0.5,
            failure="it was silent",
        )
        for report, lent_blocks in ((bad, 0), (replace(bad, failure=""), 3)):
            placer.note_fetch(report)
            placed = await placer.place(placer.root_hash(""), PROMPT, 4, avoided)
            router.core.index.cleared(WorkerId("prefill-0"), turn.prefill.incarnation)
            assert (placed.fetch.blocks if placed.fetch is not None else 0) == lent_blocks


async def test_a_decode_worker_is_told_only_where_it_reads_the_prompt() -> None:
    async with running_router() as router:
        turn = await Turn.make(router)
        turn.store()
        await router.generate(PROMPT, 4)
        assert [order.HasField("fetch") for worker in router.workers[1:] for order in worker.orders] == [False]
    async with running_router(replace(HARNESS, placement="local")) as router:
        turn = await Turn.make(router)
        turn.store()
        turn.lender.report(replace(turn.lender.load, draining=True))
        name = WorkerId("decode-0")
        await router.until(lambda: router.core.membership.find(name).state == "draining")  # type: ignore[union-attr]
        await router.generate(PROMPT, 4)
        (order,) = router.workers[2].orders
        assert order.fetch.worker_id == "decode-0", "who drains may still lend"


async def test_what_a_worker_is_only_expected_to_hold_is_not_fetched() -> None:
    async with running_router() as router:
        turn = await Turn.make(router)
        router.core.index.predict(WorkerId("decode-0"), turn.hashes()[:3], 60.0)
        await router.generate(PROMPT, 4)
        assert [order.HasField("fetch") for order in turn.prefill.orders] == [False]


async def test_nothing_is_fetched_from_a_lost_worker() -> None:
    async with running_router() as router:
        turn = await Turn.make(router)
        turn.store()
        await turn.lender.crash()
        await router.until(lambda: not router.core.membership.find(WorkerId("decode-0")).alive)  # type: ignore[union-attr]
        await router.generate(PROMPT, 4)
        assert [order.HasField("fetch") for order in turn.prefill.orders] == [False]
