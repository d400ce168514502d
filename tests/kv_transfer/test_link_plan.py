"""From a link's measurements to how it is used, and what is told of it."""

from dataclasses import replace
from typing import Any

import pytest

from cluster_core.handoff import EXACT, HandoffReport
from cluster_core.identity import Incarnation, WorkerId
from cluster_core.links import LinkReport, LinkSite
from kv_transfer.link_book import MOST_LINKS, LinkBook
from kv_transfer.link_plan import (
    FEWEST_IN_FLIGHT,
    MOST_BYTES_IN_FLIGHT,
    UNMEASURED_IN_FLIGHT,
    block_s,
    blocks_in_flight,
)
from kv_transfer.link_site import SURE_AFTER, expected_lane, judged, lane_of, seen_lane
from kv_transfer.settings import TransferSettings

PEER, LIFE = WorkerId("prefill-0"), Incarnation(7)
BLOCK_BYTES = 196_608


def measured(**changes: Any) -> LinkReport:
    """Return a link of 5 GB/s that costs 4 us a message, between two processes of one machine."""
    small = 4096 / (4e-6 + 4096 / 5e9)
    values: dict[str, Any] = {
        "lane": "cma",
        "expected_lane": "shared memory",
        "same_host": True,
        "call_s": 0.0008,
        "round_trip_s": 0.0002,
        "small_in_bytes_per_s": small,
        "large_in_bytes_per_s": 5e9,
        "small_out_bytes_per_s": small,
        "large_out_bytes_per_s": 5e9,
        "copy_bytes_per_s": 12e9,
        "measured": 1,
    }
    return LinkReport(peer=PEER, incarnation=LIFE, transport="ucx", **(values | changes))


def moved(
    megabytes: float, seconds: float, exposed_s: float = 0.002, wire_format: str = EXACT, unsure_s: float = 0.0
) -> HandoffReport:
    """Return what an import of so many megabytes tells; of rounded blocks a quarter has travelled."""
    travelled = megabytes if wire_format == EXACT else megabytes / 4
    return HandoffReport(
        moved_blocks=1,
        kept_blocks=0,
        moved_bytes=round(travelled * 1e6),
        messages=1,
        transfer_s=seconds,
        exposed_s=exposed_s,
        transport="ucx",
        exact_bytes=round(megabytes * 1e6),
        wire_format=wire_format,
        unsure_s=unsure_s,
    )


def test_a_block_costs_a_message_and_its_bytes() -> None:
    assert block_s(measured(), 1_000_000) == pytest.approx(4e-6 + 1e6 / 5e9)
    assert block_s(measured(large_in_bytes_per_s=0.0), 1_000_000) == 0.0


@pytest.mark.parametrize(
    ("call_s", "block_bytes", "in_flight"),
    [
        (0.0008, BLOCK_BYTES, 47),
        (0.0008, 4096, 416),
        (0.02, BLOCK_BYTES, 933),
        (0.00001, BLOCK_BYTES, FEWEST_IN_FLIGHT),
        (0.2, 4 << 20, MOST_BYTES_IN_FLIGHT // (4 << 20)),
    ],
)
def test_enough_blocks_are_under_way_to_fill_two_round_trips(call_s: float, block_bytes: int, in_flight: int) -> None:
    assert blocks_in_flight(measured(call_s=call_s), block_bytes) == in_flight


def test_a_link_that_was_not_measured_is_used_as_ever() -> None:
    assert blocks_in_flight(None, BLOCK_BYTES) == UNMEASURED_IN_FLIGHT
    unknown = LinkReport(peer=PEER, incarnation=LIFE, transport="ucx")
    assert blocks_in_flight(unknown, BLOCK_BYTES) == UNMEASURED_IN_FLIGHT


def test_the_operators_number_wins() -> None:
    book = LinkBook(BLOCK_BYTES, TransferSettings(blocks_in_flight=5))
    book.enter(measured())
    assert book.blocks_in_flight(PEER) == 5
    assert book.blocks_in_flight(WorkerId("prefill-9")) == 5
    assert book.reports()[0].blocks_in_flight == 5


def test_imports_take_the_place_of_what_was_foreseen() -> None:
    book = LinkBook(BLOCK_BYTES, TransferSettings())
    foreseen = book.enter(measured())
    assert foreseen.fixed_s == pytest.approx(0.001)
    assert foreseen.bytes_per_s == pytest.approx(BLOCK_BYTES / block_s(measured(), BLOCK_BYTES))
    book.learn(PEER, LIFE, moved(10, 0.005))
    (link,) = book.reports()
    assert (link.fixed_s, link.imports) == (0.002, 1)
    assert link.bytes_per_s == pytest.approx(2e9)
    book.learn(PEER, LIFE, moved(10, 0.010, exposed_s=0.007))
    (link,) = book.reports()
    assert link.bytes_per_s == pytest.approx(2e9 * 0.98)
    assert link.fixed_s == pytest.approx(0.003)
    book.learn(PEER, LIFE, moved(0.001, 0.001))
    assert book.reports()[0].bytes_per_s == pytest.approx(2e9 * 0.98), "a few bytes say nothing of a rate"
    book.enter(measured())
    assert book.reports()[0].imports == 3, "a second measurement does not void them"


def test_news_take_half_of_a_measured_call() -> None:
    book = LinkBook(BLOCK_BYTES, TransferSettings())
    assert book.news_s(PEER, LIFE) is None
    link = LinkReport(peer=PEER, incarnation=LIFE, transport="ucx", large_in_bytes_per_s=1e9, call_s=0.002)
    book.enter(link)
    assert (book.news_s(PEER, LIFE), book.news_s(PEER, Incarnation(8))) == (0.001, None)


def test_a_measurement_stands_until_a_rate_is_known() -> None:
    book = LinkBook(BLOCK_BYTES, TransferSettings())
    rates: dict[str, Any] = {"small_in_bytes_per_s": 4e9, "large_in_bytes_per_s": 4e9}
    link = LinkReport(peer=PEER, incarnation=LIFE, transport="ucx", **rates)
    book.enter(link)
    book.learn(PEER, LIFE, moved(10, 0.001, unsure_s=0.001))
    better = replace(link, small_in_bytes_per_s=5e9, large_in_bytes_per_s=5e9)
    assert book.enter(better).bytes_per_s == pytest.approx(5e9)
    book.learn(PEER, LIFE, moved(10, 0.010, unsure_s=0.001))
    assert book.enter(link).bytes_per_s == pytest.approx(1e9), "lower than foreseen, and known"


def test_a_rate_is_learned_of_a_time_that_is_known() -> None:
    book = LinkBook(BLOCK_BYTES, TransferSettings())
    book.learn(PEER, LIFE, moved(10, 0.001, unsure_s=0.0003))
    (link,) = book.reports()
    assert (link.bytes_per_s, link.fixed_s, link.imports) == (0.0, 0.002, 1)
    book.learn(PEER, LIFE, moved(10, 0.010, unsure_s=0.0025))
    assert book.reports()[0].bytes_per_s == pytest.approx(1e9)
    book.learn(PEER, LIFE, moved(10, 0.001, unsure_s=0.0025))
    assert book.reports()[0].bytes_per_s == pytest.approx(1e9), "no better and no worse than it was known"
    book.learn(PEER, LIFE, moved(0, 0.0))
    assert book.reports()[0].imports == 3


def test_rounded_blocks_have_a_rate_of_their_own_in_bytes_of_blocks() -> None:
    book = LinkBook(BLOCK_BYTES, TransferSettings())
    foreseen = book.enter(measured())
    book.learn(PEER, LIFE, moved(40, 0.010, wire_format="int8"))
    (link,) = book.reports()
    assert link.rounded_bytes_per_s == pytest.approx(4e9), "of 40 MB, though 10 MB have travelled"
    assert link.bytes_per_s == foreseen.bytes_per_s, "what exact blocks take has not been shown"
    assert (link.fixed_s, link.imports) == (0.002, 1)
    book.learn(PEER, LIFE, moved(40, 0.020, wire_format="int8"))
    book.learn(PEER, LIFE, moved(0.001, 0.001, wire_format="int8"))
    book.learn(PEER, LIFE, moved(40, 0.040))
    (link,) = book.reports()
    assert link.rounded_bytes_per_s == pytest.approx(4e9 * 0.98)
    assert link.bytes_per_s < foreseen.bytes_per_s
    assert book.enter(replace(link, large_in_bytes_per_s=9e9)).rounded_bytes_per_s == 0.0, "too fast to round, perhaps"


def test_a_new_life_starts_anew() -> None:
    book = LinkBook(BLOCK_BYTES, TransferSettings())
    book.enter(measured())
    book.learn(PEER, LIFE, moved(10, 0.005))
    assert book.known(PEER, LIFE) is not None
    assert book.known(PEER, Incarnation(8)) is None
    book.learn(PEER, Incarnation(8), moved(10, 0.010))
    (link,) = book.reports()
    assert (link.incarnation, link.imports, link.lane) == (8, 1, "")


def test_a_book_keeps_the_latest_links() -> None:
    book = LinkBook(BLOCK_BYTES, TransferSettings())
    for number in range(MOST_LINKS + 3):
        book.enter(replace(measured(), peer=WorkerId(f"prefill-{number}")))
    names = [link.peer for link in book.reports()]
    assert len(names) == MOST_LINKS
    assert names[0] == "prefill-3"


@pytest.mark.parametrize(
    ("names", "cuda", "lane"),
    [
        (("posix", "cma"), False, "cma"),
        (("posix",), False, "shared memory"),
        (("tcp",), False, "tcp"),
        (("posix", "cma", "cuda_ipc"), True, "cuda ipc"),
        (("posix", "cma", "cuda_copy"), True, "shared memory"),
        (("rc_mlx5", "tcp"), True, "rdma"),
        ((), False, ""),
    ],
)
def test_the_lane_is_the_quickest_that_can_carry_such_memory(names: tuple[str, ...], cuda: bool, lane: str) -> None:
    assert lane_of(names, cuda=cuda) == lane


def site(host: str = "a", *, cuda: bool = False, rdma: bool = False) -> LinkSite:
    return LinkSite(host=host, cuda=cuda, rdma=rdma)


@pytest.mark.parametrize(
    ("here", "there", "lane"),
    [
        (site(), site(), "shared memory"),
        (site(cuda=True), site(cuda=True), "cuda ipc"),
        (site(cuda=True), site(), ""),
        (site(), site("b"), "tcp"),
        (site(rdma=True), site("b", rdma=True), "rdma"),
        (site(rdma=True), site("b"), "tcp"),
        (site(""), site(""), "tcp"),
    ],
)
def test_what_should_carry_follows_from_where_the_two_run(here: LinkSite, there: LinkSite, lane: str) -> None:
    assert expected_lane("ucx", here, there) == lane


@pytest.mark.parametrize(
    ("lane", "expected", "ucx_tls", "cure"),
    [
        ("tcp", "shared memory", "", "--ipc=host"),
        ("tcp", "shared memory", "tcp,self", 'ucx_tls = "tcp,self" leaves posix,sysv,cma out'),
        ("tcp", "shared memory", "posix,tcp", "--ipc=host"),
        ("shared memory", "cuda ipc", "", "both GPUs"),
        ("tcp", "rdma", "", "RAPIDS_LIBUCX_PREFER_SYSTEM_LIBRARY"),
    ],
)
def test_a_slow_path_is_told_at_once_with_its_cure(lane: str, expected: str, ucx_tls: str, cure: str) -> None:
    told = judged(measured(lane=lane, expected_lane=expected), ucx_tls, BLOCK_BYTES)
    assert f"by {lane} where {expected} was expected" in told.warning
    assert cure in told.cure
    assert told.settled


@pytest.mark.parametrize(("lane", "expected"), [("cma", "shared memory"), ("tcp", "tcp"), ("", "rdma"), ("tcp", "")])
def test_a_path_as_good_as_can_be_is_not_told(lane: str, expected: str) -> None:
    told = judged(measured(lane=lane, expected_lane=expected), "", BLOCK_BYTES)
    assert (told.warning, told.cure, told.settled) == ("", "", True)


def test_the_cure_for_nixl_is_not_nixl() -> None:
    told = judged(replace(measured(lane="tcp", expected_lane="rdma"), transport="nixl"), "", BLOCK_BYTES)
    assert "by tcp where rdma was expected" in told.warning
    assert "/dev/infiniband" in told.cure
    assert "RAPIDS" not in told.cure


@pytest.mark.parametrize(
    ("by_tcp", "here", "there", "lane"),
    [
        (True, site(), site("b"), "tcp"),
        (True, site(rdma=True), site("b", rdma=True), "tcp"),
        (False, site(rdma=True), site("b", rdma=True), "rdma"),
        (False, site(), site("b", rdma=True), ""),
        (True, site(), site(), "tcp"),
        (False, site(), site(), "shared memory"),
        (False, site(cuda=True), site(cuda=True), ""),
        (None, site(rdma=True), site("b", rdma=True), ""),
    ],
)
def test_a_transport_that_names_no_lane_is_judged_by_what_tcp_carried(
    by_tcp: bool | None,
    here: LinkSite,
    there: LinkSite,
    lane: str,
) -> None:
    assert seen_lane(here, there, by_tcp=by_tcp) == lane


def test_a_low_rate_is_told_when_it_was_low_often_enough() -> None:
    slow = measured(lane="shared memory", large_in_bytes_per_s=0.5e9)
    doubted = judged(slow, "", BLOCK_BYTES)
    assert (doubted.warning, doubted.settled) == ("", False)
    sure = judged(replace(slow, measured=SURE_AFTER), "", BLOCK_BYTES)
    assert "0.50 GB/s at best" in sure.warning
    assert "ptrace_scope" in sure.cure
    assert sure.settled


def between_machines(**changes: Any) -> LinkReport:
    return measured(lane="tcp", expected_lane="tcp", same_host=False, **changes)


def test_a_link_between_machines_that_is_slower_towards_the_decode_worker_is_told_with_a_cure() -> None:
    one_sided = between_machines(large_in_bytes_per_s=1e9)
    doubted = judged(one_sided, "", BLOCK_BYTES)
    assert (doubted.warning, doubted.settled) == ("", False), "once may have been a bad moment"
    sure = judged(replace(one_sided, measured=SURE_AFTER), "", BLOCK_BYTES)
    assert "1.00 GB/s over a link that carries 4.54 GB/s the other way" in sure.warning
    assert "swap roles" in sure.cure
    assert sure.settled


def test_messages_that_cost_more_one_way_count_for_blocks_of_their_size() -> None:
    one_sided = between_machines(small_in_bytes_per_s=4096 / 40e-6, measured=SURE_AFTER)
    assert "the other way" in judged(one_sided, "", 4096).warning
    assert not judged(one_sided, "", 1 << 20).warning


@pytest.mark.parametrize("changes", [{"large_in_bytes_per_s": 3e9}, {"large_out_bytes_per_s": 1e9}])
def test_a_little_slower_or_slower_the_other_way_is_not_told(changes: dict[str, float]) -> None:
    told = judged(between_machines(measured=SURE_AFTER, **changes), "", BLOCK_BYTES)
    assert (told.warning, told.settled) == ("", True)


def test_directions_are_not_compared_within_one_machine() -> None:
    assert not judged(measured(large_in_bytes_per_s=2e9, measured=SURE_AFTER), "", BLOCK_BYTES).warning
