"""A benchmark's pool of blocks on a device, what a plain program does with it there, and digests of its lots.

On a CPU it is a NumPy array, as a worker's pool is, and on CUDA a tensor; torch works on both in place. Times are those
that the caller waits, the device's answer included.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.block_lots import LotKind, Places, blocks_of, new_pool
from cluster_core.identity import BlockHash
from kv_transfer.digest import BlockDigests

_WORD_BYTES = 8
_NAME = BlockHash(bytes(16))


def device_pool(pool_bytes: int, device: str) -> Any:
    """Return a pool whose words are numbered from 0."""
    if device == "cpu":
        return new_pool(pool_bytes)
    return torch.arange(pool_bytes // _WORD_BYTES, device=device).view(torch.uint8)


def _words_of(pool: Any, size: int) -> torch.Tensor:
    """Return the pool as ``[blocks, words]`` of 8 bytes: what torch gathers and adds up faster than bytes."""
    blocks = blocks_of(pool, size)
    tensor: torch.Tensor = blocks if isinstance(blocks, torch.Tensor) else torch.from_numpy(blocks)
    return tensor.view(torch.int64)


def _seconds(on: torch.Tensor, work: Callable[[], object]) -> float:
    """Return how long ``work`` takes, waiting for the device of ``on`` included."""
    if on.is_cuda:
        torch.cuda.synchronize(on.device)
    started = time.perf_counter()
    work()
    if on.is_cuda:
        torch.cuda.synchronize(on.device)
    return time.perf_counter() - started


class PlainCopies:
    """Copies within one process, from a pool to another: torch's `copy_` of one piece, or its gathering of many."""

    def __init__(self, source: Any, target: Any) -> None:
        self._source = source
        self._target = target

    def seconds(self, kind: LotKind, sources: Places, targets: Places) -> float:
        """Copy a lot; scattered blocks are gathered into one piece."""
        source, target = _words_of(self._source, kind.size), _words_of(self._target, kind.size)
        if kind.scattered:
            chosen, gathered = torch.from_numpy(sources).to(source.device), target[: kind.count]
            return _seconds(source, lambda: torch.index_select(source, 0, chosen, out=gathered))
        first, begin = int(sources[0]), int(targets[0])
        stretch, room = source[first : first + kind.count], target[begin : begin + kind.count]
        return _seconds(source, lambda: room.copy_(stretch))

    def read_seconds(self, kind: LotKind, sources: Places) -> float:
        """Add up as many bytes as a lot has, in one piece: what reading them costs."""
        words = _words_of(self._source, kind.size)
        first = min(int(sources[0]), len(words) - kind.count)
        stretch = words[first : first + kind.count]
        return _seconds(words, lambda: stretch.sum().item())


class _PoolMemory:
    """A pool cut into blocks, as a worker's memory."""

    def __init__(self, pool: Any, size: int) -> None:
        self.block_bytes = size
        self.rows = blocks_of(pool, size)

    def buffer(self, index: int) -> Any:
        return self.rows[index]

    def clear_unused(self, index: int, tokens: int) -> None:
        """All blocks are full."""


class LotDigests:
    """Digests of lots of one pool, as the two sides of a hand-over compute them."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self._digests: dict[int, BlockDigests] = {}

    def seconds(self, kind: LotKind, blocks: Sequence[int]) -> float:
        """Digest a lot."""
        if kind.size not in self._digests:
            self._digests[kind.size] = BlockDigests(_PoolMemory(self._pool, kind.size))
        digests, names = self._digests[kind.size], [_NAME] * len(blocks)
        started = time.perf_counter()
        digests.of(blocks, range(len(blocks)), names)
        return time.perf_counter() - started
