"""What two workers over NIXL do, without NIXL: `tests.kv_transfer.fake_nixl` reads the memory."""

import asyncio
from asyncio import Future

import numpy as np
import pytest
from numpy.typing import NDArray

from cluster_core.errors import TransferFailed, WorkerLost
from kv_transfer.nixl_memory import span_of
from kv_transfer.nixl_messages import Nudge
from kv_transfer.nixl_receives import Posted, Wanted
from kv_transfer.nixl_sends import Parcel
from tests.kv_transfer.fake_nixl import Clock, FakeAgent, Side, entries_of
from tests.kv_transfer.patterns import pattern_rows

TAG = 1 << 40
Rows = NDArray[np.uint8]


class Two:
    """A sender and a receiver."""

    def __init__(self) -> None:
        self.network: dict[str, FakeAgent] = {}
        self.clock = Clock()
        self.sender, self.receiver = Side(self.network, self.clock), Side(self.network, self.clock)
        self.landed: list[int] = []
        self.owner = object()

    def send(self, rows: Rows, count: int, tag: int = TAG) -> Future[None]:
        span = self.sender.regions.register(rows)
        parcel = Parcel(entries=entries_of(rows, range(count), tag), span=span, keeps=rows)
        return self.sender.sends.send(self.receiver.address, parcel)

    def receive(self, rows: Rows, count: int, tag: int = TAG, owner: object = None) -> Future[None]:
        span = self.receiver.regions.register(rows)
        done: Future[None] = asyncio.get_running_loop().create_future()
        wanted = Wanted(
            done=done,
            owner=owner or self.owner,
            space=span.space,
            size=rows.shape[1],
            keeps=rows,
            landed=self.landed.extend,
            left=count,
        )
        self.receiver.receives.post(
            [Posted(wanted, place, tag + place, span.address + place * rows.shape[1]) for place in range(count)]
        )
        return done

    def turn(self) -> None:
        self.receiver.turn()
        self.sender.turn()


@pytest.fixture
def two() -> Two:
    return Two()


def blocks(count: int, size: int) -> tuple[Rows, Rows]:
    return pattern_rows(TAG, size, count), np.zeros((count, size), np.uint8)


async def test_neighbours_are_read_as_one_and_portions_are_bounded(two: Two) -> None:
    source, target = blocks(10, 1 << 19)
    receive = two.receive(target, 10)
    send = two.send(source, 10)
    two.turn()
    assert receive.done()
    assert send.done()
    assert np.array_equal(source, target)
    assert sorted(two.landed) == list(range(10))
    assert [read.here[:, 1].tolist() for read in two.receiver.agent.reads] == [[2 << 20], [2 << 20], [1 << 20]]


async def test_a_message_may_come_first(two: Two) -> None:
    source, target = blocks(3, 100)
    send = two.send(source, 3)
    two.turn()
    assert not send.done()
    receive = two.receive(target, 3)
    assert not two.landed
    two.turn()
    assert receive.done()
    assert send.done()
    assert np.array_equal(source, target)


async def test_nothing_is_read_into_an_aborted_receive_and_its_sender_is_let_go(two: Two) -> None:
    source, target = blocks(3, 100)
    receive = two.receive(target, 3)
    two.receiver.receives.abort(two.owner)
    assert isinstance(receive.exception(), TransferFailed)
    send = two.send(source, 3)
    two.turn()
    assert send.done()
    assert not two.receiver.agent.reads
    assert not target.any()


async def test_an_abort_between_advert_and_read_reads_nothing(two: Two) -> None:
    source, target = blocks(3, 100)
    send = two.send(source, 3)
    two.turn()
    receive = two.receive(target, 3)
    two.receiver.receives.abort(two.owner)
    assert isinstance(receive.exception(), TransferFailed)
    two.turn()
    assert send.done()
    assert not two.receiver.agent.reads


async def test_a_running_read_is_over_when_it_has_ended_not_when_it_is_aborted(two: Two) -> None:
    source, target = blocks(2, 100)
    receive = two.receive(target, 2)
    two.send(source, 2)
    two.receiver.agent.held = True
    two.turn()
    two.receiver.receives.abort(two.owner)
    two.turn()
    assert not receive.done()
    two.receiver.agent.held = False
    two.turn()
    assert receive.exception() is None
    assert np.array_equal(source, target)


async def test_a_failed_read_is_over_when_the_connection_was_closed_and_had_time_to_settle(two: Two) -> None:
    source, target = blocks(2, 100)
    receive = two.receive(target, 2)
    two.send(source, 2)
    two.receiver.agent.failing = True
    two.turn()
    assert two.receiver.agent.dropped == [two.sender.agent.name]
    assert not receive.done()
    two.clock.now += 1.0
    two.turn()
    assert isinstance(receive.exception(), TransferFailed)


async def test_no_connection_is_made_anew_while_reads_over_the_old_one_run(two: Two) -> None:
    source, target = blocks(8, 1 << 20)
    receive = two.receive(target, 8)
    two.send(source, 8)
    agent = two.receiver.agent
    agent.held = True
    two.turn()
    running = list(agent.reads)
    assert len(running) == 4
    agent.failing, is_read = True, agent.is_read
    agent.is_read = lambda handle: is_read(handle) if handle is running[0] else False  # type: ignore[method-assign]
    two.turn()
    two.clock.now += 1.0
    two.send(source, 1, tag=TAG + 100)
    with pytest.raises(WorkerLost):
        two.receiver.turn()
    assert not agent.dropped
    assert not receive.done()
    agent.is_read = is_read  # type: ignore[method-assign]
    two.turn()
    assert agent.dropped
    assert not receive.done()
    two.clock.now += 1.0
    two.turn()
    assert isinstance(receive.exception(), TransferFailed)
    agent.failing = agent.held = False
    again = two.receive(target, 1, tag=TAG + 200)
    two.send(source, 1, tag=TAG + 200)
    two.turn()
    assert again.exception() is None


async def test_a_message_too_long_ends_what_its_peer_wants_and_nobody_elses(two: Two) -> None:
    source, target = blocks(3, 100)
    other = two.receive(np.zeros((1, 100), np.uint8), 1, tag=TAG + 50, owner=object())
    receive = two.receive(np.zeros((3, 99), np.uint8), 3)
    same_peer = two.receive(target, 1, tag=TAG + 60)
    send = two.send(source, 3)
    two.turn()
    two.turn()
    assert isinstance(receive.exception(), TransferFailed)
    assert isinstance(same_peer.exception(), TransferFailed)
    assert send.done()
    assert not two.receiver.agent.reads
    assert not other.done()


async def test_who_reads_slowly_asks_the_sender_to_look_after_nixl(two: Two) -> None:
    source, target = blocks(1, 100)
    two.receive(target, 1)
    two.send(source, 1)
    two.receiver.agent.held = True
    two.turn()
    assert Nudge() not in two.sender.heard
    two.clock.now += 0.01
    two.turn()
    two.turn()
    assert two.sender.heard.count(Nudge()) == 1


async def test_a_receiver_that_is_gone_is_found_by_a_probe(two: Two) -> None:
    source, _ = blocks(4, 100)
    send = two.send(source, 4)
    two.sender.sends.probe()
    assert not send.done()
    two.receiver.agent.close()
    two.sender.sends.probe()
    assert isinstance(send.exception(), WorkerLost)
    assert not len(two.sender.sends)
    with pytest.raises(WorkerLost):
        two.send(source, 4)


async def test_others_cannot_say_that_a_message_was_taken(two: Two) -> None:
    source, _ = blocks(1, 100)
    send = two.send(source, 1)
    two.sender.sends.taken("somebody", np.array([TAG], np.uint64))
    assert not send.done()


async def test_regions_are_told_once_and_registered_once(two: Two) -> None:
    source, target = blocks(4, 100)
    for tag in (TAG, TAG + 10):
        receive = two.receive(target, 4, tag=tag)
        two.send(source, 4, tag=tag)
        two.turn()
        assert receive.done()
    assert two.sender.agent.registered == [span_of(source)]
    assert two.receiver.agent.registered == [span_of(target)]
    assert two.sender.regions.covers(span_of(source[2]))
    assert not two.sender.regions.covers(span_of(target))


async def test_parts_of_one_array_are_one_region(two: Two) -> None:
    whole = np.zeros(1000, np.uint8)
    for size in (100, 900, 300):
        span = two.sender.regions.register(whole[:size].reshape(10, -1))
        assert span.size == size
    assert two.sender.agent.registered == [span_of(whole)]


async def test_slabs_go_back_to_the_shelf(two: Two) -> None:
    regions = two.sender.regions
    first, second = regions.take_slab(100), regions.take_slab(100)
    assert first.span != second.span
    regions.give_back(first)
    assert regions.take_slab(60_000) is first
    assert regions.take_slab(70_000).span.size == 1 << 17
