"""Attention on CUDA by our own Triton kernels, which follow block tables in place, whatever the blocks' size.

Rows are computed in *tiles* of two kinds. A slice of few rows (a token being written, perhaps with a draft) is one
small tile whose keys are split over several programs; any other slice is cut into tiles of many rows, whose keys are
not split. Which kind a slice is follows from the slice alone, so a row's result does not depend on its company.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

from inference_engine.attention_triton_kernel import attend_tiles, factors, join_splits
from inference_engine.batch import Batch, Int32Array
from inference_engine.kv_pool import KvPool
from inference_engine.row_arrays import on_device

SPLITS = 16
"""Most parts that the keys of few rows are split into; a power of two."""
_LEAST_SPLIT_TOKENS = 128
_SMALLEST_SIDE = 16  # of a matrix product, in Triton
_EVERYTHING = 1 << 30  # what a row without a window sees


@dataclass(frozen=True, slots=True, kw_only=True)
class TileShape:
    """The size of a tile's matrix products, powers of two, and how the device runs them."""

    queries: int
    """Rows times the heads of a group."""
    strip: int
    """Keys at a time."""
    warps: int
    stages: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """Tiles of one kind."""

    tiles: torch.Tensor  # [tiles, 4] int32: sequence, first row, rows, position of the first row
    shape: TileShape
    splits: int
    """At least as many parts as any tile's keys are split into; 1: none are split."""


class TritonAttention:
    """Kernels for one pool. Triton compiles them when they are first launched; its cache outlives the process."""

    def __init__(self, pool: KvPool) -> None:
        self.storage = pool.storage

    def prepare(self, batch: Batch) -> "TritonStep":
        """Move the block tables to the device; the rows are cut into tiles when the number of heads is known."""
        if self.storage.is_cuda:
            torch.cuda.set_device(self.storage.device)  # a launch goes to the device of its thread
        return TritonStep(self.storage, on_device(batch.block_table, torch.int32, self.storage.device), batch)

    def prepare_decode(self, tiles: torch.Tensor, table: torch.Tensor, longest_context: int) -> "TritonStep":
        """Prepare for one row a sequence, whose tiles and block tables are in the device's memory already.

        ``tiles`` is as in `Launch`. Nothing of it is read before the kernels run, which they may do again and again.
        """
        return TritonStep(self.storage, table, DecodeTiles(tiles=tiles, longest_context=longest_context))

    def close(self) -> None:
        """Nothing was started."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeTiles:
    """Tiles of one row each, and a bound of their contexts in tokens."""

    tiles: torch.Tensor
    longest_context: int


class TritonStep:
    """Tiles and tables of one step."""

    def __init__(self, storage: torch.Tensor, table: torch.Tensor, rows: Batch | DecodeTiles) -> None:
        self._storage = storage
        self._table = table
        self._rows = rows
        self._launches: dict[int, list[Launch]] = {}  # by query heads a key head

    def attend(self, query: torch.Tensor, layer: int, window: int) -> torch.Tensor:
        """See `StepAttention.attend`."""
        query = query if query.stride(2) == 1 else query.contiguous()
        output = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        group = query.shape[1] // self._storage.shape[3]
        if group not in self._launches:
            self._launches[group] = self._cut(group)
        for launch in self._launches[group]:
            self._run(launch, query, output, layer, window or _EVERYTHING)
        return output

    def _cut(self, group: int) -> list[Launch]:
        shapes = tile_shapes(self._storage, group)
        if isinstance(self._rows, DecodeTiles):
            few = self._rows.tiles
            return [Launch(tiles=few, shape=shapes[0], splits=most_splits(self._rows.longest_context, shapes[0]))]
        launches = []
        for tiles, shape, splits in zip(cut_tiles(self._rows, group, shapes), shapes, (SPLITS, 1), strict=True):
            if len(tiles):
                longest = int((tiles[:, 2] + tiles[:, 3]).max())
                there = on_device(tiles, torch.int32, self._storage.device)
                launches.append(Launch(tiles=there, shape=shape, splits=min(splits, most_splits(longest, shape))))
        return launches

    def _run(self, launch: Launch, query: torch.Tensor, output: torch.Tensor, layer: int, reach: int) -> None:
        kv_heads, block_size, head_dim = self._storage.shape[3:]
        rows, heads, _ = query.shape
        shape, tiles, split = launch.shape, launch.tiles, launch.splits > 1
        sizes = {
            "HEADS": heads,
            "HEAD_DIM": head_dim,
            "STRIP": shape.strip,
            "WIDTH": _side(head_dim),
            "SPLITS": SPLITS,
            "LEAST_STRIPS": _LEAST_SPLIT_TOKENS // shape.strip,
        }
        parts, logarithms = output, output
        if split:
            parts = torch.empty((rows, heads, SPLITS, head_dim), dtype=torch.float32, device=query.device)
            logarithms = torch.empty((rows, heads, SPLITS), dtype=torch.float32, device=query.device)
        attend_tiles[len(tiles), kv_heads, launch.splits](
            *(query, self._storage, tiles, self._table, parts, logarithms, layer, reach),
            *(tiles.stride(0), self._table.stride(0), query.stride(0), query.stride(1)),
            **sizes,
            SCALE=math.log2(math.e) / math.sqrt(head_dim),
            GROUP=heads // kv_heads,
            BLOCK_SIZE=block_size,
            STRIDES=self._storage.stride(),
            QUERIES=shape.queries,
            SPLIT=split,
            FACTORS=factors(self._storage),
            num_warps=shape.warps,
            num_stages=shape.stages,
        )
        if split:
            join_splits[len(tiles), heads](parts, logarithms, tiles, output, reach, tiles.stride(0), **sizes)


def tile_shapes(storage: torch.Tensor, group: int) -> tuple[TileShape, TileShape]:
    """Return the shapes of tiles of few rows and of many, for groups of so many query heads."""
    width, least = _side(storage.shape[5]), _side(group)
    if storage.dtype == torch.float32:
        strip = 32 if width <= 128 else _SMALLEST_SIDE  # what fits the memory of a multiprocessor
        few = TileShape(queries=least, strip=strip, warps=4, stages=2)
        return few, TileShape(queries=max(64, least), strip=strip, warps=8, stages=2)
    strip = 64 if width <= 128 else 32
    few = TileShape(queries=least, strip=strip, warps=4, stages=3)
    return few, TileShape(queries=max(128 if width <= 128 else 64, least), strip=strip, warps=8, stages=3)


def most_splits(context: int, shape: TileShape) -> int:
    """Return into how many parts the keys of no more than ``context`` tokens can be split."""
    strips = -(-context // shape.strip)
    return min(SPLITS, -(-strips // (_LEAST_SPLIT_TOKENS // shape.strip)))


def cut_tiles(batch: Batch, group: int, shapes: tuple[TileShape, TileShape]) -> tuple[Int32Array, Int32Array]:
    """Return the tiles, as in `Launch`, of the slices that fit one small tile, and of all others."""
    few, many = (shape.queries // group for shape in shapes)
    starts, lengths = batch.query_starts[:-1], np.diff(batch.query_starts)
    small = lengths <= few
    pieces = np.where(small, 1, -(-lengths // many))
    sequence = np.repeat(np.arange(len(lengths), dtype=np.int32), pieces)
    place = np.arange(len(sequence)) - np.repeat(np.cumsum(pieces) - pieces, pieces)  # of the tile in its slice
    before = place * many
    tiles = np.stack(
        (
            sequence,
            starts[sequence] + before,
            np.where(small[sequence], lengths[sequence], np.minimum(many, lengths[sequence] - before)),
            (batch.context_lengths - lengths)[sequence] + before,
        ),
        axis=1,
    ).astype(np.int32)
    return tiles[small[sequence]], tiles[~small[sequence]]


def _side(size: int) -> int:
    """Return the least side of a matrix product that holds ``size``."""
    return max(_SMALLEST_SIDE, 1 << (size - 1).bit_length())
