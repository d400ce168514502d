"""Rows of another process are copied to where they belong, however they are cut, joined or scattered."""

import os
import subprocess
import sys

import numpy as np
import pytest
from numpy.typing import NDArray

from kv_transfer.lots import Lot
from kv_transfer.process_memory import FEW_ROWS, ProcessReader, ReadPlan, read_few, reading_works
from kv_transfer.rows import RowFinder, RowsAt, one_row

SLICE_BYTES = 4 << 20
pytestmark = pytest.mark.skipif(not reading_works(), reason="processes may not read each other here")


def rows_at(matrix: NDArray[np.uint8], indices: list[int]) -> RowsAt:
    return RowFinder().find(Lot(rows=matrix, indices=indices, tag=0, numbers=range(len(indices))))


def copy(here: RowsAt, there: RowsAt) -> list[int]:
    """Read all of a plan from this very process; return the rows that each slice completed."""
    reader, plan, completed = ProcessReader(os.getpid()), ReadPlan(here, there), []
    while plan.left:
        completed.append(plan.read(reader, SLICE_BYTES))
    reader.close()
    return completed


@pytest.mark.parametrize(
    ("rows", "length", "slices"),
    [
        (1, 1, 1),
        (3, 100, 1),
        (40, 131_072, 2),  # few: one by one
        (100, 4096, 1),  # short: neighbours are joined
        (1200, 512, 2),  # more pieces than the kernel takes at once
        (70, 65_536, 2),  # many and long
        (3, 5 << 20, 4),  # longer than a slice: cut
        (70, 1_500_000, 28),  # longer than a piece: two of each row, so that a slice may end within one
    ],
)
@pytest.mark.parametrize("scattered", [False, True])
def test_rows_arrive_where_they_belong(rows: int, length: int, slices: int, *, scattered: bool) -> None:
    rng = np.random.default_rng(rows)
    source = rng.integers(0, 256, (rows + 2, length), dtype=np.uint8)
    target = np.zeros((rows + 3, length + 8), np.uint8)[:, :length]
    first, second = [
        [int(index) for index in (rng.permutation(total)[:rows] if scattered else np.arange(1, rows + 1))]
        for total in (rows + 3, rows + 2)
    ]
    completed = copy(rows_at(target, first), rows_at(source, second))
    assert len(completed) == slices
    assert sum(completed) == rows
    assert np.array_equal(target[first], source[second])
    others = [index for index in range(rows + 3) if index not in first]
    assert not target[others].any()


@pytest.mark.parametrize(("rows", "length"), [(1, 1), (1, 65_536), (7, 5000), (FEW_ROWS, 100)])
def test_a_few_rows_are_copied_at_once(rows: int, length: int) -> None:
    rng = np.random.default_rng(rows)
    source = rng.integers(0, 256, (rows + 2, length), dtype=np.uint8)
    target = np.zeros((rows + 3, length + 8), np.uint8)
    first, second = [[int(index) for index in rng.permutation(total)[:rows]] for total in (rows + 3, rows + 2)]
    reader = ProcessReader(os.getpid())
    read_few(reader, rows_at(target, first), rows_at(source, second))
    reader.close()
    assert np.array_equal(target[first, :length], source[second])
    assert not target[:, length:].any()
    assert not target[[index for index in range(rows + 3) if index not in first]].any()


def test_memory_that_is_not_there_is_an_error() -> None:
    target = np.zeros((1, 4096), np.uint8)
    with pytest.raises(OSError, match="cannot be read"):
        copy(rows_at(target, [0]), RowsAt(4096, 4096, 4096, range(1)))


def test_a_dead_process_is_an_error_before_and_after_it_was_buried() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    reader = ProcessReader(child.pid)
    target = np.zeros((1, 16), np.uint8)
    os.kill(child.pid, 9)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    for _ in range(2):
        with pytest.raises(OSError, match="cannot be read"):
            ReadPlan(rows_at(target, [0]), RowsAt(1 << 30, 16, 16, range(1))).read(reader, 16)
        child.wait()
    child.communicate()
    reader.close()


def test_one_row_is_the_buffers_own_memory() -> None:
    buffer = bytearray(b"abc")
    lot = one_row(buffer, 7)
    lot.rows[0, 1] = ord("x")
    assert bytes(buffer) == b"axc"
    assert (lot.tag, len(lot), one_row(b"", 1).rows.shape) == (7, 1, (1, 0))
