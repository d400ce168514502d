"""Attention in plain torch: each sequence's blocks are gathered and given to SDPA. Slow, right, runs anywhere."""

import torch

from inference_engine.batch import Batch
from inference_engine.kv_pool import KvPool


class ReferenceAttention:
    """The measure of the other back ends."""

    def __init__(self, pool: KvPool) -> None:
        self._pool = pool

    def prepare(self, batch: Batch) -> "ReferenceStep":
        """Move the block tables to the pool's device."""
        return ReferenceStep(self._pool, batch)

    def close(self) -> None:
        """Nothing was started."""


class ReferenceStep:
    """Sequences one after another."""

    def __init__(self, pool: KvPool, batch: Batch) -> None:
        self._storage = pool.storage
        self._tables = torch.from_numpy(batch.block_table).to(self._storage.device).long()
        self._contexts = batch.context_lengths.tolist()
        self._starts = batch.query_starts.tolist()

    def attend(self, query: torch.Tensor, layer: int, window: int) -> torch.Tensor:
        """See `StepAttention.attend`."""
        output = torch.empty_like(query)
        block_size = self._storage.shape[4]
        for index, context in enumerate(self._contexts):
            rows = slice(self._starts[index], self._starts[index + 1])
            first = max(0, context - (rows.stop - rows.start) - window + 1) // block_size if window else 0
            blocks = self._tables[index, first : -(-context // block_size)]
            read = context - first * block_size
            gathered = self._storage[blocks, layer]  # [blocks, 2, kv_heads, block_size, head_dim]
            pairs = gathered.permute(1, 2, 0, 3, 4).flatten(2, 3)[:, :, :read]  # [2, kv_heads, read, head_dim]
            seen = visible_keys(rows.stop - rows.start, read, window, query.device)
            attended = torch.nn.functional.scaled_dot_product_attention(
                query[rows].transpose(0, 1)[None],  # [1, heads, rows, head_dim]
                pairs[0][None],
                pairs[1][None],
                attn_mask=seen,
                enable_gqa=True,
            )
            output[rows] = attended[0].transpose(0, 1)
        return output


def visible_keys(rows: int, context: int, window: int, device: torch.device) -> torch.Tensor:
    """Return which of ``context`` tokens each of the last ``rows`` of them sees, ``[rows, context]``."""
    queries = torch.arange(context - rows, context, device=device)[:, None]
    keys = torch.arange(context, device=device)[None, :]
    seen = keys <= queries
    return seen & (keys > queries - window) if window else seen
