"""Offers and arrivals find each other, whole or in parts, in any order."""

import asyncio
import itertools
import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kv_transfer.lot_ledger import Arrival, LotLedger, Match, Offer, as_list, places_in, tags_of
from kv_transfer.rows import RowsAt, nobody_hears


def offer(first: int, numbers: Sequence[int]) -> Offer:
    return Offer(source="a link", number=1, tags=tags_of(first, numbers), rows=RowsAt(0, 8, 8, range(len(numbers))))


def arrival(first: int, numbers: Sequence[int]) -> Arrival:
    loop = asyncio.new_event_loop()
    done = loop.create_future()
    loop.close()
    rows = RowsAt(0, 8, 8, range(len(numbers)))
    matrix = np.zeros((len(numbers), 8), np.uint8)
    return Arrival(
        owner="a peer", matrix=matrix, rows=rows, tags=tags_of(first, numbers), landed=nobody_hears, done=done
    )


def tags_that_met(
    matches: list[Match[Offer]], offers: dict[Offer, list[int]], arrivals: dict[Arrival, list[int]]
) -> list[int]:
    """Return the tags that met, after checking that both sides mean the same."""
    met = []
    for match in matches:
        offered = [offers[match.offer][place] for place in places_in(match.offered, match.offer.tags.count)]
        awaited = [arrivals[match.arrival][place] for place in places_in(match.places, match.arrival.tags.count)]
        assert offered == awaited
        assert len(offered) == match.count
        met += offered
    return met


@pytest.mark.parametrize("numbers", [range(5), [0, 1, 2, 3, 4], np.arange(5), range(2, 7), [3]])
def test_consecutive_numbers_are_kept_as_a_range(numbers: Sequence[int]) -> None:
    tags = tags_of(1 << 40, numbers)
    assert tags.numbers is None
    assert (tags.first, tags.count) == ((1 << 40) + as_list(numbers)[0], len(numbers))


@pytest.mark.parametrize("numbers", [range(0, 10, 2), [1, 0], [0, 1, 3], np.array([5, 4])])
def test_other_numbers_are_kept_as_they_are(numbers: Sequence[int]) -> None:
    assert tags_of(0, numbers).numbers == as_list(numbers)


def test_what_does_not_meet_waits_and_can_be_forgotten() -> None:
    ledger: LotLedger[Offer] = LotLedger()
    early, wanted = offer(0, range(4)), arrival(100, range(4))
    assert ledger.take(early) == []
    assert ledger.post(wanted) == []
    assert ledger.arrivals() == [wanted]
    ledger.forget(wanted)
    assert ledger.drop(lambda one: one is early) == [early]
    assert ledger.post(arrival(0, range(4))) == []
    assert ledger.take(offer(100, range(4))) == []


def test_the_arrival_of_just_these_tags_is_found_until_it_meets_anything() -> None:
    ledger: LotLedger[Offer] = LotLedger()
    first, scattered = arrival(0, range(4)), arrival(10, [0, 2])
    ledger.post(first)
    ledger.post(scattered)
    assert ledger.whole(0, 4) is first
    assert ledger.whole(0, 3) is None
    assert ledger.whole(10, 2) is None, "its tags do not follow one another"
    ledger.take(offer(3, range(1)))
    assert ledger.whole(0, 4) is None
    second = arrival(20, range(2))
    ledger.post(second)
    ledger.forget(second)
    assert ledger.whole(20, 2) is None
    ledger.take(offer(30, range(1)))
    ledger.post(arrival(30, range(2)))
    assert ledger.whole(30, 2) is None, "a part of it had been offered before"


@given(
    lots=st.permutations(range(24)),
    cuts=st.tuples(*[st.lists(st.integers(1, 23), max_size=4, unique=True).map(sorted)] * 2),
    order=st.randoms(use_true_random=False),
)
def test_every_tag_meets_once(lots: list[int], cuts: tuple[list[int], list[int]], order: random.Random) -> None:
    ledger: LotLedger[Offer] = LotLedger()
    offers = {offer(1000, part): [1000 + tag for tag in part] for part in _parts(sorted(lots), cuts[0])}
    arrivals = {arrival(1000, part): [1000 + tag for tag in part] for part in _parts(lots, cuts[1])}
    events: list[Offer | Arrival] = [*offers, *arrivals]
    order.shuffle(events)
    met: list[int] = []
    for event in events:
        matches = ledger.take(event) if isinstance(event, Offer) else ledger.post(event)
        met += tags_that_met(matches, offers, arrivals)
    assert sorted(met) == list(range(1000, 1024))
    assert not ledger.arrivals()


def _parts(numbers: list[int], cuts: list[int]) -> list[list[int]]:
    bounds = [0, *cuts, len(numbers)]
    return [numbers[begin:end] for begin, end in itertools.pairwise(bounds)]
