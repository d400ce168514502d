"""Decode steps as CUDA graphs: kernels that the processor would launch one by one, the device replays by itself.

Life of a graph. A step of which every slice is one token is filled up to the next of `SIZES`. The first step of a size
has its graph *captured*: the decoder runs on tensors that never move, and what it launches is recorded, not the values.
From then on a step's numbers are copied into those tensors and the graph is replayed; its logits lie where they lay
when it was captured, until the next replay. Rows that fill a step up are sequences of one token in the pool's *spare*
block, which nobody else reads or writes. Steps with prompt chunks or drafts, and larger ones, run without a graph.
"""

import logging
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from inference_engine.attention import AttentionBackend, StepAttention
from inference_engine.batch import Batch, Int32Array
from inference_engine.kv_pool import KvPool
from inference_engine.row_arrays import on_device

SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
MOST_BLOCKS = 16384
"""Of one sequence: the tensor of block tables has this many columns at most."""

_POSITION, _SLOT_BLOCK, _SLOT_OFFSET, _TABLE = 3, 4, 5, 6  # columns of `decode_rows`

Work = Callable[[], torch.Tensor]
_log = logging.getLogger(__name__)


class DecodeAttention(Protocol):
    """A back end that takes its tables from tensors which are read when kernels run: `TritonAttention`."""

    def prepare_decode(self, tiles: torch.Tensor, table: torch.Tensor, longest_context: int) -> StepAttention:
        """Prepare for one row a sequence: see `TritonAttention.prepare_decode`."""
        ...


class GraphDecoder(Protocol):
    """A decoder whose layers neither wait for the device nor read its memory: `Decoder`."""

    attention: AttentionBackend

    def logits(self, batch: Batch) -> torch.Tensor:
        """See `Implementation.logits`."""
        ...

    def compute(self, batch: Batch, step: StepAttention) -> torch.Tensor:
        """Return the logits with attention that is prepared already."""
        ...


@dataclass(frozen=True, slots=True)
class Captured:
    """Work that can be done again: what does it, and where its result is then."""

    replay: Callable[[], None]
    output: torch.Tensor


class GraphedDecoder:
    """An `Implementation` that replays decode steps where it can."""

    def __init__(
        self,
        decoder: GraphDecoder,
        attention: DecodeAttention,
        pool: KvPool,
        longest_context: int,
        capture: Callable[[Work], Captured],
    ) -> None:
        """``pool`` has a spare block. ``capture`` is `CudaCapture` but in tests."""
        self.attention = decoder.attention
        self._decoder = decoder
        self._graph_attention = attention
        self._capture = capture
        self._block_size = pool.storage.shape[4]
        self._spare_block = pool.total_blocks
        self._longest_context = longest_context
        blocks = min(-(-longest_context // self._block_size), pool.total_blocks, MOST_BLOCKS)
        device = pool.storage.device
        self._rows = torch.zeros((SIZES[-1], _TABLE + blocks), dtype=torch.int32, device=device)
        self._token_ids = torch.zeros(SIZES[-1], dtype=torch.int64, device=device)
        self._draw_rows = torch.arange(SIZES[-1], device=device)
        self._graphs: dict[int, Captured | None] = {}  # None: there was no memory for it

    def logits(self, batch: Batch) -> torch.Tensor:
        """See `Implementation.logits`; the result is overwritten by the next step."""
        size = self._size_for(batch)
        graph = None if size is None else self._graph(size)
        if size is None or graph is None:
            return self._decoder.logits(batch)
        count = len(batch.token_ids)
        self._set_rows(decode_rows(batch, size, self._block_size, self._spare_block))
        self._token_ids[:count].copy_(batch.token_ids)
        graph.replay()
        return graph.output[:count]

    def capture_up_to(self, sequences: int) -> None:
        """Capture the graphs of all steps of so many sequences now, rather than when they are first met."""
        with torch.inference_mode():
            for size in SIZES:
                self._graph(size)
                if size >= sequences:
                    break

    def _size_for(self, batch: Batch) -> int | None:
        """Return the size of the graph that computes this step, None where none does."""
        sequences, blocks = batch.block_table.shape
        if len(batch.token_ids) != sequences or len(batch.draw_rows) != sequences:
            return None
        return padded_size(sequences) if blocks <= self._rows.shape[1] - _TABLE else None

    def _graph(self, size: int) -> Captured | None:
        if size not in self._graphs:
            self._set_rows(spare_rows(size, self._spare_block))
            try:
                self._graphs[size] = self._capture(lambda: self._compute(size))
            except torch.OutOfMemoryError:
                _log.warning("no memory for the CUDA graph of %d sequences: such steps run without; fewer blocks", size)
                self._graphs[size] = None
        return self._graphs[size]

    def _set_rows(self, rows: Int32Array) -> None:
        self._rows[: len(rows), : rows.shape[1]].copy_(on_device(rows, torch.int32, self._rows.device))

    def _compute(self, size: int) -> torch.Tensor:
        rows = self._rows[:size]
        batch = Batch(
            token_ids=self._token_ids[:size],
            positions=rows[:, _POSITION].long(),
            slot_blocks=rows[:, _SLOT_BLOCK].long(),
            slot_offsets=rows[:, _SLOT_OFFSET].long(),
            draw_rows=self._draw_rows[:size],
            query_starts=np.arange(size + 1, dtype=np.int32),
            context_lengths=np.ones(size, dtype=np.int32),  # what the host knows of a replay is nothing
            block_table=np.full((size, 1), self._spare_block, dtype=np.int32),
        )
        step = self._graph_attention.prepare_decode(rows[:, : _POSITION + 1], rows[:, _TABLE:], self._longest_context)
        return self._decoder.compute(batch, step)


def padded_size(sequences: int) -> int | None:
    """Return the least size that holds so many sequences."""
    place = bisect_left(SIZES, sequences)
    return SIZES[place] if place < len(SIZES) else None


def decode_rows(batch: Batch, size: int, block_size: int, spare_block: int) -> Int32Array:
    """Return a row for each sequence of a step of single tokens, and spare rows up to ``size``.

    Columns: sequence, first row, rows (1), position (as in an attention tile), block and offset that take the row's KV,
    then the block table.
    """
    sequences, blocks = batch.block_table.shape
    rows = np.zeros((size, _TABLE + blocks), dtype=np.int32)
    rows[:, : _TABLE + 1] = spare_rows(size, spare_block)
    position = batch.context_lengths - 1
    rows[:sequences, _POSITION] = position
    rows[:sequences, _SLOT_BLOCK] = batch.block_table[np.arange(sequences), position // block_size]
    rows[:sequences, _SLOT_OFFSET] = position % block_size
    rows[:sequences, _TABLE:] = batch.block_table
    return rows


def spare_rows(size: int, spare_block: int) -> Int32Array:
    """Return rows as of `decode_rows`, of sequences of one token in the spare block."""
    row = np.arange(size)
    ones, zeros, spare = np.ones(size), np.zeros(size), np.full(size, spare_block)
    return np.stack((row, row, ones, zeros, spare, zeros, spare), axis=1).astype(np.int32)


class CudaCapture:
    """Captures work as CUDA graphs, which share the memory of what they compute on their way."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._memory = torch.cuda.graph_pool_handle()

    def __call__(self, work: Work) -> Captured:
        """Do the work twice, so that kernels are compiled and libraries are set up, then record it."""
        with torch.cuda.device(self._device):
            aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch's own
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(2):
                    work()
            torch.cuda.current_stream().wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            # Other threads hand blocks over meanwhile: only this thread's calls are recorded, or forbidden.
            with torch.cuda.graph(graph, pool=self._memory, capture_error_mode="thread_local"):
                output = work()
            return Captured(graph.replay, output)
