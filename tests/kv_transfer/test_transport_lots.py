"""Lots over every transport: what `kv_transfer.transport` promises of them."""

import asyncio
import itertools
from asyncio import Future
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from cluster_core.errors import TransferFailed, WorkerLost
from kv_transfer.lots import Lot
from kv_transfer.transport import Peer, Transport
from tests.kv_transfer.patterns import pattern, pattern_rows
from tests.kv_transfer.transport_sides import TIMEOUT_S, Sender, outcomes

_tags = itertools.count(1 << 61, 1 << 16)
UNTOUCHED = 255  # no pattern has it


class Landing:
    """A lot that is being received into rows of a larger memory, and what was said of it."""

    def __init__(self, peer: Peer, tag: int, count: int, size: int, order: Sequence[int] | None = None) -> None:
        self.memory: NDArray[np.uint8] = np.full((count + 2, size), UNTOUCHED, np.uint8)
        self.indices = [index + 1 for index in order or range(count)]
        self.heard: list[int] = []
        lot = Lot(rows=self.memory, indices=self.indices, tag=tag, numbers=range(count))
        self.done: Future[None] = peer.receive_lot(lot, self._landed)
        assert not self.heard, "nothing is heard from within the call"

    def _landed(self, places: Sequence[int]) -> None:
        assert not self.done.done(), "all is heard before the end"
        self.heard.extend(places)

    def row(self, place: int) -> NDArray[np.uint8]:
        row: NDArray[np.uint8] = self.memory[self.indices[place]]
        return row

    def assert_whole(self, tag: int) -> None:
        assert sorted(self.heard) == list(range(len(self.indices)))
        for place in range(len(self.indices)):
            assert np.array_equal(self.row(place), pattern(tag + place, self.memory.shape[1]))
        assert (self.memory[0] == UNTOUCHED).all()
        assert (self.memory[-1] == UNTOUCHED).all()

    async def until_heard(self, count: int) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            while len(self.heard) < count:  # noqa: ASYNC110  # nothing else tells
                await asyncio.sleep(0)


@pytest.mark.parametrize(("count", "size"), [(1, 1), (1, 196_608), (3, 4096), (40, 20_000), (2000, 64), (1500, 4096)])
async def test_a_lot_arrives_whole(here: Transport, sender: Sender, count: int, size: int) -> None:
    tag = next(_tags)
    landing = Landing(await here.connect(sender.address), tag, count, size)
    await sender.send_lot(here.address, tag, size, range(count))
    assert await outcomes([landing.done]) == [None]
    landing.assert_whole(tag)


async def test_a_lot_may_come_in_pieces_and_in_any_order(here: Transport, sender: Sender) -> None:
    tag, rng = next(_tags), np.random.default_rng(3)
    scattered = [int(index) for index in rng.permutation(30)]
    landing = Landing(await here.connect(sender.address), tag, 30, 30_000, scattered)
    await sender.send_lot(here.address, tag, 30_000, [7, 3, 4])
    await landing.until_heard(3)
    assert sorted(landing.heard) == [3, 4, 7]
    assert not landing.done.done()
    await sender.send(here.address, tag + 5, 30_000)
    await landing.until_heard(4)
    await sender.send_lot(here.address, tag, 30_000, [place for place in range(30) if place not in {3, 4, 5, 7}])
    assert await outcomes([landing.done]) == [None]
    landing.assert_whole(tag)


async def test_a_lot_sent_may_serve_several_lots_and_come_before_them(here: Transport, sender: Sender) -> None:
    tag, peer = next(_tags), await here.connect(sender.address)
    await sender.send_lot(here.address, tag, 9000, range(20))
    await sender.send(here.address, tag + 20, 1)
    assert await outcomes([peer.receive(np.zeros(1, np.uint8), tag + 20)]) == [None]
    landings = [Landing(peer, tag + first, 5, 9000) for first in (15, 0, 10, 5)]
    assert await outcomes([landing.done for landing in landings]) == [None] * 4
    for landing, first in zip(landings, (15, 0, 10, 5), strict=True):
        landing.assert_whole(tag + first)


async def test_an_abort_ends_what_has_not_come_and_spares_other_peers(here: Transport, sender: Sender) -> None:
    tag, other_tag = next(_tags), next(_tags)
    given_up, other = await here.connect(sender.address), await here.connect(sender.address)
    landing, going_on = Landing(given_up, tag, 10, 50_000), Landing(other, other_tag, 10, 50_000)
    await sender.send_lot(here.address, tag, 50_000, [0, 1, 2])
    await landing.until_heard(3)
    given_up.abort()
    assert isinstance((await outcomes([landing.done]))[0], TransferFailed)
    await sender.send_lot(here.address, tag, 50_000, range(3, 10))
    await sender.send_lot(here.address, other_tag, 50_000, range(10))
    assert await outcomes([going_on.done]) == [None]
    going_on.assert_whole(other_tag)
    assert np.array_equal(landing.memory[1:4], pattern_rows(tag, 50_000, 3))
    assert (landing.memory[4:] == UNTOUCHED).all()


@pytest.mark.parametrize("size", [1000, 100_000])
async def test_a_block_too_long_fails_the_lot_at_once(here: Transport, sender: Sender, size: int) -> None:
    tag = next(_tags)
    landing = Landing(await here.connect(sender.address), tag, 4, size)
    await sender.send(here.address, tag + 2, size + 1)
    assert isinstance((await outcomes([landing.done]))[0], TransferFailed)
    assert (landing.memory[4:] == UNTOUCHED).all()


async def test_the_senders_death_and_an_abort_free_a_lot(here: Transport, mortal: Sender) -> None:
    tag, peer = next(_tags), await here.connect(mortal.address)
    landing = Landing(peer, tag, 40, 300_000)
    await mortal.send_lot(here.address, tag, 300_000, range(20))
    await mortal.die()
    peer.abort()
    assert isinstance((await outcomes([landing.done]))[0], TransferFailed | WorkerLost)
    for place in landing.heard:
        assert np.array_equal(landing.row(place), pattern(tag + place, 300_000))


async def test_sending_a_lot_to_the_dead_says_so(here: Transport, mortal: Sender) -> None:
    peer = await here.connect(mortal.address)
    await mortal.die()
    lot = Lot(rows=pattern_rows(1, 100_000, 3), indices=range(3), tag=next(_tags), numbers=range(3))
    with pytest.raises(WorkerLost):
        async with asyncio.timeout(TIMEOUT_S):
            await peer.send_lot(lot)
