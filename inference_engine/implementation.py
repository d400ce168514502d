"""What the engine asks of a model, whoever computes it: `decoder.Decoder` or `hf_decoder.HfDecoder`."""

from typing import Protocol

import torch

from inference_engine.attention import AttentionBackend
from inference_engine.batch import Batch


class Implementation(Protocol):
    """A model's weights, bound to a pool and a way to attend over it."""

    @property
    def attention(self) -> AttentionBackend:
        """How it attends: its threads, if any, are ended by whoever ends the engine."""
        ...

    def logits(self, batch: Batch) -> torch.Tensor:
        """Compute the batch, write its KV into the pool, and return the logits ``[draws, vocabulary]`` in float32."""
        ...
