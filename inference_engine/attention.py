"""What the decoder asks of attention; the implementations are `attention_reference`, `_compiled` and `_varlen`."""

from typing import Protocol

import torch

from inference_engine.batch import Batch


class StepAttention(Protocol):
    """Attention of one step: what all layers share is prepared."""

    def attend(self, query: torch.Tensor, layer: int, window: int) -> torch.Tensor:
        """Return softmax(query · keys / sqrt(head_dim)) · values for every row of the batch.

        ``query`` and the result are ``[rows, heads, head_dim]`` of the pool's type. A row at position p of its
        sequence reads keys and values of ``layer`` at the positions 0..p of the sequence's blocks, or only the last
        ``window`` of them where ``window`` is not 0. The rows' own keys and values are in the pool already. The
        softmax is computed in float32. Query heads are grouped evenly over the key heads, in order.
        """
        ...


class AttentionBackend(Protocol):
    """One way to compute attention over a pool."""

    def prepare(self, batch: Batch) -> StepAttention:
        """Prepare what the layers of one step share."""
        ...

    def close(self) -> None:
        """End what the back end started."""
        ...
