"""What the ways between processes of one machine do beyond the contract, and when they are taken."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence

import numpy as np
import pytest

from cluster_core.errors import TransferFailed, WorkerLost
from kv_transfer import near_links
from kv_transfer.device_transport import make_device_transport
from kv_transfer.host_transport import make_host_transport
from kv_transfer.lots import Lot
from kv_transfer.near_messages import MOST_ROWS, Fate, answers_of, answers_packets
from kv_transfer.near_transport import NearPeer, NearTransport
from kv_transfer.process_memory import FEW_ROWS
from kv_transfer.settings import TransferSettings
from kv_transfer.transport import make_transport
from kv_transfer.ucx_transport import UcxPeer
from tests.kv_transfer.pretended_device import PretendedMemory

TIMEOUT_S = 20.0
BLOCK_BYTES = 20_000


def new_transport(kind: str) -> NearTransport:
    return make_host_transport() if kind == "host" else make_device_transport(PretendedMemory())


@pytest.fixture(params=["host", "device"])
async def ends(request: pytest.FixtureRequest) -> AsyncIterator[tuple[NearTransport, NearTransport]]:
    sender, receiver = new_transport(request.param), new_transport(request.param)
    await sender.start()
    await receiver.start()
    yield sender, receiver
    await sender.close()
    await receiver.close()


def lot(count: int, fill: int, tag: int = 1, size: int = BLOCK_BYTES) -> Lot:
    return Lot(rows=np.full((count, size), fill, np.uint8), indices=range(count), tag=tag, numbers=range(count))


async def test_a_sender_that_leaves_takes_back_what_nobody_awaits(ends: tuple[NearTransport, NearTransport]) -> None:
    sender, receiver = ends
    gives_up, goes_on = await sender.connect(receiver.address), await sender.connect(receiver.address)
    taken_back, offered = gives_up.send_lot(lot(3, 7, tag=1)), goes_on.send_lot(lot(3, 8, tag=100))
    gives_up.abort()
    async with asyncio.timeout(TIMEOUT_S):
        with pytest.raises(TransferFailed, match="taken back"):
            await taken_back
        peer, target, other = await receiver.connect(sender.address), lot(3, 0, tag=1), lot(3, 0, tag=100)
        never = peer.receive_lot(target, lambda _: None)
        await peer.receive_lot(other, lambda _: None)
        await offered
    assert not never.done()
    assert (other.rows == 8).all()
    assert not target.rows.any()


async def test_what_is_awaited_is_not_taken_back(ends: tuple[NearTransport, NearTransport]) -> None:
    sender, receiver = ends
    target = lot(3, 0)
    landed = (await receiver.connect(sender.address)).receive_lot(target, lambda _: None)
    peer = await sender.connect(receiver.address)
    sent = peer.send_lot(lot(3, 7))
    peer.abort()
    async with asyncio.timeout(TIMEOUT_S):
        await landed
        await sent
    assert (target.rows == 7).all()


async def test_a_sender_hears_at_once_that_the_receiver_is_gone(ends: tuple[NearTransport, NearTransport]) -> None:
    sender, receiver = ends
    sent = (await sender.connect(receiver.address)).send_lot(lot(3, 7))
    await receiver.close()
    with pytest.raises(WorkerLost):
        await asyncio.wait_for(sent, TIMEOUT_S)


@pytest.mark.parametrize("count", [1, 2 * MOST_ROWS + 5])
async def test_what_is_offered_to_a_receiver_that_has_just_gone_fails(
    ends: tuple[NearTransport, NearTransport], count: int
) -> None:
    sender, receiver = ends
    peer = await sender.connect(receiver.address)
    before = peer.send_lot(lot(3, 7))
    await receiver.close()
    assert not before.done(), "the sender has not heard of it"
    after = peer.send_lot(lot(count, 0, size=8 if count > 1 else BLOCK_BYTES))
    for sent in (before, after):
        with pytest.raises(WorkerLost):
            await asyncio.wait_for(sent, TIMEOUT_S)


async def test_what_is_taken_back_from_a_receiver_that_has_just_gone_fails(
    ends: tuple[NearTransport, NearTransport],
) -> None:
    sender, receiver = ends
    peer = await sender.connect(receiver.address)
    offered = [peer.send_lot(lot(3, 7, tag=tag)) for tag in (1, 100)]
    await receiver.close()
    peer.abort()
    for sent in offered:
        with pytest.raises(WorkerLost):
            await asyncio.wait_for(sent, TIMEOUT_S)


async def test_a_lot_of_more_rows_than_a_packet_names(ends: tuple[NearTransport, NearTransport]) -> None:
    sender, receiver = ends
    count = 2 * MOST_ROWS + 5
    target, source = lot(count, 0, size=8), lot(count, 0, size=8)
    source.rows[:] = np.random.default_rng(1).integers(0, 256, source.rows.shape, dtype=np.uint8)
    landed = (await receiver.connect(sender.address)).receive_lot(target, lambda _: None)
    async with asyncio.timeout(TIMEOUT_S):
        await (await sender.connect(receiver.address)).send_lot(source)
        await landed
    assert np.array_equal(source.rows, target.rows)


@pytest.mark.parametrize("size", [8, 5000, BLOCK_BYTES])
async def test_many_lots_under_way_at_once(ends: tuple[NearTransport, NearTransport], size: int) -> None:
    """More packets than one look at the socket takes, and more answers than one packet."""
    sender, receiver = ends
    to, by = await sender.connect(receiver.address), await receiver.connect(sender.address)
    targets = [lot(2, 0, tag=10 * number, size=size) for number in range(1, 201)]
    landed = [by.receive_lot(target, lambda _: None) for target in targets]
    sent = [to.send_lot(lot(2, number, tag=10 * number, size=size)) for number in range(1, 201)]
    async with asyncio.timeout(TIMEOUT_S):
        await asyncio.gather(*landed, *sent)
    for number, target in enumerate(targets, start=1):
        assert (target.rows == number).all()


async def test_a_receiver_that_leaves_says_first_what_it_has(ends: tuple[NearTransport, NearTransport]) -> None:
    sender, receiver = ends
    landed = (await receiver.connect(sender.address)).receive_lot(lot(3, 0), lambda _: None)
    sent = (await sender.connect(receiver.address)).send_lot(lot(3, 7))
    async with asyncio.timeout(TIMEOUT_S):
        await landed
        await receiver.close()
        await sent


@pytest.mark.parametrize("count", [1, FEW_ROWS + 1])
async def test_who_waits_for_blocks_goes_on_before_their_sender_is_told(
    ends: tuple[NearTransport, NearTransport], monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    sender, receiver = ends
    order: list[str] = []

    def answers(fates: Sequence[tuple[Fate, int]]) -> Iterator[bytes]:
        order.append("answer")
        return answers_packets(fates)

    monkeypatch.setattr(near_links, "answers_packets", answers)
    landed = (await receiver.connect(sender.address)).receive_lot(lot(count, 0), lambda _: order.append("landed"))
    landed.add_done_callback(lambda _: order.append("done"))
    async with asyncio.timeout(TIMEOUT_S):
        await (await sender.connect(receiver.address)).send_lot(lot(count, 7))
    assert order == ["landed", "done", "answer"]


async def test_who_has_blocks_in_the_other_kind_of_memory_is_not_reached() -> None:
    host, device = new_transport("host"), new_transport("device")
    await host.start()
    await device.start()
    assert not host.reaches(device.address)
    assert not device.reaches(host.address)
    await host.close()
    await device.close()


def test_answers_of_many_offers_go_in_few_packets() -> None:
    answers = [(Fate.FETCHED, number) for number in range(1500)]
    packets = list(answers_packets(answers))
    assert len(packets) == 2
    assert [answer for packet in packets for answer in answers_of(memoryview(packet))] == answers


@pytest.mark.parametrize(
    ("tls", "device", "kind"),
    [
        ("", "cpu", NearPeer),
        ("posix,cma,self,tcp", "cpu", NearPeer),
        ("self,tcp", "cpu", UcxPeer),
        ("", "cuda", UcxPeer),
    ],
)
async def test_which_way_is_taken_on_one_machine(tls: str, device: str, kind: type) -> None:
    settings = TransferSettings(ucx_tls=tls)
    here, there = make_transport(settings), make_transport(settings, device=device)
    await here.start()
    await there.start()
    assert isinstance(await here.connect(there.address), kind)
    assert isinstance(await there.connect(here.address), kind)
    await here.close()
    await there.close()
