"""The Llama family on a GPU: the arithmetic of `inference_engine.decoder`, with few and large kernels.

Ten launches a layer: four matrix products, attention, and what lies between, each of which reads its rows once.
"""

import torch
from torch.nn import functional

from inference_engine.attention import AttentionBackend, StepAttention
from inference_engine.attention_triton import TritonAttention
from inference_engine.batch import Batch
from inference_engine.cuda_graphs import CudaCapture, GraphedDecoder
from inference_engine.kv_pool import KvPool
from inference_engine.linear import linear
from inference_engine.model_config import ModelConfig
from inference_engine.rope import Rope
from inference_engine.row_kernels_triton import gate_rows, normalise_rows, turn_and_store
from inference_engine.weights import LayerWeights, ModelWeights

_GATE_COLUMNS = 1024


class TritonDecoder:
    """A model's weights, bound to a pool and a way to attend over it."""

    def __init__(self, config: ModelConfig, weights: ModelWeights, pool: KvPool, attention: AttentionBackend) -> None:
        self._config = config
        self._weights = weights
        self._storage = pool.storage
        self.attention = attention
        self._rope = Rope(config.rope, config.head_dim, pool.storage.device)

    def logits(self, batch: Batch) -> torch.Tensor:
        """See `Implementation.logits`."""
        if self._storage.is_cuda:
            torch.cuda.set_device(self._storage.device)  # a launch goes to the device of its thread
        return self.compute(batch, self.attention.prepare(batch))

    def compute(self, batch: Batch, step: StepAttention) -> torch.Tensor:
        """Do as `logits`, with attention that is prepared already. Only launches: nothing is waited for."""
        layers = self._weights.layers
        hidden = self._weights.embedding[batch.token_ids]  # [rows, hidden]
        angles = self._rope.tables(batch.positions, hidden.dtype)
        _, normed = self._add_and_normalise(hidden, None, layers[0].input_norm)
        next_norms = (*(layer.input_norm for layer in layers[1:]), self._weights.final_norm)
        for index, (layer, next_norm) in enumerate(zip(layers, next_norms, strict=True)):
            query = self._turn_and_store(index, layer, linear(normed, layer.query_key_value), angles, batch)
            attended = step.attend(query, index, self._config.windows[index]).flatten(1)
            if index == len(layers) - 1:  # beyond here only the rows that are read are of use
                hidden, attended = hidden[batch.draw_rows], attended[batch.draw_rows]
            hidden, normed = self._add_and_normalise(hidden, linear(attended, layer.attention_output), layer.inner_norm)
            passed = linear(self._gate(linear(normed, layer.gate_up)), layer.down)
            hidden, normed = self._add_and_normalise(hidden, passed, next_norm)
        return functional.linear(normed, self._weights.head).float()

    def _add_and_normalise(
        self, hidden: torch.Tensor, added: torch.Tensor | None, weight: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return hidden + added, and that normalised, each ``[rows, hidden]``."""
        normed = torch.empty_like(hidden)
        total = hidden if added is None else torch.empty_like(hidden)
        size = hidden.shape[1]
        if len(hidden):
            normalise_rows[len(hidden),](
                *(hidden, hidden if added is None else added, weight, total, normed),
                EPSILON=self._config.norm_epsilon,
                SIZE=size,
                WIDTH=_power_of_two(size),
                ADD=added is not None,
                num_warps=8,
            )
        return total, normed

    def _turn_and_store(
        self,
        index: int,
        layer: LayerWeights,
        projected: torch.Tensor,
        angles: tuple[torch.Tensor, torch.Tensor],
        batch: Batch,
    ) -> torch.Tensor:
        """Write the layer's keys and values and return its queries, ``[rows, heads, head_dim]``."""
        config = self._config
        rows = len(projected)
        query = torch.empty((rows, config.heads, config.head_dim), dtype=projected.dtype, device=projected.device)
        no_norm = layer.input_norm
        turn_and_store[rows,](
            *(projected, *angles),
            no_norm if layer.query_norm is None else layer.query_norm,
            no_norm if layer.key_norm is None else layer.key_norm,
            *(batch.slot_blocks, batch.slot_offsets, query, self._storage, index),
            EPSILON=config.norm_epsilon,
            HEADS=config.heads,
            KV_HEADS=config.kv_heads,
            HEAD_DIM=config.head_dim,
            STRIDES=self._storage.stride(),
            ALL_HEADS=_power_of_two(config.heads + 2 * config.kv_heads),
            WIDTH=_power_of_two(config.head_dim),
            NORMALISE=layer.query_norm is not None,
            num_warps=8,
        )
        return query

    def _gate(self, gate_up: torch.Tensor) -> torch.Tensor:
        """Return silu(gates) · what passes them, ``[rows, inner]``."""
        rows, inner = len(gate_up), gate_up.shape[1] // 2
        gated = torch.empty((rows, inner), dtype=gate_up.dtype, device=gate_up.device)
        if rows:
            gate_rows[rows, -(-inner // _GATE_COLUMNS)](gate_up, gated, SIZE=inner, WIDTH=_GATE_COLUMNS)
        return gated


def make_triton_decoder(
    config: ModelConfig,
    weights: ModelWeights,
    pool: KvPool,
    attention: AttentionBackend,
    longest_replayed: int | None,
) -> TritonDecoder | GraphedDecoder:
    """Return a decoder on CUDA. It replays decode steps with contexts up to ``longest_replayed`` tokens.

    None: it replays none. Otherwise the pool has a spare block.
    """
    decoder = TritonDecoder(config, weights, pool, attention)
    if longest_replayed is None:
        return decoder
    capture = CudaCapture(pool.storage.device)
    return GraphedDecoder(decoder, TritonAttention(pool), pool, longest_replayed, capture)


def _power_of_two(size: int) -> int:
    """Return the least power of two that is not less."""
    return 1 << (size - 1).bit_length()
