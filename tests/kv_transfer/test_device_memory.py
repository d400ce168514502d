"""Copies on a GPU, in Triton's interpreter where there is none, and what a process knows of another's memory."""

import errno
import os
from typing import Any

import numpy as np
import pytest
import torch

from cluster_core.errors import TransferFailed
from kv_transfer import device_rows
from kv_transfer.device_rows import DevicePlan
from kv_transfer.rows import RowsAt

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported: its kernels then run here, in Python
pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HANDLE = bytes(range(64))


class Driver:
    """CUDA's driver as far as it is asked; what it has allocated is told beforehand."""

    def __init__(self, *matrices: torch.Tensor) -> None:
        self._ranges = [(matrix.data_ptr(), matrix.numel()) for matrix in matrices]
        self.open_pieces: list[int] = []

    def allocation(self, address: int) -> tuple[int, int]:
        for begin, size in self._ranges:
            if begin <= address < begin + size:
                return begin, size
        raise OSError(errno.EIO, "cuMemGetAddressRange: CUDA error 1")

    def handle(self, begin: int) -> bytes:
        assert any(begin == each for each, _ in self._ranges)
        return HANDLE

    def open(self, handle: bytes) -> int:
        if handle != HANDLE:
            raise OSError(errno.EIO, "cuIpcOpenMemHandle: CUDA error 1")
        self.open_pieces.append(self._ranges[0][0])
        return self._ranges[0][0]

    def close(self, seen: int) -> None:
        self.open_pieces.remove(seen)


def memory_of(driver: Driver) -> Any:
    from kv_transfer.device_memory import DeviceMemory  # noqa: PLC0415 - after its interpreter is chosen

    memory = DeviceMemory(DEVICE)
    memory._ipc = driver
    memory._prepare()
    return memory


def matrix(rows: int, size: int, seed: int) -> torch.Tensor:
    content = np.random.default_rng(seed).integers(0, 256, (rows, size), dtype=np.uint8)
    return torch.from_numpy(content).to(DEVICE)


def rows_of(tensor: torch.Tensor, indices: list[int], size: int) -> RowsAt:
    return RowsAt(tensor.data_ptr(), tensor.stride(0), size, indices)


@pytest.mark.parametrize("size", [16, 7, 4096, 8192 + 16, 24_000, 24_001])
def test_scattered_rows_go_where_they_belong(size: int) -> None:
    source, target = matrix(9, size, seed=1), matrix(12, size + 16, seed=2)
    expected = target.clone()
    expected[[11, 0, 5], :size] = source[[2, 8, 0]]
    memory = memory_of(Driver(source))
    reader = memory.reader(os.getpid())
    memory.learn(reader, memory.describe(source.data_ptr() + 3))
    plan = DevicePlan(memory, target, rows_of(target, [11, 0, 5], size), rows_of(source, [2, 8, 0], size))
    assert plan.read(reader) == 3
    assert plan.rows_left == 0
    assert torch.equal(target, expected)
    reader.close()


def test_a_lot_is_copied_slice_by_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_rows, "SLICE_BYTES", 64 * 3)
    source, target = matrix(8, 64, seed=1), matrix(8, 64, seed=2)
    memory = memory_of(Driver(source))
    reader = memory.reader(os.getpid())
    memory.learn(reader, memory.describe(source.data_ptr()))
    order = [3, 1, 4, 0, 5, 2, 6, 7]
    plan = DevicePlan(memory, target, rows_of(target, order, 64), rows_of(source, order, 64))
    assert [plan.read(reader) for _ in range(3)] == [3, 3, 2]
    assert torch.equal(target, source)
    reader.close()


def test_memory_of_another_process_is_mapped_once_and_let_go() -> None:
    source, target = matrix(4, 64, seed=1), matrix(4, 64, seed=2)
    driver = Driver(source)
    memory = memory_of(driver)
    description = memory.describe(source.data_ptr())
    reader = memory.reader(os.getppid())
    memory.learn(reader, description)
    assert driver.open_pieces == [source.data_ptr()]
    memory.copy(reader, rows_of(source, [1], 64), target, rows_of(target, [2], 64))
    assert torch.equal(target[2], source[1])
    reader.close()
    assert driver.open_pieces == []


def test_what_was_not_described_is_not_read() -> None:
    source, target = matrix(4, 64, seed=1), matrix(4, 64, seed=2)
    memory = memory_of(Driver(source))
    reader, before = memory.reader(os.getpid()), target.clone()
    with pytest.raises(OSError, match="has not said where"):
        memory.copy(reader, rows_of(source, [1], 64), target, rows_of(target, [2], 64))
    memory.learn(reader, memory.describe(source.data_ptr()))
    with pytest.raises(OSError, match="cannot be read"):
        memory.copy(reader, rows_of(source, [4], 64), target, rows_of(target, [2], 64))
    with pytest.raises(OSError, match="came for host memory"):
        memory.copy(reader, rows_of(source, [1], 64), np.zeros((4, 64), np.uint8), rows_of(target, [2], 64))
    assert torch.equal(target, before)
    reader.close()


def test_a_handle_that_does_not_open_is_named_when_it_is_needed() -> None:
    source, target = matrix(4, 64, seed=1), matrix(4, 64, seed=2)
    memory = memory_of(Driver(source))
    reader = memory.reader(os.getppid())
    description: bytes = memory.describe(source.data_ptr())
    memory.learn(reader, description[:-1] + b"!")
    with pytest.raises(OSError, match="cuIpcOpenMemHandle"):
        memory.copy(reader, rows_of(source, [1], 64), target, rows_of(target, [2], 64))
    memory.learn(reader, description[:-1])
    with pytest.raises(OSError, match="a description of 79 bytes"):
        memory.copy(reader, rows_of(source, [1], 64), target, rows_of(target, [2], 64))
    reader.close()


def test_memory_that_cannot_be_shared_is_refused_by_its_sender() -> None:
    memory = memory_of(Driver(matrix(4, 64, seed=1)))
    with pytest.raises(TransferFailed, match="no other process can read"):
        memory.describe(8)
