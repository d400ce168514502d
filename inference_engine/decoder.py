"""The decoder of the Llama family: from a batch of tokens to the logits of the rows that draw.

All tokens of a step, prompt chunks and single tokens of any sequences, are rows of one matrix ``[rows, hidden]``; only
attention knows which rows belong together. The arithmetic, rounding included, is that of transformers' modules.
"""

import torch
from torch.nn import functional

from inference_engine.attention import AttentionBackend, StepAttention
from inference_engine.batch import Batch
from inference_engine.kv_pool import KvPool
from inference_engine.linear import linear
from inference_engine.model_config import ModelConfig
from inference_engine.rope import Rope, rotate
from inference_engine.weights import LayerWeights, ModelWeights


class Decoder:
    """A model's weights, bound to a pool and a way to attend over it."""

    def __init__(self, config: ModelConfig, weights: ModelWeights, pool: KvPool, attention: AttentionBackend) -> None:
        self._config = config
        self._weights = weights
        self._storage = pool.storage
        self.attention = attention
        self._rope = Rope(config.rope, config.head_dim, pool.storage.device)

    def logits(self, batch: Batch) -> torch.Tensor:
        """Compute the batch, write its KV into the pool, and return the logits ``[draws, vocabulary]`` in float32."""
        return self.compute(batch, self.attention.prepare(batch))

    def compute(self, batch: Batch, step: StepAttention) -> torch.Tensor:
        """Do as `logits`, with attention that is prepared already. On CUDA it only launches: nothing is waited for."""
        hidden = self._weights.embedding[batch.token_ids]  # [rows, hidden]
        cosine, sine = self._rope.tables(batch.positions, hidden.dtype)
        last = len(self._weights.layers) - 1
        for index, layer in enumerate(self._weights.layers):
            attended = self._attend(index, layer, hidden, (cosine, sine), batch, step)
            if index == last:  # beyond here only the rows that draw are of use
                hidden, attended = hidden[batch.draw_rows], attended[batch.draw_rows]
            hidden = hidden + linear(attended, layer.attention_output)
            hidden = hidden + self._feed_forward(layer, hidden)
        hidden = self._norm(hidden, self._weights.final_norm)
        return functional.linear(hidden, self._weights.head).float()

    def _attend(
        self,
        index: int,
        layer: LayerWeights,
        hidden: torch.Tensor,
        angles: tuple[torch.Tensor, torch.Tensor],
        batch: Batch,
        step: StepAttention,
    ) -> torch.Tensor:
        """Write the layer's keys and values and return what the heads read, ``[rows, heads * head_dim]``."""
        config = self._config
        projected = linear(self._norm(hidden, layer.input_norm), layer.query_key_value)
        by_head = projected.view(-1, config.heads + 2 * config.kv_heads, config.head_dim)
        turned = by_head[:, : config.heads + config.kv_heads]
        if layer.query_norm is not None and layer.key_norm is not None:
            query, key = turned[:, : config.heads], turned[:, config.heads :]
            turned = torch.cat((self._norm(query, layer.query_norm), self._norm(key, layer.key_norm)), dim=1)
        turned = rotate(turned, *angles)
        query, key = turned[:, : config.heads], turned[:, config.heads :]
        memory = self._storage[:, index]  # [blocks, 2, kv_heads, block_size, head_dim]
        memory[:, 0][batch.slot_blocks, :, batch.slot_offsets] = key
        memory[:, 1][batch.slot_blocks, :, batch.slot_offsets] = by_head[:, config.heads + config.kv_heads :]
        return step.attend(query, index, config.windows[index]).flatten(1)

    def _feed_forward(self, layer: LayerWeights, hidden: torch.Tensor) -> torch.Tensor:
        gate, up = linear(self._norm(hidden, layer.inner_norm), layer.gate_up).chunk(2, dim=-1)
        return linear(functional.silu(gate) * up, layer.down)

    def _norm(self, values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Root mean square normalisation over the last dimension, in float32, rounded before it is weighted."""
        wide = values.float()
        spread = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self._config.norm_epsilon)
        return weight * (wide * spread).to(values.dtype)
