"""One suite over every transport: `kv_transfer.transport` says what it holds them to. Lots: `test_transport_lots`."""

import asyncio
import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from cluster_core.errors import TransferFailed, WorkerLost
from kv_transfer.transport import Transport
from kv_transfer.ucx_transport import UcxTransport
from tests.kv_transfer.patterns import pattern
from tests.kv_transfer.transport_sides import NOTICE_S, SETTINGS, TIMEOUT_S, Sender, outcomes

_tags = itertools.count(1 << 60, 1 << 16)


@pytest.mark.parametrize("size", [0, 1, 7, 4095, 8191, 8192, 8193, 196_608, 1 << 20, 4 << 20])
async def test_a_message_of_any_size_arrives_whole(here: Transport, sender: Sender, size: int) -> None:
    peer, tag = await here.connect(sender.address), next(_tags)
    target = np.full(size + 2, 255, np.uint8)
    receive = peer.receive(target[1 : size + 1], tag)
    await sender.send(here.address, tag, size)
    assert await outcomes([receive]) == [None]
    assert np.array_equal(target[1 : size + 1], pattern(tag, size))
    assert target[0] == target[-1] == 255


@pytest.mark.parametrize("size", [100, 100_000])
async def test_a_message_may_come_before_its_receive(here: Transport, sender: Sender, size: int) -> None:
    peer, first, second = await here.connect(sender.address), next(_tags), next(_tags)
    await sender.send(here.address, first, size)
    await sender.send(here.address, second, 1)
    late, early = np.zeros(size, np.uint8), np.zeros(1, np.uint8)
    assert await outcomes([peer.receive(early, second)]) == [None]
    assert await outcomes([peer.receive(late, first)]) == [None]
    assert np.array_equal(late, pattern(first, size))


async def test_many_messages_in_flight_find_their_buffers_in_any_order(here: Transport, sender: Sender) -> None:
    peer, tag, count, size = await here.connect(sender.address), next(_tags), 200, 20_000
    targets = np.zeros((count, size), np.uint8)
    order = np.random.default_rng(7).permutation(count)
    receives = [peer.receive(targets[number], tag + int(number)) for number in order]
    for number in range(count):
        await sender.send(here.address, tag + number, size)
    assert await outcomes(receives) == [None] * count
    for number in range(count):
        assert np.array_equal(targets[number], pattern(tag + number, size))


async def test_abort_cancels_this_peers_receives_and_no_others(here: Transport, sender: Sender) -> None:
    tag = next(_tags)
    given_up, other = await here.connect(sender.address), await here.connect(sender.address)
    dropped, kept = np.zeros((2, 50_000), np.uint8)
    cancelled = [given_up.receive(dropped, tag), given_up.receive(dropped, tag + 1)]
    going_on = other.receive(kept, tag + 2)
    given_up.abort()
    given_up.abort()
    assert all(isinstance(error, TransferFailed) for error in await outcomes(cancelled))
    assert not going_on.done()
    await sender.send(here.address, tag, 50_000)
    await sender.send(here.address, tag + 2, 50_000)
    assert await outcomes([going_on]) == [None]
    assert np.array_equal(kept, pattern(tag + 2, 50_000))
    assert not dropped.any()


async def test_a_peer_can_receive_again_after_an_abort(here: Transport, sender: Sender) -> None:
    tag, peer, target = next(_tags), await here.connect(sender.address), np.zeros(10, np.uint8)
    cancelled = peer.receive(target, tag)
    peer.abort()
    await outcomes([cancelled])
    again = peer.receive(target, tag + 1)
    await sender.send(here.address, tag + 1, 10)
    assert await outcomes([again]) == [None]


@pytest.mark.parametrize("size", [1000, 100_000])
async def test_a_message_longer_than_the_buffer_fails_and_stays_inside(
    here: Transport, sender: Sender, size: int
) -> None:
    tag, peer, target = next(_tags), await here.connect(sender.address), np.full(200_000, 255, np.uint8)
    receive = peer.receive(target[: size - 1], tag)
    await sender.send(here.address, tag, size)
    assert isinstance((await outcomes([receive]))[0], TransferFailed)
    assert (target[size - 1 :] == 255).all()


async def test_a_short_message_leaves_the_rest_of_the_buffer(here: Transport, sender: Sender) -> None:
    tag, peer, target = next(_tags), await here.connect(sender.address), np.full(100_000, 255, np.uint8)
    receive = peer.receive(target, tag)
    await sender.send(here.address, tag, 60_000)
    assert await outcomes([receive]) == [None]
    assert np.array_equal(target[:60_000], pattern(tag, 60_000))
    assert (target[60_000:] == 255).all()


async def test_after_the_senders_death_an_abort_frees_the_buffers(here: Transport, mortal: Sender) -> None:
    tag, peer, targets = next(_tags), await here.connect(mortal.address), np.zeros((20, 300_000), np.uint8)
    receives = [peer.receive(target, tag + number) for number, target in enumerate(targets)]
    for number in range(10):
        await mortal.send(here.address, tag + number, 300_000)
    await mortal.die()
    peer.abort()
    errors = await outcomes(receives)
    assert all(error is None or isinstance(error, TransferFailed | WorkerLost) for error in errors)
    assert all(isinstance(error, TransferFailed) for error in errors[10:])


async def test_a_new_life_at_a_new_address_is_reached(
    here: Transport, mortal: Sender, sender: Sender, kind: str
) -> None:
    old = await here.connect(mortal.address)
    lost = old.receive(np.zeros(10, np.uint8), next(_tags))
    await mortal.die()
    old.abort()
    await outcomes([lost])
    assert sender.address != mortal.address, kind
    tag, target = next(_tags), np.zeros(100_000, np.uint8)
    new = await here.connect(sender.address)
    receive = new.receive(target, tag)
    await sender.send(here.address, tag, 100_000)
    assert await outcomes([receive]) == [None]


async def test_sending_to_the_dead_says_so(here: Transport, mortal: Sender) -> None:
    peer = await here.connect(mortal.address)
    await mortal.die()
    with pytest.raises(WorkerLost):
        async with asyncio.timeout(TIMEOUT_S):
            await peer.send(pattern(1, 100_000), next(_tags))


async def test_a_receiver_that_dies_before_it_received_ends_the_send_or_closing_does(
    here: Transport, mortal: Sender
) -> None:
    """UCX notices most such deaths, not all: an exporter waits with a deadline, and closing ends what is left."""
    peer = await here.connect(mortal.address)
    send = peer.send(pattern(1, 100_000), next(_tags))
    await mortal.die()
    noticed, _ = await asyncio.wait({send}, timeout=NOTICE_S)
    if not noticed:
        await here.close()
    with pytest.raises(WorkerLost):
        await asyncio.wait_for(send, TIMEOUT_S)


async def test_closing_cancels_what_is_pending(here: Transport, sender: Sender) -> None:
    peer = await here.connect(sender.address)
    receive = peer.receive(np.zeros(10, np.uint8), next(_tags))
    await here.close()
    assert isinstance((await outcomes([receive]))[0], TransferFailed)


async def test_ucx_forgets_dead_endpoints_when_it_makes_one() -> None:
    here, there = UcxTransport(SETTINGS), UcxTransport(SETTINGS)
    await here.start()
    await there.start()
    assert here._worker is not None
    here._worker._links[b"dead"] = SimpleNamespace(alive=False)
    tag, landed = next(_tags), np.zeros(100, np.uint8)
    receive = (await there.connect(here.address)).receive(landed, tag)
    await asyncio.wait_for(
        asyncio.gather((await here.connect(there.address)).send(pattern(tag, 100), tag), receive), 20
    )
    assert set(here._worker._links) == {there.address}
    await here.close()
    await there.close()
