"""Attention on the CPU by the compiled kernel, on as many threads as the engine has.

The threads are Python's: the kernel leaves the interpreter's lock, and numba's own thread pool may not be entered by
two engines of one process at once.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch

from inference_engine.attention_kernel import TILE_QUERIES, attend_items
from inference_engine.batch import Batch, Int32Array
from inference_engine.kv_pool import KvPool

_FEWEST_READS_TO_SHARE = 4096  # keys to be read, below which a second thread costs more than it brings


class CompiledAttention:
    """The kernel and its threads. Compiles the kernel, or loads it from numba's cache, when it is made."""

    def __init__(self, pool: KvPool, threads: int) -> None:
        bits = torch.uint16 if pool.storage.dtype == torch.bfloat16 else torch.uint32
        self._bits = pool.storage.view(bits).numpy()
        self._threads = threads
        self._others = ThreadPoolExecutor(threads - 1, "attention") if threads > 1 else None
        compile_kernel(self._bits)

    def prepare(self, batch: Batch) -> "CompiledStep":
        """Cut the rows of each sequence into tiles."""
        return CompiledStep(self._bits, batch, self._threads, self._others)

    def close(self) -> None:
        """End the threads."""
        if self._others is not None:
            self._others.shutdown()


def compile_kernel(bits: npt.NDArray[np.uint16] | npt.NDArray[np.uint32]) -> None:
    """Compile the kernel for a pool of these numbers, or load it from numba's cache, by running it on nothing."""
    nothing = np.empty((0, bits.shape[3], bits.shape[5]), np.float32)
    no_tiles, no_table = np.empty((0, 4), np.int32), np.empty((0, 1), np.int32)
    attend_items(nothing, bits, 0, 0, no_tiles, no_table, nothing, 0, 1)


class CompiledStep:
    """The step's tiles."""

    def __init__(
        self,
        bits: npt.NDArray[np.uint16] | npt.NDArray[np.uint32],
        batch: Batch,
        threads: int,
        others: ThreadPoolExecutor | None,
    ) -> None:
        self._bits = bits
        self._tables = batch.block_table
        self._tiles = _tiles(batch)
        shared = others is not None and int(batch.context_lengths.sum()) >= _FEWEST_READS_TO_SHARE
        self._threads = threads if shared else 1
        self._others = others

    def attend(self, query: torch.Tensor, layer: int, window: int) -> torch.Tensor:
        """See `StepAttention.attend`."""
        queries = query.float().contiguous().numpy()
        output = np.empty_like(queries)
        places = (queries, self._bits, layer, window, self._tiles, self._tables, output)
        calls = []
        if self._others is not None:
            calls = [
                self._others.submit(attend_items, *places, part, self._threads) for part in range(1, self._threads)
            ]
        attend_items(*places, 0, self._threads)
        for call in calls:
            call.result()
        return torch.from_numpy(output).to(query.dtype)


def _tiles(batch: Batch) -> Int32Array:
    """Return the kernel's tiles, ``[tiles, 4]``: sequence, first row, rows, position of the first row."""
    tiles: list[tuple[int, int, int, int]] = []
    for sequence, context in enumerate(batch.context_lengths.tolist()):
        start, end = batch.query_starts[sequence : sequence + 2].tolist()
        shift = context - end  # from a row to its position
        tiles.extend(
            (sequence, row, min(TILE_QUERIES, end - row), row + shift) for row in range(start, end, TILE_QUERIES)
        )
    return np.array(tiles, dtype=np.int32)


if __name__ == "__main__":  # `make setup`: three workers that start together need not compile it each
    compile_kernel(np.empty((0, 1, 2, 1, 1, 1), np.uint16))
    compile_kernel(np.empty((0, 1, 2, 1, 1, 1), np.uint32))
