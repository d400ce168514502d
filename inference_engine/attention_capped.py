"""Attention with what some models add to it: scores bent below a cap, and sinks, in plain torch as the reference is.

A *sink* is one learned score a head that takes part in the softmax and carries no value
(https://arxiv.org/abs/2309.17453): a head may look away. The other back ends know neither.
"""

import math

import torch

from inference_engine.attention_reference import ReferenceAttention, ReferenceStep, visible_keys
from inference_engine.batch import Batch


class CappedAttention(ReferenceAttention):
    """An `AttentionBackend` whose steps take caps and sinks too."""

    def prepare(self, batch: Batch) -> "CappedStep":
        """Move the block tables to the pool's device."""
        return CappedStep(self._pool, batch)


class CappedStep(ReferenceStep):
    """Sequences one after another."""

    def attend(self, query: torch.Tensor, layer: int, window: int) -> torch.Tensor:
        """See `StepAttention.attend`."""
        return self.attend_capped(query, layer, window, None, None)

    def attend_capped(
        self, query: torch.Tensor, layer: int, window: int, cap: float | None, sinks: torch.Tensor | None
    ) -> torch.Tensor:
        """Attend with scores of cap · tanh(score / cap), and with ``sinks`` ``[heads]`` beside them."""
        output = torch.empty_like(query)
        heads, head_dim = query.shape[1:]
        kv_heads, block_size = self._storage.shape[3:5]
        for index, context in enumerate(self._contexts):
            rows = slice(self._starts[index], self._starts[index + 1])
            blocks = self._tables[index, : -(-context // block_size)]
            gathered = self._storage[blocks, layer].float()  # [blocks, 2, kv_heads, block_size, head_dim]
            keys, values = gathered.permute(1, 2, 0, 3, 4).flatten(2, 3)[
                :, :, :context
            ]  # [kv_heads, context, head_dim]
            grouped = (
                query[rows].float().transpose(0, 1).reshape(kv_heads, -1, head_dim)
            )  # [kv_heads, group · rows, ..]
            scores = (grouped @ keys.transpose(1, 2) / math.sqrt(head_dim)).view(heads, -1, context)
            if cap is not None:
                scores = torch.tanh(scores / cap) * cap
            seen = visible_keys(rows.stop - rows.start, context, window, query.device)
            scores = scores.masked_fill(~seen, -torch.inf)  # [heads, rows, context]
            if sinks is not None:
                beside = sinks.float().view(heads, 1, 1).expand(-1, scores.shape[1], 1)
                scores = torch.cat((scores, beside), dim=-1)
            weights = torch.softmax(scores, dim=-1)[:, :, :context].reshape(kv_heads, -1, context)
            output[rows] = (weights @ values).view(heads, -1, head_dim).transpose(0, 1).to(query.dtype)
        return output
