"""SIGKILL in the midst of a copy on one host: of the process that is read, and of the one that reads."""

import asyncio
import itertools
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence

import numpy as np
import pytest

from cluster_core.errors import WorkerLost
from cluster_core.handoff import ExportFailed, OpenExport, PullBlocks
from cluster_core.holds import LeaseHold
from cluster_core.identity import Incarnation, WorkerId
from cluster_core.layout import KvLayout
from kv_transfer.export_memory import SealedBlock
from kv_transfer.exporter import Exporter
from kv_transfer.host_pace import FIRST_BYTES
from kv_transfer.host_transport import make_host_transport
from kv_transfer.lots import Lot
from kv_transfer.near_transport import NearTransport
from tests.kv_transfer.fake_pool import ATTEMPT, REQUEST, FakePool
from tests.kv_transfer.handover import EXPORTER_LIFE, SETTINGS, Channel, Clock
from tests.kv_transfer.patterns import pattern_rows
from tests.kv_transfer.transport_sides import TIMEOUT_S, SenderProcess

LAYOUT = KvLayout(layers=16, kv_heads=4, head_dim=128, block_size_tokens=16, dtype="float32")
BLOCKS = 12
"""Of 1 MiB, so that a copy takes several slices."""
SLICE_BLOCKS = FIRST_BYTES // LAYOUT.block_bytes
"""Those of the first slice; how many the next ones have depends on how long it took."""
NOTICED_S = 1.0
_tags = itertools.count(1 << 40, 1 << 16)


@pytest.fixture
async def here() -> AsyncIterator[NearTransport]:
    transport = make_host_transport()
    await transport.start()
    yield transport
    await transport.close()


class StoppedReceiver:
    """A process that stops while it copies."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.kv_transfer.receiver_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.address = bytes.fromhex(self._line())

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def receive(self, sender: bytes, tag: int) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{sender.hex()} {tag} {BLOCKS} {LAYOUT.block_bytes}\n")
        self._process.stdin.flush()

    async def copied(self) -> int:
        """Wait until it has stopped; return how many blocks it has copied."""
        return int(await asyncio.to_thread(self._line))

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def receiver() -> Iterator[StoppedReceiver]:
    process = StoppedReceiver()
    yield process
    process.kill()


@pytest.mark.parametrize("landed_before", [1, SLICE_BLOCKS + 1])
async def test_a_sender_that_is_killed_while_it_is_read_fails_the_lot(here: NearTransport, landed_before: int) -> None:
    sender, tag = SenderProcess("host"), next(_tags)
    rows, come, slices = np.zeros((BLOCKS, LAYOUT.block_bytes), np.uint8), list[int](), list[int]()

    def landed(places: Sequence[int]) -> None:
        if len(come) < landed_before <= len(come) + len(places):
            sender.kill()
        come.extend(places)
        slices.append(len(places))

    peer = await here.connect(sender.address)
    numbers = list(range(BLOCKS))
    receive = peer.receive_lot(Lot(rows=rows, indices=numbers, tag=tag, numbers=numbers), landed)
    await sender.send_lot(here.address, tag, LAYOUT.block_bytes, numbers)
    async with asyncio.timeout(TIMEOUT_S):
        with pytest.raises(WorkerLost):
            await receive
    assert sum(slices[:-1]) < landed_before <= len(come) < BLOCKS, "the slice in which it died, and none after"
    assert slices[0] == SLICE_BLOCKS
    expected = pattern_rows(tag, LAYOUT.block_bytes, BLOCKS)
    assert all(np.array_equal(rows[place], expected[place]) for place in come)
    assert not rows[len(come) :].any(), "what did not land was not touched either"


async def test_a_receiver_that_is_killed_while_it_reads_ends_the_send(
    here: NearTransport, receiver: StoppedReceiver
) -> None:
    tag = next(_tags)
    rows = pattern_rows(tag, LAYOUT.block_bytes, BLOCKS)
    sent = (await here.connect(receiver.address)).send_lot(
        Lot(rows=rows, indices=range(BLOCKS), tag=tag, numbers=range(BLOCKS))
    )
    receiver.receive(here.address, tag)
    async with asyncio.timeout(TIMEOUT_S):
        assert await receiver.copied() == SLICE_BLOCKS
    assert not sent.done()
    receiver.kill()
    with pytest.raises(WorkerLost, match="receiver is gone"):
        await asyncio.wait_for(sent, NOTICED_S)


async def test_an_export_whose_importer_is_killed_while_it_reads_is_free_after_its_grace(
    here: NearTransport, receiver: StoppedReceiver
) -> None:
    pool, clock, channel, tag = FakePool(BLOCKS, layout=LAYOUT), Clock(), Channel(), next(_tags)
    exporter = Exporter(
        transport=here,
        memory=pool,
        holds=pool,
        incarnation=EXPORTER_LIFE,
        layout=LAYOUT,
        settings=SETTINGS,
        clock=clock,
    )
    opening = OpenExport(
        request_id=REQUEST,
        attempt=ATTEMPT,
        exporter_incarnation=EXPORTER_LIFE,
        importer=WorkerId("decode-0"),
        importer_incarnation=Incarnation(22),
        importer_transport_address=receiver.address,
        layout=LAYOUT.describe(),
    )
    export = exporter.open(REQUEST, ATTEMPT)
    export.seal([SealedBlock(position=index, index=index, hash=None, tokens=16) for index in range(BLOCKS)])
    export.finish(42)
    await channel.send(opening)
    await channel.send(PullBlocks(tag=tag, positions=tuple(range(BLOCKS))))
    serving = asyncio.create_task(channel.serve(exporter))
    receiver.receive(here.address, tag)
    async with asyncio.timeout(TIMEOUT_S):
        assert await receiver.copied() == SLICE_BLOCKS
    receiver.kill()
    await asyncio.wait_for(serving, NOTICED_S)
    assert channel.heard[-1] == ExportFailed(reason="the receiver is gone")
    assert pool.count(LeaseHold) == BLOCKS, "another importer may come for them"
    clock.now += SETTINGS.grace_s + 0.01
    await exporter.sweep()
    assert pool.count(LeaseHold) == 0
