"""Large lots are copied by a thread: the event loop goes on, and nobody is told of an end that is none yet."""

import asyncio
import errno
import threading
from asyncio import Future
from collections.abc import AsyncIterator

import numpy as np
import pytest
from numpy.typing import NDArray

from cluster_core.errors import TransferFailed, WorkerLost
from kv_transfer.host_copies import LEAST_THREADS_BYTES, MOST_THREADS_BYTES, TURNS_BYTES, threads_slice_bytes
from kv_transfer.host_pace import FEWEST_BYTES, FIRST_BYTES, MOST_BYTES, SLICE_S, Pace
from kv_transfer.host_transport import make_host_transport
from kv_transfer.lots import Lot
from kv_transfer.near_transport import NearPeer, NearTransport
from kv_transfer.process_memory import ProcessReader
from tests.kv_transfer.pair import until

TIMEOUT_S = 20.0
ROWS, ROW_BYTES = 40, 1 << 20
assert ROWS * ROW_BYTES > TURNS_BYTES
TAG = 1


class HeldReads:
    """Reads that wait for a word, of large pieces of memory alone."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.let_go = threading.Event(), threading.Event()
        self.count = 0
        self.error: OSError | None = None
        read = ProcessReader.read

        def held(reader: ProcessReader, here: int, there: int, pieces: int, moved_bytes: int) -> None:
            if moved_bytes >= ROW_BYTES:
                self.count += 1
                self.begun.set()
                assert self.let_go.wait(TIMEOUT_S)
                if self.error is not None:
                    raise self.error
            read(reader, here, there, pieces, moved_bytes)

        monkeypatch.setattr(ProcessReader, "read", held)


class Ends:
    """A sender and a receiver."""

    def __init__(self, sender: NearTransport, receiver: NearTransport) -> None:
        self.sender, self.receiver = sender, receiver
        self.source = np.random.default_rng(1).integers(0, 256, (ROWS, ROW_BYTES), dtype=np.uint8)
        self.target: NDArray[np.uint8] = np.zeros_like(self.source)
        self.heard: list[int] = []
        self.to: NearPeer
        self.by: NearPeer

    def begin(self) -> tuple[Future[None], Future[None]]:
        """Return the end of a large lot's sending and that of its receiving."""
        places = range(ROWS)
        received = self.by.receive_lot(
            Lot(rows=self.target, indices=places, tag=TAG, numbers=places), self.heard.extend
        )
        return self.to.send_lot(Lot(rows=self.source, indices=places, tag=TAG, numbers=places)), received

    async def move_a_small_one(self) -> None:
        rows = np.full((1, 30_000), 7, np.uint8)
        target = np.zeros_like(rows)
        received = self.by.receive(target[0], TAG + 1000)
        await self.to.send(rows[0], TAG + 1000)
        await received
        assert (target == 7).all()


@pytest.fixture
async def ends() -> AsyncIterator[Ends]:
    both = Ends(make_host_transport(), make_host_transport())
    await both.sender.start()
    await both.receiver.start()
    both.to = await both.sender.connect(both.receiver.address)
    both.by = await both.receiver.connect(both.sender.address)
    yield both
    await both.sender.close()
    await both.receiver.close()


async def test_a_large_lot_arrives_whole_and_piece_by_piece(ends: Ends) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        for one in ends.begin():
            await one
    assert np.array_equal(ends.source, ends.target)
    assert ends.heard == list(range(ROWS))


async def test_others_are_served_while_a_large_lot_is_copied(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = HeldReads(monkeypatch)
    sent, received = ends.begin()
    async with asyncio.timeout(TIMEOUT_S):
        await until(reads.begun.is_set)
        await ends.move_a_small_one()
        assert not received.done()
        assert not sent.done()
        reads.let_go.set()
        await received
        await sent
    assert np.array_equal(ends.source, ends.target)


async def test_an_abort_is_over_when_the_thread_has_left(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = HeldReads(monkeypatch)
    sent, received = ends.begin()
    async with asyncio.timeout(TIMEOUT_S):
        await until(reads.begun.is_set)
        ends.by.abort()
        await ends.move_a_small_one()
        assert not received.done(), "bytes may still land"
        reads.let_go.set()
        with pytest.raises(TransferFailed, match="aborted"):
            await received
        await sent
    assert reads.count == 1, "no slice begins after an abort"
    assert not ends.heard
    assert not ends.target[-1].any()


async def test_a_sender_that_leaves_ends_a_copy_when_the_thread_has_left(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = HeldReads(monkeypatch)
    _sent, received = ends.begin()
    async with asyncio.timeout(TIMEOUT_S):
        await until(reads.begun.is_set)
        another = ends.by.receive(np.zeros(1, np.uint8), TAG + 2000)
        await ends.sender.close()
        await until(another.done)  # the loss is known, and has ended what else the peer awaited
        assert not received.done()
        reads.let_go.set()
        with pytest.raises(WorkerLost, match="gone"):
            await received


@pytest.mark.parametrize(("number", "kind"), [(errno.ESRCH, WorkerLost), (errno.EFAULT, TransferFailed)])
async def test_what_cannot_be_read_fails_on_both_sides(
    ends: Ends, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception]
) -> None:
    reads = HeldReads(monkeypatch)
    reads.error = OSError(number, "no")
    reads.let_go.set()
    sent, received = ends.begin()
    async with asyncio.timeout(TIMEOUT_S):
        with pytest.raises(kind):
            await received
        with pytest.raises(TransferFailed, match="cannot read"):
            await sent
    await ends.move_a_small_one()


async def test_closing_waits_for_the_slice_and_no_longer(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = HeldReads(monkeypatch)
    _sent, received = ends.begin()
    async with asyncio.timeout(TIMEOUT_S):
        await until(reads.begun.is_set)
        threading.Timer(0.01, reads.let_go.set).start()  # closing blocks until the thread has left
        await ends.receiver.close()
    assert received.done()
    assert isinstance(received.exception(), TransferFailed)
    assert reads.count == 1


def test_the_threads_slices_become_shorter_towards_the_end() -> None:
    left, slices = 1 << 30, list[int]()
    while left > 0:
        slices.append(threads_slice_bytes(left))
        left -= slices[-1]
    assert slices == sorted(slices, reverse=True)
    assert (slices[0], slices[-1]) == (MOST_THREADS_BYTES, LEAST_THREADS_BYTES)


def test_the_pace_follows_what_slices_take_within_bounds() -> None:
    pace = Pace()
    assert pace.slice_bytes == FIRST_BYTES
    for _ in range(50):
        pace.note(pace.slice_bytes, pace.slice_bytes / 3e9)
    assert pace.slice_bytes == pytest.approx(3e9 * SLICE_S, rel=0.01)
    for rate, bound in ((1e12, MOST_BYTES), (1e6, FEWEST_BYTES)):
        for _ in range(50):
            pace.note(pace.slice_bytes, pace.slice_bytes / rate)
        assert pace.slice_bytes == pytest.approx(bound, rel=0.01)


def test_short_slices_tell_the_pace_nothing() -> None:
    pace = Pace()
    pace.note(100_000, 1.0)
    pace.note(FIRST_BYTES, 0.0)
    assert pace.slice_bytes == FIRST_BYTES
