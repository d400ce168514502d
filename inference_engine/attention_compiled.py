"""Attention on the CPU by the compiled kernel, on as many threads as the engine has."""

import numpy as np
import torch

from inference_engine.attention_kernel import Ints, Numbers, Works, attend_tiles, make_works
from inference_engine.batch import Batch
from inference_engine.kv_pool import KvPool
from inference_engine.thread_team import ThreadTeam

_ROWS_FOR_A_READ = 8
"""So many rows together cost about what one row costs alone."""

TILE_QUERIES = 64
"""Rows of a tile at most: enough to make up for the copy of the keys, few enough for the nearest caches."""
_FEWEST_READS_TO_SHARE = 4096  # keys to be read, below which a second thread costs more than it brings


def numbers_of(tensor: torch.Tensor) -> Numbers:
    """Return a tensor's memory as the kernels take it: float32, or bfloat16 as 16-bit words."""
    numbers: Numbers = (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return numbers


class CompiledAttention:
    """The kernel, its threads and their working memory."""

    def __init__(self, pool: KvPool, threads: int) -> None:
        self.pool = numbers_of(pool.storage)
        self.team = ThreadTeam(threads)
        self._works: dict[int, Works] = {}

    def prepare(self, batch: Batch) -> "CompiledStep":
        """Cut the rows of each sequence into tiles."""
        return CompiledStep(self, batch)

    def works(self, heads: int) -> Works:
        """Return the threads' working memory for this many query heads."""
        if heads not in self._works:
            kv_heads, head_dim = self.pool.shape[3], self.pool.shape[5]
            self._works[heads] = make_works(self.team.threads, TILE_QUERIES, heads, kv_heads, head_dim)
        return self._works[heads]

    def close(self) -> None:
        """End the threads."""
        self.team.close()


class CompiledStep:
    """The step's tiles."""

    def __init__(self, attention: CompiledAttention, batch: Batch) -> None:
        self._attention = attention
        self.tables = batch.block_table
        self.tiles = tiles_of(batch)
        self.threads = 1 if int(batch.context_lengths.sum()) < _FEWEST_READS_TO_SHARE else attention.team.threads

    def attend(self, query: torch.Tensor, layer: int, window: int) -> torch.Tensor:
        """See `StepAttention.attend`."""
        attention = self._attention
        queries = query.contiguous()
        output = torch.empty_like(queries)
        works = attention.works(query.shape[1])
        exact = False
        attention.team.run(
            attend_tiles, numbers_of(queries), attention.pool, layer, window, self.tiles, self.tables,
            numbers_of(output), exact, works, threads=self.threads,
        )  # fmt: skip
        return output


def read_tiles_of(batch: Batch, tiles: Ints) -> Ints:
    """Return tiles for the rows whose logits are read: ``tiles``, all of them, unless those are many more."""
    reads = batch.draw_rows.numpy()
    if len(reads) * _ROWS_FOR_A_READ > len(batch.positions):
        return tiles
    read_tiles = np.empty((len(reads), 4), np.int32)
    read_tiles[:, 0] = np.searchsorted(batch.query_starts, reads, side="right") - 1
    read_tiles[:, 1] = reads
    read_tiles[:, 2] = 1
    read_tiles[:, 3] = batch.positions.numpy()[reads]
    return read_tiles


def tiles_of(batch: Batch) -> Ints:
    """Return the kernel's tiles, ``[tiles, 4]``: sequence, first row, rows, position of the first row."""
    starts, lengths = batch.query_starts[:-1], np.diff(batch.query_starts)
    counts = -(-lengths // TILE_QUERIES)
    sequence = np.repeat(np.arange(len(lengths)), counts)
    ordinal = np.arange(len(sequence)) - np.repeat(np.cumsum(counts) - counts, counts)  # of the tile in its sequence
    first = ordinal * TILE_QUERIES
    tiles = np.empty((len(sequence), 4), np.int32)
    tiles[:, 0] = sequence
    tiles[:, 1] = starts[sequence] + first
    tiles[:, 2] = np.minimum(TILE_QUERIES, lengths[sequence] - first)
    tiles[:, 3] = (batch.context_lengths - lengths)[sequence] + first
    return tiles
