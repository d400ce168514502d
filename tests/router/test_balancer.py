"""The formula, case by case, and what it does to a whole trace."""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from zlib import crc32

import pytest

from cluster_core.identity import Incarnation, Role, WorkerId
from cluster_core.placement import Local, Split
from cluster_core.workers import WorkerLoad, WorkerRecord
from router.balancer import KEPT_CANDIDATES, Choice, can_ever_fit, choose
from router.cost_model import (
    Assigned,
    Coefficients,
    RequestSize,
    WorkerView,
    handover_speed,
    link_speed,
    missing_bytes,
)
from router.settings import RouterSettings
from tests.router.fake_workers import LAYOUT, MODEL

SETTINGS = RouterSettings(harm_weight=1.0, expected_streams=1.0, stream_share=0.01, prior_answer_tokens=100.0)
SPEEDS = {
    "prefill_s_per_token": 0.001,
    "decode_step_s": 0.02,
    "transfer_bytes_per_s": 1e6,
    "transfer_fixed_s": 0.004,
    "total_blocks": 1000,
}

SPEED = Coefficients(prefill_s_per_token=0.001, decode_step_s=0.02, transfer_bytes_per_s=1e6, transfer_fixed_s=0.004)


def view(
    name: str, assigned: Assigned | None = None, transport: str = "ucx", blocks: int = 1000, **load: Any
) -> WorkerView:
    role = Role.PREFILL if name.startswith("p") else Role.DECODE
    record = WorkerRecord(
        worker_id=WorkerId(name),
        incarnation=Incarnation(crc32(name.encode())),
        role=role,
        address="127.0.0.1:1",
        transport=transport,
        model=MODEL,
        layout=LAYOUT,
        total_blocks=blocks,
        pid=1,
    )
    return WorkerView(record=record, load=WorkerLoad(**(SPEEDS | load)), assigned=assigned or Assigned())


def size(tokens: int = 320, max_tokens: int = 64, **cached: int) -> RequestSize:
    blocks = {WorkerId(name): count for name, count in cached.items()}
    return RequestSize(prompt_tokens=tokens, max_tokens=max_tokens, cached_blocks=blocks)


def pick_first(_: int) -> int:
    return 0


def chosen(request: RequestSize, *views: WorkerView, settings: RouterSettings = SETTINGS, **options: Any) -> Choice:
    found = choose(request, views, options.get("excluded", ()), settings, options.get("pick", pick_first))
    assert found is not None
    return found


def terms(choice: Choice) -> dict[str, float]:
    assert choice.chosen.total_s == pytest.approx(sum(seconds for _, seconds in choice.chosen.terms))
    return dict(choice.chosen.terms)


@pytest.mark.parametrize(("cached", "moved_blocks"), [(0, 4), (4, 4), (15, 4), (18, 2)])
def test_a_window_model_moves_the_blocks_that_are_read_again(cached: int, moved_blocks: int) -> None:
    window = view("d0")
    window = replace(window, record=replace(window.record, layout=replace(LAYOUT, window_tokens=65)))
    assert missing_bytes(size(d0=cached), window) == moved_blocks * LAYOUT.block_bytes


def test_a_link_is_as_fast_as_its_importer_knows_and_else_like_the_workers_others() -> None:
    importer = replace(view("d0"), links={WorkerId("p0"): (0.001, 5e6)})
    assert link_speed(importer, WorkerId("p0"), SPEED) == (0.001, 5e6)
    assert link_speed(importer, WorkerId("p1"), SPEED) == (0.004, 1e6)


def test_a_handover_of_rounded_blocks_is_foreseen_by_what_such_took_and_a_fetch_by_the_link() -> None:
    p0, p1 = WorkerId("p0"), WorkerId("p1")
    importer = replace(view("d0"), links={p0: (0.004, 1e4), p1: (0.004, 2e4)}, rounding_links={p0: (0.004, 3e4)})
    assert (handover_speed(importer, p0, SPEED), handover_speed(importer, p1, SPEED)) == ((0.004, 3e4), (0.004, 2e4))
    assert link_speed(importer, p0, SPEED) == (0.004, 1e4)
    choice = chosen(size(), view("p0"), view("p1"), importer, settings=replace(SETTINGS, placement="split"))
    assert choice.chosen.placement == Split(prefill=p0, decode=WorkerId("d0"))
    exposed_s = 0.004 + 320 * LAYOUT.token_bytes / 3e4 - terms(choice)["prefill"]
    assert terms(choice)["transfer"] == pytest.approx(exposed_s)


def test_the_pair_with_the_faster_link_wins() -> None:
    links = {WorkerId("p0"): (0.004, 1e4), WorkerId("p1"): (0.004, 1e9)}
    decode = replace(view("d0", running_requests=90), links=links)
    choice = chosen(size(), view("p0"), view("p1"), decode)
    assert choice.chosen.placement == Split(prefill=WorkerId("p1"), decode=WorkerId("d0"))


def test_every_term_of_a_pair() -> None:
    prefill = view("p0", Assigned(prefill_tokens=50), queued_prefill_tokens=150)
    decode = view("d0", running_requests=3, held_blocks=100)
    choice = chosen(size(p0=10, d0=4), prefill, decode)
    assert choice.chosen.placement == Split(prefill=WorkerId("p0"), decode=WorkerId("d0"))
    assert choice.chosen.prefill_cached_tokens == 160
    assert choice.chosen.decode_cached_tokens == 64
    missing_s = (320 - 64) * LAYOUT.token_bytes / 1e6
    assert terms(choice) == {
        "prefill queue": pytest.approx(0.2),
        "prefill": pytest.approx(0.16),
        "transfer": pytest.approx(0.004 + max(0.0, missing_s - 0.16)),
        "decode queue": 0,
        "first step": pytest.approx(0.02),
        "harm": pytest.approx(3 * 100 * 0.02 * 0.01),
    }


def test_every_term_of_a_local_placement() -> None:
    decode = view("d0", running_requests=2, queued_prefill_tokens=10)
    choice = chosen(size(d0=10), decode)
    assert choice.chosen.placement == Local(worker=WorkerId("d0"))
    assert terms(choice) == {
        "decode queue": pytest.approx(0.01),
        "prefill": pytest.approx(0.16),
        "first step": pytest.approx(0.02),
        "harm": pytest.approx(2 * 100 * 0.02 * 0.01 + 0.16 * 3),
    }


def test_a_transfer_counts_only_as_far_as_the_prefill_does_not_hide_it() -> None:
    slow = terms(chosen(size(p0=19), view("p0"), view("d0", running_requests=90, transfer_bytes_per_s=1e5)))
    hidden = terms(chosen(size(), view("p0"), view("d0", transfer_bytes_per_s=1e9)))
    assert slow["transfer"] == pytest.approx(0.004 + 320 * LAYOUT.token_bytes / 1e5 - 0.016)
    assert hidden["transfer"] == pytest.approx(0.004)


def test_a_long_prompt_is_handed_over_and_one_that_lies_there_already_is_not() -> None:
    views = (view("p0"), view("d0"))
    assert isinstance(chosen(size(320), *views).chosen.placement, Split)
    assert isinstance(chosen(size(320, d0=20), *views).chosen.placement, Local)


def test_running_streams_keep_a_prefill_away_from_a_decode_worker() -> None:
    request = size(320, d0=19, p0=19)
    idle = view("d0", transfer_fixed_s=0.05)
    busy = view("d0", transfer_fixed_s=0.05, running_requests=20)
    assert isinstance(chosen(request, view("p0"), idle).chosen.placement, Local)
    assert isinstance(chosen(request, view("p0"), busy).chosen.placement, Split)


def test_the_pair_is_chosen_jointly_by_where_the_blocks_lie_and_who_is_busy() -> None:
    prefills = view("p0"), view("p1", queued_prefill_tokens=100)
    decodes = view("d0", running_requests=8), view("d1")
    near = chosen(size(1000, p1=50), *prefills, *decodes).chosen.placement
    assert near == Split(prefill=WorkerId("p1"), decode=WorkerId("d1"))
    far = chosen(size(1000, p1=3), *prefills, *decodes).chosen.placement
    assert far == Split(prefill=WorkerId("p0"), decode=WorkerId("d1"))


def test_a_decode_worker_without_room_is_waited_for_only_if_nobody_else_has_some() -> None:
    full = view("d0", held_blocks=990, running_requests=10)
    roomy = view("d1", running_requests=10)
    assert chosen(size(), full, roomy).chosen.placement == Local(worker=WorkerId("d1"))
    assert terms(chosen(size(), full))["decode queue"] == pytest.approx(14 / 990 * 100 * 0.02)
    waiting = view("d0", waiting_requests=5, running_requests=10)
    assert terms(chosen(size(), waiting))["decode queue"] == pytest.approx(0.5 * 100 * 0.02)


def test_blocks_given_since_the_last_report_are_not_free() -> None:
    given = view("d0", Assigned(blocks=999, streams=4))
    assert given.free_blocks == 1
    assert given.streams == 4
    assert chosen(size(), given, view("d1")).chosen.placement == Local(worker=WorkerId("d1"))


def test_who_has_not_measured_is_taken_for_one_of_the_others() -> None:
    new = view("d1", decode_step_s=0.0, prefill_s_per_token=0.0)
    assert terms(chosen(size(), new, view("d0", decode_step_s=0.05, running_requests=50)))["first step"] == 0.05
    nothing: dict[str, Any] = dict.fromkeys(SPEEDS, 0)
    alone = view("d0", **nothing)
    assert terms(chosen(size(), alone))["first step"] == SETTINGS.prior_decode_step_s
    assert terms(chosen(size(), alone))["prefill"] == pytest.approx(320 * SETTINGS.prior_prefill_s_per_token)


def test_workers_of_different_transports_are_no_pair() -> None:
    choice = chosen(size(), view("p0", transport="loopback"), view("d0"))
    assert isinstance(choice.chosen.placement, Local)
    assert len(choice.candidates) == 1


def test_who_failed_is_taken_only_when_nobody_else_is_there() -> None:
    one, other = view("d0"), view("d1", running_requests=50)
    excluded = {one.record.incarnation}
    assert chosen(size(), one, other, excluded=excluded).chosen.placement == Local(worker=WorkerId("d1"))
    assert chosen(size(), one, excluded=excluded).chosen.placement == Local(worker=WorkerId("d0"))


def test_a_prefill_worker_that_failed_is_not_taken_while_a_decode_worker_can_read_the_prompt() -> None:
    reader, writer = view("p0"), view("d0", running_requests=1)
    failed = {reader.record.incarnation, writer.record.incarnation}
    request, split_only = size(prompt_tokens=2000), replace(SETTINGS, placement="split")
    for excluded in ((), {writer.record.incarnation}):
        choice = choose(request, (reader, writer), excluded, split_only, pick_first)
        assert choice is not None
        assert isinstance(choice.chosen.placement, Split)
    choice = choose(request, (reader, writer), failed, split_only, pick_first)
    assert choice is not None
    assert choice.chosen.placement == Local(worker=WorkerId("d0"))


def test_without_a_decode_worker_there_is_no_choice() -> None:
    assert choose(size(), (view("p0"),), (), SETTINGS, pick_first) is None
    assert choose(size(), (), (), SETTINGS, pick_first) is None


def test_a_pool_that_is_too_small_for_the_request_is_none() -> None:
    small, large = view("d0", blocks=20), view("d1", blocks=24, running_requests=90)
    assert chosen(size(), small, large).chosen.placement == Local(worker=WorkerId("d1"))
    assert choose(size(), (small,), (), SETTINGS, pick_first) is None
    assert not can_ever_fit(size(), (small, view("p0")))
    assert can_ever_fit(size(), (view("p0"),))
    assert can_ever_fit(size(320, 64), (large,))
    assert not can_ever_fit(size(321, 64), (large,))


@pytest.mark.parametrize(("mode", "kind"), [("split", Split), ("local", Local)])
def test_a_placement_can_be_prescribed(mode: str, kind: type) -> None:
    settings = replace(SETTINGS, placement=mode)
    choice = chosen(size(d0=20), view("p0"), view("d0"), settings=settings)
    assert isinstance(choice.chosen.placement, kind)
    assert isinstance(chosen(size(), view("d0"), settings=settings).chosen.placement, Local)


def test_the_explanation_is_bounded_and_sorted() -> None:
    views = [view(f"p{n}") for n in range(6)] + [view(f"d{n}", running_requests=n) for n in range(6)]
    choice = chosen(size(), *views)
    totals = [candidate.total_s for candidate in choice.candidates]
    assert len(totals) == KEPT_CANDIDATES
    assert totals == sorted(totals)
    assert choice.chosen == choice.candidates[0]


def test_ties_are_broken_by_the_seed_alone() -> None:
    views = [view(f"d{n}") for n in range(4)]

    def picks(seed: int) -> list[object]:
        pick = random.Random(seed).randrange  # noqa: S311  # breaks ties
        return [chosen(size(), *views, pick=pick).chosen.placement for _ in range(20)]

    assert picks(1) == picks(1)
    assert picks(1) != picks(2)
    assert len(set(picks(1))) == 4


def trace_shares(policy: Callable[[RequestSize, list[WorkerView]], str], prefills: int) -> Counter[str]:
    """Send a burst in which every request shares its first block alone; return requests by prefill worker."""
    queued: Counter[str] = Counter()
    shares: Counter[str] = Counter()
    holders: set[str] = set()
    for _ in range(60):
        views = [view(f"p{n}", queued_prefill_tokens=queued[f"p{n}"]) for n in range(prefills)]
        request = RequestSize(prompt_tokens=512, max_tokens=64, cached_blocks={WorkerId(name): 1 for name in holders})
        name = policy(request, views)
        holders.add(name)
        queued[name] += 512
        shares[name] += 1
    return shares


def test_a_shared_first_block_does_not_pull_the_whole_trace_to_one_worker() -> None:
    pick = random.Random(0).randrange  # noqa: S311  # breaks ties

    def by_seconds(request: RequestSize, views: list[WorkerView]) -> str:
        placement = chosen(request, *views, view("d0"), settings=replace(SETTINGS, placement="split"), pick=pick)
        assert isinstance(placement.chosen.placement, Split)
        return placement.chosen.placement.prefill

    def by_longest_prefix(request: RequestSize, views: list[WorkerView]) -> str:
        return max(views, key=lambda each: request.cached_blocks.get(each.record.worker_id, 0)).record.worker_id

    assert trace_shares(by_longest_prefix, 4) == {"p0": 60}
    assert max(trace_shares(by_seconds, 4).values()) <= 16


def test_of_equals_the_one_is_taken_that_has_most_of_the_prompt() -> None:
    split = replace(SETTINGS, placement="split")
    for cached in ({"d0": 3}, {"d1": 3}):
        found = chosen(size(**cached), view("p0"), view("d0"), view("d1"), settings=split)
        assert found.chosen.placement == Split(prefill=WorkerId("p0"), decode=WorkerId(*cached))
        totals = [candidate.total_s for candidate in found.candidates]
        assert totals == [pytest.approx(totals[0])] * 2, "the transfer hides behind the prefill"


@pytest.mark.parametrize(("left_s", "local"), [(60.0, False), (1.0, True), (0.001, False)])
def test_what_comes_too_late_is_passed_over_unless_everything_does(left_s: float, local: bool) -> None:
    views = [view("p0", queued_prefill_tokens=2_000), view("d0", running_requests=40)]
    found = choose(size(), views, (), SETTINGS, pick_first, left_s)
    assert found is not None
    assert isinstance(found.chosen.placement, Local) == local
