"""What the block benchmark compares with moves the very blocks that were asked for."""

import os
import socket
import threading

import numpy as np
import pytest

from benchmarks.block_lots import KIB, LotKind, check, new_pool, places
from benchmarks.raw_transfer import (
    CmaReader,
    Copies,
    RemotePool,
    hear_begin,
    pieces_of,
    receive_pieces,
    runs,
    send_pieces,
    tell_begin,
)

POOL_BYTES = 16 * 2**20
KINDS = [LotKind(size=4 * KIB, count=2000, scattered=scattered) for scattered in (True, False)]


def test_blocks_that_are_adjacent_on_both_sides_are_one_stretch() -> None:
    assert runs(np.array([4, 5, 6, 9]), np.array([1, 2, 7, 8])) == [(4, 1, 2), (6, 7, 1), (9, 8, 1)]
    assert runs(np.array([3]), np.array([0])) == [(3, 0, 1)]


@pytest.mark.parametrize("kind", KINDS)
def test_memcpy(kind: LotKind) -> None:
    target = np.zeros(POOL_BYTES, np.uint8)
    sources, targets = places(kind, 1, POOL_BYTES)
    assert Copies(new_pool(POOL_BYTES), target).seconds(kind, sources, targets) > 0
    check(target, kind, sources, targets)


@pytest.mark.parametrize("kind", KINDS)
def test_cma_reads_more_pieces_than_one_call_takes(kind: LotKind) -> None:
    source, target = new_pool(POOL_BYTES), np.zeros(POOL_BYTES, np.uint8)
    sources, targets = places(kind, 1, POOL_BYTES)
    reader = CmaReader(target, RemotePool(pid=os.getpid(), address=source.ctypes.data))
    reader.read(reader.prepared(kind, sources, targets))
    check(target, kind, sources, targets)


def test_cma_says_what_is_wrong() -> None:
    target = np.zeros(POOL_BYTES, np.uint8)
    reader = CmaReader(target, RemotePool(pid=os.getpid(), address=8))
    with pytest.raises(OSError, match="process_vm_readv"):
        reader.read(reader.prepared(KINDS[1], *places(KINDS[1], 1, POOL_BYTES)))


@pytest.mark.parametrize("kind", KINDS)
def test_sockets(kind: LotKind) -> None:
    source, target = new_pool(POOL_BYTES), np.zeros(POOL_BYTES, np.uint8)
    sources, targets = places(kind, 1, POOL_BYTES)
    ours, theirs = socket.socketpair()

    def send() -> None:
        tell_begin(theirs)
        send_pieces(theirs, pieces_of(source, kind.size, sources))

    with ours, theirs:
        sender = threading.Thread(target=send)
        sender.start()
        assert hear_begin(ours) > 0
        receive_pieces(ours, pieces_of(target, kind.size, targets))
        sender.join()
    check(target, kind, sources, targets)
