"""Senders that are killed while they are being read from. Run by nixl_contract.py."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence

import numpy as np
import pytest

from cluster_core.errors import TransferFailed
from kv_transfer.lots import Lot
from kv_transfer.nixl_transport import NixlTransport
from tests.kv_transfer.patterns import pattern_rows
from tests.kv_transfer.transport_sides import SETTINGS, TIMEOUT_S, SenderProcess, outcomes

BLOCK_BYTES, BLOCKS = 1 << 18, 64
_tags = itertools.count(1 << 60, 1 << 16)


@pytest.fixture
async def here() -> AsyncIterator[NixlTransport]:
    transport = NixlTransport(SETTINGS)
    await transport.start()
    yield transport
    await transport.close()


@pytest.mark.parametrize("landed_before", [1, 8, 30])
async def test_a_sender_killed_while_it_is_read_fails_the_lot_and_nothing_else(
    here: NixlTransport, landed_before: int
) -> None:
    sender, tag = SenderProcess("nixl"), next(_tags)
    rows = np.zeros((BLOCKS, BLOCK_BYTES), np.uint8)
    come: list[int] = []

    def landed(places: Sequence[int]) -> None:
        if len(come) < landed_before <= len(come) + len(places):
            sender.kill()
        come.extend(places)

    peer = await here.connect(sender.address)
    numbers = list(range(BLOCKS))
    receive = peer.receive_lot(Lot(rows=rows, indices=numbers, tag=tag, numbers=numbers), landed)
    await sender.send_lot(here.address, tag, BLOCK_BYTES, numbers)
    (error,) = await outcomes([receive])
    assert isinstance(error, TransferFailed) or len(come) == BLOCKS, "over TCP the rest may have been under way already"
    expected = pattern_rows(tag, BLOCK_BYTES, BLOCKS)
    assert all(np.array_equal(rows[place], expected[place]) for place in come)
    kept = rows.copy()
    again, tag = SenderProcess("nixl"), next(_tags)
    target = np.zeros((1, BLOCK_BYTES), np.uint8)
    receive = (await here.connect(again.address)).receive_lot(
        Lot(rows=target, indices=[0], tag=tag, numbers=[0]), lambda _places: None
    )
    await again.send_lot(here.address, tag, BLOCK_BYTES, [0])
    async with asyncio.timeout(TIMEOUT_S):
        await receive
    assert np.array_equal(target[0], pattern_rows(tag, BLOCK_BYTES, 1)[0])
    assert np.array_equal(rows, kept), "bytes landed after the lot was over"
    again.kill()
