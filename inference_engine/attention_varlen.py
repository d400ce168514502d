"""Attention on CUDA by flash attention's kernels through ``torch.nn.attention.varlen``. bfloat16 only.

The kernels that follow a block table are those of flash-attention 3, which torch does not ship: where its package is
installed they read the pool in place, through the strided view ``[block, token, kv_head, head_dim]`` of one layer's
keys. Elsewhere the tokens that a step reads are packed first, and torch's own kernel reads the packed copy.
"""

import numpy as np
import torch
from torch.nn.attention import activate_flash_attention_impl
from torch.nn.attention.varlen import varlen_attn

from inference_engine.batch import Batch, Int32Array
from inference_engine.kv_pool import KvPool

_HOPPER = 9  # flash-attention 3 is written for this compute capability alone


class VarlenAttention:
    """Chooses once between reading in place and packing."""

    def __init__(self, pool: KvPool) -> None:
        self._pool = pool
        self._in_place = follows_block_tables(pool.storage.device)

    def prepare(self, batch: Batch) -> "PagedStep | PackedStep":
        """Move the step's lengths and tables to the device."""
        return PagedStep(self._pool, batch) if self._in_place else PackedStep(self._pool, batch)

    def close(self) -> None:
        """Nothing was started."""


class _Lengths:
    """The arguments that both ways share."""

    def __init__(self, batch: Batch, device: torch.device) -> None:
        self.query_starts = torch.from_numpy(batch.query_starts).to(device)
        self.longest_query = int(np.diff(batch.query_starts).max())
        self.longest_context = int(batch.context_lengths.max())


class PagedStep:
    """Keys and values are read where they are."""

    def __init__(self, pool: KvPool, batch: Batch) -> None:
        self._storage = pool.storage
        self._lengths = _Lengths(batch, pool.storage.device)
        self._contexts = torch.from_numpy(batch.context_lengths).to(pool.storage.device)
        self._tables = torch.from_numpy(batch.block_table).to(pool.storage.device)

    def attend(self, query: torch.Tensor, layer: int, window: int) -> torch.Tensor:
        """See `StepAttention.attend`."""
        lengths = self._lengths
        attended = varlen_attn(
            query.contiguous(),
            self._storage[:, layer, 0].transpose(1, 2),  # [block, token, kv_head, head_dim]
            self._storage[:, layer, 1].transpose(1, 2),
            lengths.query_starts,
            None,
            lengths.longest_query,
            lengths.longest_context,
            window_size=_window_size(window),
            enable_gqa=True,
            seqused_k=self._contexts,
            block_table=self._tables,
        )
        assert isinstance(attended, torch.Tensor)
        return attended


class PackedStep:
    """The step's keys and values are copied into one row first."""

    def __init__(self, pool: KvPool, batch: Batch) -> None:
        self._storage = pool.storage
        self._lengths = _Lengths(batch, pool.storage.device)
        starts = np.concatenate(([0], np.cumsum(batch.context_lengths))).astype(np.int32)
        self._context_starts = torch.from_numpy(starts).to(pool.storage.device)
        blocks, offsets = _places(batch, starts, pool.storage.shape[4])
        self._blocks = torch.from_numpy(blocks).to(pool.storage.device).long()
        self._offsets = torch.from_numpy(offsets).to(pool.storage.device).long()

    def attend(self, query: torch.Tensor, layer: int, window: int) -> torch.Tensor:
        """See `StepAttention.attend`."""
        lengths = self._lengths
        attended = varlen_attn(
            query.contiguous(),
            self._storage[:, layer, 0][self._blocks, :, self._offsets],  # [context tokens, kv_heads, head_dim]
            self._storage[:, layer, 1][self._blocks, :, self._offsets],
            lengths.query_starts,
            self._context_starts,
            lengths.longest_query,
            lengths.longest_context,
            window_size=_window_size(window),
            enable_gqa=True,
        )
        assert isinstance(attended, torch.Tensor)
        return attended


def _window_size(window: int) -> tuple[int, int]:
    """Return the kernel's (tokens before, tokens after) beside the token itself; -1 is all."""
    return (window - 1 if window else -1, 0)


def _places(batch: Batch, context_starts: Int32Array, block_size: int) -> tuple[Int32Array, Int32Array]:
    """Return block and offset of every token that the step reads, sequence by sequence."""
    sequence = np.repeat(np.arange(len(batch.context_lengths)), batch.context_lengths)
    position = np.arange(context_starts[-1]) - context_starts[:-1][sequence]
    return batch.block_table[sequence, position // block_size], (position % block_size).astype(np.int32)


def follows_block_tables(device: torch.device) -> bool:
    """Tell whether flash attention's kernels read the pool in place here; its package is loaded for good if so."""
    if torch.cuda.get_device_capability(device)[0] != _HOPPER:
        return False
    try:
        activate_flash_attention_impl("FA3")
    except (ImportError, RuntimeError, ValueError):
        return False
    return True
